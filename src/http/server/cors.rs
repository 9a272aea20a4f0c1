//! Cross-origin requests of browsers (Fetch standard, section 3.3): pages of the configured origins may call the public
//! listener. A page of any other origin gets no answer that it could read.
//!
//! Credentials are sent in headers, never in cookies, so `Access-Control-Allow-Credentials` is not needed.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};

use crate::http::response::problem::Problem;
use crate::invalid::InvalidSetting;

/// The methods of the public routes that a page may call.
const METHODS: &str = "GET, POST";

/// The headers that a page may send.
const REQUEST_HEADERS: &str = "authorization, cache-control, content-type, if-none-match, inin-correlation-id, last-event-id, traceparent, x-api-key, \
     x-request-id, x-tenant-id";

/// The headers of an answer that a page may read.
const ANSWER_HEADERS: &str = "age, cache-status, etag, inin-correlation-id, ratelimit, ratelimit-policy, retry-after, \
                              server-timing, x-profile-key, x-request-id";

/// How long a browser may remember the answer to a preflight, in seconds.
const REMEMBER: &str = "600";

/// What an origin looks like.
const EXPECTED: &str = "must be exact origins, such as \"https://desktop.example.com\": http or https, a host in lower case, \
                        and a port if it is not the default";

/// The origins whose pages may call.
#[derive(Clone, Debug, Default)]
pub struct AllowedOrigins(Arc<[HeaderValue]>);

/// What CORS says of a request.
#[derive(Debug)]
pub(super) enum CorsRequest {
    /// Not from a page of another origin, or no origin is allowed.
    None,
    /// From a page that may not call.
    Foreign,
    /// From a page that may call.
    Allowed(HeaderValue),
}

impl AllowedOrigins {
    /// Parses origins: `scheme://host` or `scheme://host:port` (RFC 6454 section 6.2).
    ///
    /// # Errors
    ///
    /// One of them is not an origin.
    pub fn parse(origins: &[String]) -> Result<Self, InvalidSetting> {
        let origins: Option<Arc<[_]>> = origins.iter().map(|origin| parse(origin)).collect();
        origins.map(Self).ok_or_else(|| InvalidSetting::new("cors_origins", EXPECTED))
    }

    /// Judges a request.
    pub(super) fn judge(&self, headers: &HeaderMap) -> CorsRequest {
        if self.0.is_empty() {
            return CorsRequest::None;
        }
        match headers.get(header::ORIGIN) {
            Some(origin) if self.0.contains(origin) => CorsRequest::Allowed(origin.clone()),
            Some(_) => CorsRequest::Foreign,
            None => CorsRequest::None,
        }
    }
}

fn parse(origin: &str) -> Option<HeaderValue> {
    let uri: Uri = origin.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?.as_str());
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let is_serialized = origin == format!("{scheme}://{authority}") && origin == origin.to_ascii_lowercase();
    if !is_serialized || authority.contains('@') || authority.ends_with(default) || authority.ends_with(':') {
        return None;
    }
    HeaderValue::try_from(origin).ok()
}

impl CorsRequest {
    /// Returns the answer to a preflight; `None` if the request is none.
    pub(super) fn preflight(&self, request: &Request) -> Option<Result<Response, Problem>> {
        if request.method() != Method::OPTIONS || !request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        {
            return None;
        }
        match self {
            Self::Allowed(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                let headers = response.headers_mut();
                let constant = HeaderValue::from_static;
                headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, constant(METHODS));
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, constant(REQUEST_HEADERS));
                headers.insert(header::ACCESS_CONTROL_MAX_AGE, constant(REMEMBER));
                Some(Ok(response))
            }
            Self::Foreign => {
                let detail = "Origin: not one of http.cors_origins";
                Some(Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field("Origin")))
            }
            Self::None => None,
        }
    }

    /// Adds the headers that let the page read the answer. A shared cache must keep the answers to origins apart.
    pub(super) fn write_headers(self, headers: &mut HeaderMap) {
        if !matches!(self, Self::None) {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Self::Allowed(origin) = self {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(ANSWER_HEADERS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_origins_are_valid() {
        for origin in ["https://desktop.example.com", "http://localhost:3000", "https://[::1]:8443"] {
            assert!(AllowedOrigins::parse(&[origin.to_owned()]).is_ok(), "{origin}");
        }
        let (paths, ports) =
            (["https://a/", "https://a/b", "https://a?b"], ["https://a:443", "http://a:80", "https://a:"]);
        for origin in ["", "*", "null", "desktop.example.com", "https://", "https://A", "https://u@a", "ftp://a"]
            .into_iter()
            .chain(paths)
            .chain(ports)
        {
            assert!(AllowedOrigins::parse(&[origin.to_owned()]).is_err(), "{origin}");
        }
    }
}
