//! What a web page in an operator's browser could send to the admin listener.
//!
//! A page of any site can post to a port of the operator's machine, with a form or a `Blob` and without asking first, and
//! a name of its own that resolves to 127.0.0.1 (DNS rebinding) makes it the listener's own origin. So a command is sent
//! as `application/json`, or with the admin key and without a type, neither of which a page may send across origins; its `Origin`
//! is the listener's own; and without an admin key its `Host` is an address or `localhost`.

use std::net::IpAddr;

use axum::extract::Request;
use http::header::{self, HeaderName};
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode};

use crate::http::response::problem::Problem;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns why a request is refused, if a web page may have sent it.
pub(super) fn refuse(request: &Request, has_key: bool) -> Option<Problem> {
    let forbidden = |field: &str, detail: &str| {
        Some(Problem::new(StatusCode::FORBIDDEN, "cross_site", format!("{field}: {detail}")).field(field))
    };
    let headers = request.headers();
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = request.uri().authority().map(Authority::as_str).or_else(|| text(&header::HOST));
    if !has_key && !host.is_some_and(is_local) {
        return forbidden("Host", "must be an address or localhost while no admin key is configured");
    }
    if headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site") {
        return forbidden("Sec-Fetch-Site", "commands are not accepted from other sites");
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        if origin.is_none_or(|(_, authority)| Some(authority) != host) {
            return forbidden("Origin", "must be the admin listener itself");
        }
    }
    // No page can present a key without asking first, so with one a body without a type is JSON, as elsewhere.
    let is_json = headers.get(header::CONTENT_TYPE).map_or(has_key, is_json);
    if *request.method() == Method::POST && !is_json {
        let detail = "Content-Type: must be application/json";
        return Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    None
}

fn is_json(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Returns whether an authority is an address or `localhost`, with or without a port.
fn is_local(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(has_key: bool, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::post("/admin/invalidate");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        refuse(&request.body(Body::empty()).unwrap(), has_key).map(|problem| problem.status().as_u16())
    }

    #[test]
    fn only_what_no_web_page_can_send_is_accepted() {
        let json = ("content-type", "application/json; charset=utf-8");
        for host in ["127.0.0.1:8081", "localhost:8081", "LOCALHOST", "[::1]:8081", "10.0.0.7"] {
            assert_eq!(status(false, &[("host", host), json]), None, "{host}");
        }
        let host = ("host", "127.0.0.1:8081");
        assert_eq!(status(false, &[host, json, ("origin", "http://127.0.0.1:8081")]), None);
        for host in ["evil.example:8081", "localhost.evil.example", "127.0.0.1.nip.io"] {
            assert_eq!(status(false, &[("host", host), json]), Some(403), "{host}");
            assert_eq!(status(true, &[("host", host), json]), None, "{host}: the key is the proof");
        }
        assert_eq!(status(false, &[json]), Some(403), "no host");
        for origin in ["http://127.0.0.1:3000", "http://localhost:8081", "https://evil.example", "null"] {
            assert_eq!(status(true, &[host, json, ("origin", origin)]), Some(403), "{origin}");
        }
        assert_eq!(status(true, &[host, json, ("sec-fetch-site", "cross-site")]), Some(403));
        for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonx")] {
            let headers: Vec<_> = [host].into_iter().chain(kind.map(|kind| ("content-type", kind))).collect();
            assert_eq!(status(false, &headers), Some(415), "{kind:?}");
            assert_eq!(status(true, &headers), kind.map(|_| 415), "{kind:?}");
        }
    }
}
