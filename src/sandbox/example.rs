//! The example page: an agent's desktop in one file, which shows a customer and each change of it.
//!
//! It is served here and not by the service, because a page needs credentials of a caller, and only those of the demo are
//! public. It loads nothing from elsewhere.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use url::Url;

use super::SandboxState;

const PAGE: &str = include_str!("example.html");

/// Where the page expects the service if the sandbox posts no events.
const SERVICE: &str = "http://127.0.0.1:8080";

/// The page has its script and its style in itself, and calls the service.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src http: https:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the page for a service that takes the events of the sandbox here.
pub(super) fn page(webhook: Option<&Url>) -> String {
    let service = webhook.map_or_else(|| SERVICE.to_owned(), |url| url.origin().ascii_serialization());
    PAGE.replace("{{service}}", &service)
}

/// Answers `GET /` and `GET /sandbox/example`.
pub(super) async fn show(State(sandbox): State<Arc<SandboxState>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, sandbox.page.clone()).into_response()
}
