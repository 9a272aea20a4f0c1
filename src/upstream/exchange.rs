//! One exchange with Genesys over HTTP: the client, the bounded response, and what a status means.
//!
//! An [`Error`] holds no path, query, header or body: a URL holds the customer id, and a response may repeat it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, redirect};
use tokio::time::Instant;

use super::Error;
use super::times::TimedConnections;
use super::transport::{self, TransportFailure};

/// The `User-Agent` of every request.
const USER_AGENT: &str = concat!("profile-edge/", env!("CARGO_PKG_VERSION"));

/// The longest `Retry-After` that is honoured. Daily limits name hours.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Why an answer with a content coding is not used.
const ENCODED: &str = "its body is compressed, which was not asked for: a proxy on the way changes it";

/// Creates an HTTP client. It asks for answers without a content coding.
///
/// With `tls` it trusts the certificate authorities of this machine and uses the proxy that the environment names;
/// on a machine without authorities this fails. Without `tls` it needs no authorities and no proxy: it speaks plain
/// HTTP, in practice with the sandbox on loopback.
///
/// Redirections are not followed, so that a token is never sent to another host. HTTP/2 connections are probed:
/// without probes a dead connection fails all requests until TCP gives up after a quarter of an hour.
pub(super) fn client(tls: bool) -> Result<Client, reqwest::Error> {
    // reqwest uses the provider of the process and panics without one. An error only means that one is
    // installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
        .redirect(redirect::Policy::none())
        .referer(false)
        .connector_layer(TimedConnections)
        .pool_idle_timeout(Duration::from_secs(30))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .http2_keep_alive_timeout(Duration::from_secs(2))
        .http2_keep_alive_while_idle(true);
    if tls { builder.build() } else { builder.tls_certs_only([]).no_proxy().build() }
}

/// Returns whether a body has a content coding (RFC 9110 section 8.4).
fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// A response of Genesys.
pub(super) struct GenesysResponse {
    /// The status.
    pub(super) status: StatusCode,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The body, which is read only with status 200.
    pub(super) body: Bytes,
}

impl GenesysResponse {
    /// Sends a request and reads the response, with a body of at most `limit` bytes, until `deadline`.
    pub(super) async fn receive(request: RequestBuilder, limit: usize, deadline: Instant) -> Result<Self, Error> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| failed("", &error))?;
        let host = transport::host(request.url());
        let exchange = async {
            let mut response = client.execute(request).await.map_err(|error| failed(&host, &error))?;
            let body = match response.status() {
                StatusCode::OK if is_encoded(response.headers()) => return Err(Error::Unusable { reason: ENCODED }),
                StatusCode::OK => read(&mut response, limit, &host).await?,
                _ => Bytes::new(),
            };
            Ok(Self { status: response.status(), headers: std::mem::take(response.headers_mut()), body })
        };
        let exchange = tokio::time::timeout_at(deadline, exchange).await;
        exchange.unwrap_or_else(|_| Err(Error::Timeout(Some(TransportFailure::deadline(&host)))))
    }

    /// Returns the error of a response without the expected content.
    ///
    /// A server error and 408 are temporary. Any other status (a redirection, another success, a 4xx) is not: a
    /// retry would get it again.
    pub(super) fn error(&self) -> Error {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied { status: self.status.as_u16() },
            StatusCode::TOO_MANY_REQUESTS => Error::Throttled { retry_after: retry_after(&self.headers) },
            StatusCode::SERVICE_UNAVAILABLE if self.headers.contains_key(header::RETRY_AFTER) => {
                Error::Failed { status: self.status.as_u16(), retry_after: Some(retry_after(&self.headers)) }
            }
            status if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() => {
                Error::Failed { status: status.as_u16(), retry_after: None }
            }
            status if status.is_redirection() => Error::Unusable { reason: "a redirection" },
            status if status.is_client_error() => Error::Unusable { reason: "it rejects the request as wrong" },
            _ => Error::Unusable { reason: "a success status without the expected content" },
        }
    }
}

async fn read(response: &mut Response, limit: usize, host: &str) -> Result<Bytes, Error> {
    let too_large = Error::Unusable { reason: "the body is too large" };
    let announced = response.content_length().unwrap_or(0);
    let announced = usize::try_from(announced).ok().filter(|length| *length <= limit).ok_or(too_large.clone())?;
    let mut body = BytesMut::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(host, &error))? {
        if body.len() + chunk.len() > limit {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Returns the error of a request without a whole response. It is logged here at debug level, since a retry may
/// hide it from the caller.
fn failed(host: &str, error: &reqwest::Error) -> Error {
    let failure = transport::describe(host, error);
    tracing::debug!(cause = %failure, "request to genesys failed");
    if error.is_timeout() { Error::Timeout(Some(failure)) } else { Error::Unreachable(Some(failure)) }
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds, also with a fraction as some gateways send them, or a date in
/// one of the three forms of section 5.6.7. A date is compared with the response's own
/// `Date`, so the local clock does not matter. Returns at least a second, also for a missing or invalid value.
fn retry_after(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let asked = text(header::RETRY_AFTER).and_then(|after| match after.parse::<f64>() {
        Ok(seconds) if seconds.is_nan() => None,
        Ok(seconds) => Duration::try_from_secs_f64(seconds.min(MAX_RETRY_AFTER.as_secs_f64())).ok(),
        Err(_) => date(after)?.duration_since(date(text(header::DATE)?)?).ok(),
    });
    asked.unwrap_or_default().clamp(Duration::from_secs(1), MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(header::HeaderName, &str)]) -> GenesysResponse {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        GenesysResponse { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() }
    }

    fn throttled(headers: &[(header::HeaderName, &str)]) -> Duration {
        response(429, headers).error().retry_after().unwrap()
    }

    #[test]
    fn each_status_has_its_error() {
        let error = |status| response(status, &[]).error();
        for status in [401, 403] {
            assert_eq!(error(status), Error::Denied { status });
        }
        for status in [408, 500, 502, 503, 504] {
            assert_eq!(error(status), Error::Failed { status, retry_after: None });
        }
        for status in [204, 206, 302, 304, 400, 406, 415] {
            assert!(matches!(error(status), Error::Unusable { .. }), "{status}");
        }
    }

    #[test]
    fn a_503_may_name_the_time_to_wait() {
        let error = response(503, &[(header::RETRY_AFTER, "7")]).error();
        assert_eq!(error, Error::Failed { status: 503, retry_after: Some(Duration::from_secs(7)) });
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(throttled(&[(header::RETRY_AFTER, "42")]), Duration::from_secs(42));
        assert_eq!(
            throttled(&[(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT"), date.clone()]),
            Duration::from_secs(60)
        );
        for sixty in ["Sunday, 06-Nov-94 08:50:37 GMT", "Sun Nov  6 08:50:37 1994", "60.0"] {
            let waits = throttled(&[(header::RETRY_AFTER, sixty), date.clone()]);
            assert_eq!(waits, Duration::from_secs(60), "{sixty}");
        }
        assert_eq!(throttled(&[(header::RETRY_AFTER, "1.5")]), Duration::from_millis(1500));
        for nothing in ["0", "NaN", "-inf", "", "soon", "-5", "Sun, 06 Nov 1994 08:00:00 GMT"] {
            let waits = throttled(&[(header::RETRY_AFTER, nothing), date.clone()]);
            assert_eq!(waits, Duration::from_secs(1), "{nothing}");
        }
        assert_eq!(throttled(&[]), Duration::from_secs(1));
        assert_eq!(throttled(&[(header::RETRY_AFTER, "18446744073709551615")]), MAX_RETRY_AFTER);
    }

    #[tokio::test]
    async fn the_plain_client_needs_no_certificate_authority_and_fails_https() {
        let request = client(false).unwrap().get("https://127.0.0.1:1/");
        let deadline = Instant::now() + Duration::from_secs(5);
        let error = GenesysResponse::receive(request, 1, deadline).await.err();
        assert!(matches!(error, Some(Error::Unreachable(Some(_)))), "{error:?}");
    }
}
