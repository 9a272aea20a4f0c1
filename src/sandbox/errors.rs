//! Error answers: the `ErrorBody` of Genesys.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use uuid::Uuid;

/// The header with the request id of Genesys; the `contextId` of an error is the same.
pub(super) const CORRELATION_ID: HeaderName = HeaderName::from_static("inin-correlation-id");

/// An error answer. It repeats no data of the request, except an unknown behaviour key.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    retry_after: Option<u64>,
}

impl ApiError {
    const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message: Cow::Borrowed(message), retry_after: None }
    }

    /// 404: no such contact, or no such route.
    pub(super) const fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not.found", "The requested resource was not found.")
    }

    /// 405.
    pub(super) const fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method.not.allowed", "This resource does not support this method.")
    }

    /// 400, with the expectation.
    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..Self::new(StatusCode::BAD_REQUEST, "bad.request", "") }
    }

    /// 413.
    pub(super) const fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request.entity.too.large",
            "A contact or request body must not exceed 512000 bytes.",
        )
    }

    /// 401: no token.
    pub(super) const fn authentication_required() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication.required",
            "No authentication bearer token specified in authorization header.",
        )
    }

    /// 401: the token is unknown, expired or revoked.
    pub(super) const fn bad_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "bad.credentials", "Invalid login credentials.")
    }

    /// 403, with the missing permission.
    pub(super) fn missing_permissions(permission: &'static str) -> Self {
        Self {
            message: format!(
                "Unable to perform the requested action. You are missing the following permission(s): {permission}"
            )
            .into(),
            ..Self::new(StatusCode::FORBIDDEN, "missing.permissions", "")
        }
    }

    /// 429 in the current form of Genesys: a `Retry-After` and no rate-limit headers.
    pub(super) fn too_many_requests(retry_after: u64) -> Self {
        Self {
            message: format!("Rate limit exceeded the maximum. Retry the request in [{retry_after}] seconds").into(),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too.many.requests.retry.after", "")
        }
    }

    /// 503: the sandbox cannot accept a change now.
    pub(super) const fn unavailable(message: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "service.unavailable", message)
    }

    /// A failure that the behaviour asks for.
    pub(super) fn injected(status: StatusCode, retry_after: Option<u64>) -> Self {
        let code = match status.as_u16() {
            429 => return Self::too_many_requests(retry_after.unwrap_or(1)),
            400 => "bad.request",
            401 => "bad.credentials",
            403 => "not.authorized",
            404 => "not.found",
            408 => "client.timeout",
            503 => "service.unavailable",
            504 => "request.timeout",
            _ => "internal.server.error",
        };
        Self { retry_after, ..Self::new(status, code, "The sandbox was configured to fail.") }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let correlation = Uuid::new_v4().to_string();
        let body = json!({
            "message": self.message, "code": self.code, "status": self.status.as_u16(),
            "messageParams": {}, "contextId": correlation, "details": [], "errors": [],
        });
        let mut response = (self.status, [(CORRELATION_ID, correlation)], Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
