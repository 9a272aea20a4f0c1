//! The client of a collector: one request per batch, a bounded answer, nothing followed and nothing repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Certificate, Identity, redirect};
use url::Url;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;

use super::Config;

/// How we name ourselves.
const USER_AGENT: &str = concat!("profile-edge/", env!("CARGO_PKG_VERSION"));

/// Posts batches to one collector.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    timeout: Duration,
}

/// Why a batch was not taken; nothing of the collector's answer but its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// With this status.
    Status(StatusCode),
    /// No whole answer in time.
    Timeout,
    /// No connection, or one that broke off.
    Unreachable,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "it answers {}", status.as_u16()),
            Self::Timeout => f.write_str("it does not answer in time"),
            Self::Unreachable => f.write_str("it cannot be reached"),
        }
    }
}

impl Client {
    pub(super) fn new(config: &Config, endpoint: &Url) -> Result<Self, InvalidSetting> {
        // reqwest takes the process' provider and panics without one; one that is there already will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_max_idle_per_host(1);
        if endpoint.scheme() == "http" {
            // Needs no authorities, and goes straight to its host.
            builder = builder.tls_certs_only([]).no_proxy();
        } else if let Some(ca) = &config.tls.ca {
            let found = Certificate::from_pem_bundle(&read("tls.ca", ca)?).ok().filter(|found| !found.is_empty());
            builder =
                builder.tls_certs_only(found.ok_or_else(|| InvalidSetting::new("tls.ca", "holds no certificates"))?);
        }
        builder = match (&config.tls.cert, &config.tls.key) {
            (None, None) => builder,
            (Some(cert), Some(key)) => {
                let mut pem = read("tls.key", key)?;
                pem.extend(read("tls.cert", cert)?);
                let unusable = |_| InvalidSetting::new("tls.cert", "does not hold a certificate that fits the key");
                builder.identity(Identity::from_pem(&pem).map_err(unusable)?)
            }
            (None, Some(_)) => return Err(InvalidSetting::new("tls.cert", "is missing: telemetry.tls.key needs it")),
            (Some(_), None) => return Err(InvalidSetting::new("tls.key", "is missing: telemetry.tls.cert needs it")),
        };
        let http = builder.build().map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            InvalidSetting::new("endpoint", format!("cannot make an HTTP client: {cause}"))
        })?;
        Ok(Self { http, url: traces_url(endpoint)?, headers: headers(&config.headers)?, timeout: config.timeout })
    }

    /// Posts one batch.
    pub(super) async fn post(&self, batch: Vec<u8>) -> Result<(), Refused> {
        let request = self.http.post(self.url.clone()).headers(self.headers.clone());
        let request = request.header(header::CONTENT_TYPE, "application/x-protobuf").timeout(self.timeout).body(batch);
        let answer = request.send().await.map_err(|error| {
            let error = error.without_url();
            tracing::debug!(cause = &error as &dyn std::error::Error, "request to the collector broke off");
            if error.is_timeout() { Refused::Timeout } else { Refused::Unreachable }
        })?;
        // The body says at most how much of the batch was not liked; the connection is not worth reading it without
        // bounds.
        if answer.status().is_success() { Ok(()) } else { Err(Refused::Status(answer.status())) }
    }
}

/// Returns where traces are posted below a base URL (OTLP specification, "OTLP/HTTP Request").
pub(super) fn traces_url(endpoint: &Url) -> Result<Url, InvalidSetting> {
    let refuse = |reason: &'static str| Err(InvalidSetting::new("endpoint", reason));
    if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
        return refuse("must be an http or https URL");
    }
    if !endpoint.username().is_empty() || endpoint.password().is_some() {
        return refuse("must not hold a credential: telemetry.headers may");
    }
    if endpoint.query().is_some() || endpoint.fragment().is_some() {
        return refuse("must be a base URL, to which /v1/traces is added");
    }
    let mut url = endpoint.clone();
    url.set_path(&format!("{}/v1/traces", endpoint.path().trim_end_matches('/')));
    Ok(url)
}

/// Reads the configured headers.
pub(super) fn headers(configured: &BTreeMap<String, Secret>) -> Result<HeaderMap, InvalidSetting> {
    let mut headers = HeaderMap::new();
    for (name, secret) in configured {
        let field = format!("headers.{name}");
        let header = HeaderName::try_from(name.as_str());
        let header = header.map_err(|_| InvalidSetting::new(field.clone(), "is not the name of a header"))?;
        let value = HeaderValue::from_str(secret.expose());
        let mut value = value.map_err(|_| InvalidSetting::new(field.clone(), "holds what no header may"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, InvalidSetting> {
    let explain = |error| InvalidSetting::new(option, format!("the file {} cannot be read: {error}", path.display()));
    std::fs::read(path).map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(endpoint: &str) -> Result<String, String> {
        traces_url(&endpoint.parse().unwrap()).map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn traces_are_posted_below_the_base() {
        assert_eq!(url("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(url("https://otel.example/in/").unwrap(), "https://otel.example/in/v1/traces");
    }

    #[test]
    fn what_is_no_base_url_is_refused_and_a_credential_in_it_is_not_shown() {
        for bad in ["grpc://h:1", "http://user:planted@h:1", "http://h:1/?key=planted", "http://h:1/#a", "unix:/run/a"]
        {
            let refused = url(bad).unwrap_err();
            assert!(refused.starts_with("endpoint: ") && !refused.contains("planted"), "{refused}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_named_and_its_value_is_not_shown() {
        for (name, value) in [("a b", "planted"), ("authorization", "planted\n")] {
            let configured = BTreeMap::from([(name.to_owned(), Secret::new(value))]);
            let refused = headers(&configured).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("headers.{name}: ")) && !refused.contains("planted"));
        }
    }
}
