//! The client of the collector: one request per batch, with a timeout, without redirects and retries.

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

/// The User-Agent of requests to the collector.
const USER_AGENT: &str = concat!("profile-edge/", env!("CARGO_PKG_VERSION"));

/// Posts batches to one collector.
#[derive(Debug)]
pub(super) struct CollectorClient {
    http: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    timeout: Duration,
}

/// Why a batch was not accepted; of the answer it holds only the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostError {
    /// The collector answered with this status.
    Status(StatusCode),
    /// There was no complete answer in time.
    Timeout,
    /// The connection failed.
    Unreachable,
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "it answers with status {}", status.as_u16()),
            Self::Timeout => f.write_str("it does not answer in time"),
            Self::Unreachable => f.write_str("it cannot be reached"),
        }
    }
}

impl CollectorClient {
    pub(super) fn new(config: &Config, endpoint: &Url) -> Result<Self, InvalidSetting> {
        // reqwest uses the provider of the process, and panics without one; an error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_max_idle_per_host(1);
        if endpoint.scheme() == "http" {
            // Plain HTTP needs no CA certificates, and bypasses proxies.
            builder = builder.tls_certs_only([]).no_proxy();
        } else if let Some(ca) = &config.tls.ca {
            let found = Certificate::from_pem_bundle(&read("tls.ca", ca)?).ok().filter(|found| !found.is_empty());
            builder =
                builder.tls_certs_only(found.ok_or_else(|| InvalidSetting::new("tls.ca", "contains no certificates"))?);
        }
        builder = match (&config.tls.cert, &config.tls.key) {
            (None, None) => builder,
            (Some(cert), Some(key)) => {
                let mut pem = read("tls.key", key)?;
                pem.extend(read("tls.cert", cert)?);
                let unusable = |_| InvalidSetting::new("tls.cert", "does not contain a certificate for the key");
                builder.identity(Identity::from_pem(&pem).map_err(unusable)?)
            }
            (None, Some(_)) => return Err(InvalidSetting::new("tls.cert", "is missing: telemetry.tls.key needs it")),
            (Some(_), None) => return Err(InvalidSetting::new("tls.key", "is missing: telemetry.tls.cert needs it")),
        };
        let http = builder.build().map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            InvalidSetting::new("endpoint", format!("cannot create an HTTP client: {cause}"))
        })?;
        Ok(Self { http, url: traces_url(endpoint)?, headers: headers(&config.headers)?, timeout: config.timeout })
    }

    /// Posts one batch.
    pub(super) async fn post(&self, batch: Vec<u8>) -> Result<(), PostError> {
        let request = self.http.post(self.url.clone()).headers(self.headers.clone());
        let request = request.header(header::CONTENT_TYPE, "application/x-protobuf").timeout(self.timeout).body(batch);
        let answer = request.send().await.map_err(|error| {
            let error = error.without_url();
            tracing::debug!(cause = &error as &dyn std::error::Error, "the request to the collector failed");
            if error.is_timeout() { PostError::Timeout } else { PostError::Unreachable }
        })?;
        // The body is not read: it could be unbounded, and holds at most the number of rejected spans.
        if answer.status().is_success() { Ok(()) } else { Err(PostError::Status(answer.status())) }
    }
}

/// Returns the URL for traces below a base URL (OTLP specification, "OTLP/HTTP Request").
pub(super) fn traces_url(endpoint: &Url) -> Result<Url, InvalidSetting> {
    let refuse = |reason: &'static str| Err(InvalidSetting::new("endpoint", reason));
    if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
        return refuse("must be an http or https URL");
    }
    if !endpoint.username().is_empty() || endpoint.password().is_some() {
        return refuse("must not contain a credential: use telemetry.headers");
    }
    if endpoint.query().is_some() || endpoint.fragment().is_some() {
        return refuse("must be a base URL without query and fragment; /v1/traces is appended");
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
        let header = header.map_err(|_| InvalidSetting::new(field.clone(), "is not a valid header name"))?;
        let value = HeaderValue::from_str(secret.expose());
        let mut value = value
            .map_err(|_| InvalidSetting::new(field.clone(), "contains characters that are invalid in a header"))?;
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
    fn traces_are_posted_below_the_base_url() {
        assert_eq!(url("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(url("https://otel.example/in/").unwrap(), "https://otel.example/in/v1/traces");
    }

    #[test]
    fn an_invalid_base_url_is_refused_without_showing_its_credential() {
        for bad in ["grpc://h:1", "http://user:planted@h:1", "http://h:1/?key=planted", "http://h:1/#a", "unix:/run/a"]
        {
            let refused = url(bad).unwrap_err();
            assert!(refused.starts_with("endpoint: ") && !refused.contains("planted"), "{refused}");
        }
    }

    #[test]
    fn an_invalid_header_is_named_without_showing_its_value() {
        for (name, value) in [("a b", "planted"), ("authorization", "planted\n")] {
            let configured = BTreeMap::from([(name.to_owned(), Secret::new(value))]);
            let refused = headers(&configured).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("headers.{name}: ")) && !refused.contains("planted"));
        }
    }
}
