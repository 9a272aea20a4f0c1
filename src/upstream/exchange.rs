//! One exchange with Genesys over HTTP: the client, the bounded answer, what a status means.
//!
//! Nothing of a URL, a header or a body gets into an [`Error`]: a URL holds the customer id, an
//! answer may repeat it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, redirect};
use tokio::time::Instant;

use super::Error;

/// How we name ourselves.
const USER_AGENT: &str = concat!("profile-edge/", env!("CARGO_PKG_VERSION"));

/// The longest that a `Retry-After` is honoured: daily limits name hours.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes an HTTP client.
///
/// With `tls` it trusts the certificate authorities of this machine, goes through the proxy that the
/// environment names, and cannot be made where there are no authorities. Without, it needs none, and
/// speaks plain HTTP straight to its host, which in practice is the sandbox on loopback.
///
/// Redirections are answers, never followed: a token must not travel to another host. An HTTP/2
/// connection is probed, because a dead one would take all requests with it until TCP gives up,
/// a quarter of an hour later.
pub(super) fn client(tls: bool) -> Result<Client, reqwest::Error> {
    // reqwest takes the process' provider and panics without one. An error says that there is one
    // already, installed by an earlier client or by whoever embeds us; either will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .pool_idle_timeout(Duration::from_secs(30))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .http2_keep_alive_timeout(Duration::from_secs(2))
        .http2_keep_alive_while_idle(true);
    if tls { builder.build() } else { builder.tls_certs_only([]).no_proxy().build() }
}

/// An answer of Genesys.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: StatusCode,
    /// Its headers.
    pub(super) headers: HeaderMap,
    /// Its body, read only with status 200.
    pub(super) body: Bytes,
}

impl Answer {
    /// Sends a request and reads the answer, a body of at most `limit` bytes, until `deadline`.
    pub(super) async fn to(request: RequestBuilder, limit: usize, deadline: Instant) -> Result<Self, Error> {
        let exchange = async {
            let mut response = request.send().await.map_err(broken)?;
            let body =
                if response.status() == StatusCode::OK { read(&mut response, limit).await? } else { Bytes::new() };
            Ok(Self { status: response.status(), headers: std::mem::take(response.headers_mut()), body })
        };
        tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(Error::Timeout))
    }

    /// Says what a status means that is neither the answer asked for nor one with a meaning of its
    /// own to the caller.
    ///
    /// Only a server error and 408 may pass by themselves. Any other status (a redirection, another
    /// success, a 4xx) comes again however often the request is repeated.
    pub(super) fn refusal(&self) -> Error {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied { status: self.status.as_u16() },
            StatusCode::TOO_MANY_REQUESTS => Error::Throttled { retry_after: retry_after(&self.headers) },
            StatusCode::REQUEST_TIMEOUT => Error::Failed { status: self.status.as_u16() },
            status if status.is_server_error() => Error::Failed { status: status.as_u16() },
            status if status.is_redirection() => Error::Unusable { reason: "a redirection" },
            status if status.is_client_error() => Error::Unusable { reason: "it holds the request to be wrong" },
            _ => Error::Unusable { reason: "a success without what was asked for" },
        }
    }
}

async fn read(response: &mut Response, limit: usize) -> Result<Bytes, Error> {
    let too_large = Error::Unusable { reason: "the body is too large" };
    let announced = response.content_length().unwrap_or(0);
    let announced = usize::try_from(announced).ok().filter(|length| *length <= limit).ok_or(too_large.clone())?;
    let mut body = BytesMut::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > limit {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Says what became of a request that got no whole answer. The cause is told at debug level, without
/// its URL: it tells a bad certificate from a refused connection.
fn broken(error: reqwest::Error) -> Error {
    let answer = if error.is_timeout() { Error::Timeout } else { Error::Unreachable };
    let error = error.without_url();
    tracing::debug!(cause = &error as &dyn std::error::Error, "request to genesys broke off");
    answer
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date, which is measured against the
/// answer's own `Date` and so needs no clock of ours to agree. At least a second, also when it is
/// missing or says nothing.
fn retry_after(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text: &str| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let asked = text(header::RETRY_AFTER).and_then(|after| match after.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let wait = date(after)?.duration_since(date(text(header::DATE)?)?);
            Duration::try_from(wait).ok()
        }
    });
    asked.unwrap_or_default().clamp(Duration::from_secs(1), MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(header::HeaderName, &str)]) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() }
    }

    fn throttled(headers: &[(header::HeaderName, &str)]) -> Duration {
        answer(429, headers).refusal().retry_after().unwrap()
    }

    #[test]
    fn a_status_says_what_to_do() {
        let refusal = |status| answer(status, &[]).refusal();
        for status in [401, 403] {
            assert_eq!(refusal(status), Error::Denied { status });
        }
        for status in [408, 500, 502, 503, 504] {
            assert_eq!(refusal(status), Error::Failed { status });
        }
        for status in [204, 206, 302, 304, 400, 406, 415] {
            assert!(matches!(refusal(status), Error::Unusable { .. }), "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(throttled(&[(header::RETRY_AFTER, "42")]), Duration::from_secs(42));
        assert_eq!(
            throttled(&[(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT"), date.clone()]),
            Duration::from_secs(60)
        );
        for nothing in ["0", "", "soon", "-5", "Sun, 06 Nov 1994 08:00:00 GMT"] {
            let waits = throttled(&[(header::RETRY_AFTER, nothing), date.clone()]);
            assert_eq!(waits, Duration::from_secs(1), "{nothing}");
        }
        assert_eq!(throttled(&[]), Duration::from_secs(1));
        assert_eq!(throttled(&[(header::RETRY_AFTER, "18446744073709551615")]), MAX_RETRY_AFTER);
    }

    #[tokio::test]
    async fn a_client_without_tls_needs_no_certificate_authority_and_refuses_https() {
        let request = client(false).unwrap().get("https://127.0.0.1:1/");
        let deadline = Instant::now() + Duration::from_secs(5);
        assert_eq!(Answer::to(request, 1, deadline).await.err(), Some(Error::Unreachable));
    }
}
