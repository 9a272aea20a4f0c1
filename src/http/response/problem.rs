//! Failed requests: one type, and one table of HTTP statuses.
//!
//! On `/api/v1` and on the webhooks a failure is an RFC 9457 problem with a stable `code`. [`Dialect`] renders the same
//! failure for `/api/v2`. No text repeats data of the request, except the name of a field.
//!
//! [`Dialect`]: crate::http::response::dialect::Dialect

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::lookup::LookupError;
use crate::upstream;

use crate::http::response::rate_limit_headers::Allowance;

/// The body of an RFC 9457 problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProblemBody {
    /// Always `about:blank`: programs use `code`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The standard text of the status.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// A stable name of the failure.
    pub code: &'static str,
    /// The failure and what was expected, in one sentence.
    pub detail: String,
    /// The invalid field, if the failure is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) status: StatusCode,
    code: &'static str,
    pub(super) detail: String,
    field: Option<String>,
    pub(super) retry_after: Option<Duration>,
    pub(super) allowance: Option<Allowance>,
    /// Genesys answered 429, and `retry_after` is its value.
    pub(super) throttled: bool,
    /// The request has no credential.
    pub(super) anonymous: bool,
}

impl Problem {
    /// Creates a problem; `detail` must not contain data of the request.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let (field, retry_after, allowance) = (None, None, None);
        Self { status, code, detail: detail.into(), field, retry_after, allowance, throttled: false, anonymous: false }
    }

    /// Returns the answer to a failed lookup: the table of statuses.
    #[must_use]
    pub fn of_failure(failure: &LookupError) -> Self {
        use upstream::Error;
        let (status, code) = match failure {
            LookupError::Upstream(Error::Unusable { .. }) | LookupError::MergeLoop => {
                (StatusCode::BAD_GATEWAY, "upstream_unusable")
            }
            LookupError::Upstream(Error::Denied { .. }) => (StatusCode::BAD_GATEWAY, "upstream_denied"),
            LookupError::Upstream(Error::Privileges { .. }) => (StatusCode::BAD_GATEWAY, "privileges"),
            LookupError::Upstream(Error::Throttled { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_throttled"),
            LookupError::Upstream(Error::BudgetSpent { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "budget_spent"),
            LookupError::Upstream(Error::BreakerOpen { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "breaker_open"),
            LookupError::Upstream(Error::Failed { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_failed"),
            LookupError::Upstream(Error::Unreachable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unreachable"),
            LookupError::Upstream(Error::Timeout(_)) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_timeout"),
            LookupError::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
            LookupError::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "shed"),
            LookupError::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        };
        let mut problem = Self::new(status, code, failure.to_string());
        problem.throttled = matches!(failure, LookupError::Upstream(Error::Throttled { .. }));
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(failure.retry_after()) } else { problem }
    }

    /// Returns the answer to a request without a valid credential. Only Genesys' form of it shows whether it has one at all.
    #[must_use]
    pub fn unauthorized(detail: &str, has_credential: bool) -> Self {
        Self { anonymous: !has_credential, ..Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail) }
    }

    /// Returns the answer to a malformed request: 400, with the field and what was expected.
    #[must_use]
    pub fn bad_field(field: impl Into<String>, expected: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{field}: {expected}")).field(field)
    }

    /// Returns the answer to an unknown path.
    #[must_use]
    pub fn no_such_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_such_route", "there is no such route")
    }

    /// Returns the answer to a method that the path does not support.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route does not support this method")
    }

    /// Returns the answer to a request that the audit cannot record in strict mode.
    #[must_use]
    pub fn unrecorded() -> Self {
        let detail = "the audit cannot record the request now, and only recorded requests are answered";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", detail);
        problem.retry_after(Duration::from_secs(1))
    }

    /// Sets the invalid field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Sets `Retry-After`, rounded up to whole seconds, at least one (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Sets what is left of the caller's rate limit.
    #[must_use]
    pub fn allowance(mut self, left: Allowance) -> Self {
        self.allowance = Some(left);
        self
    }

    /// Returns the status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the value of `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }

    /// Returns the stable name of the failure.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the invalid field, if the failure is about one.
    #[must_use]
    pub fn invalid_field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// Returns the sentence that explains the failure.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            field: self.field,
        };
        let mut response = (self.status, Json(body)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        write_headers(&mut response, self.retry_after, self.allowance);
        response
    }
}

/// Adds the headers that failures have in every dialect.
pub(super) fn write_headers(response: &mut Response, retry_after: Option<Duration>, allowance: Option<Allowance>) {
    let challenged = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    if challenged {
        // RFC 9110 section 15.5.2 requires a challenge.
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"profile-edge\""));
    }
    if let Some(after) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
    }
    if let Some(allowance) = allowance {
        allowance.write_headers(headers);
    }
}

/// Rounds up to whole seconds, at least one.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}
