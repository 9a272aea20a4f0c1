//! What a failed request is told: one type, one table, two dialects.
//!
//! On `/api/v1` and on the webhooks a failure is an RFC 9457 problem with a stable `code`; below `/api/v2` it is
//! Genesys' `ErrorBody`, so that an SDK finds there what it finds at Genesys. Its texts are ours or Genesys':
//! nothing of the request is repeated in them but the name of a field.
//!
//! Genesys' SDKs repeat a request up to ten times when a 413, 429 or 503 has a `Retry-After`. So below
//! `/api/v2` only a 429 that Genesys itself has sent carries one: its own rate is the one thing that waiting
//! helps against, and an outage must not be answered by eleven requests in place of one.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::lookup::Failure;
use crate::upstream;

use crate::http::auth::rate_limit::Allowance;

/// Names a request to Genesys, and one of ours where its sender says so.
pub(in crate::http) const CORRELATION_ID: HeaderName = HeaderName::from_static("inin-correlation-id");

/// An RFC 9457 problem, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProblemBody {
    /// Always `about:blank`: the `code` is what programs go by.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status' own words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// A stable name of what went wrong.
    pub code: &'static str,
    /// What went wrong and what was expected, in a sentence.
    pub detail: String,
    /// The field that is at fault, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// Genesys' `ErrorBody`, as far as its SDKs look at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// What went wrong, in a sentence.
    pub message: String,
    /// A stable name of what went wrong.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Always empty.
    pub message_params: Empty,
    /// The answer's `ININ-Correlation-Id`.
    pub context_id: String,
    /// Always empty.
    pub details: Vec<Empty>,
    /// Always empty.
    pub errors: Vec<Empty>,
}

/// An empty object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Empty {}

/// How failures are told.
#[derive(Clone, Debug)]
pub enum Dialect {
    /// As an RFC 9457 problem.
    Problem,
    /// As Genesys tells them, with this `contextId`.
    Genesys(HeaderValue),
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    allowance: Option<Allowance>,
    /// Genesys limits the rate, and `retry_after` is what it said.
    throttled: bool,
}

impl Problem {
    /// Makes a problem; `detail` must hold nothing of the request's data.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), field: None, retry_after: None, allowance: None, throttled: false }
    }

    /// Says what the caller of a failed lookup is told: the table of statuses.
    #[must_use]
    pub fn of_failure(failure: &Failure) -> Self {
        use upstream::Error;
        let (status, code) = match failure {
            Failure::Upstream(Error::Unusable { .. }) | Failure::MergeLoop => {
                (StatusCode::BAD_GATEWAY, "upstream_unusable")
            }
            Failure::Upstream(Error::Denied { .. }) => (StatusCode::BAD_GATEWAY, "upstream_denied"),
            Failure::Upstream(Error::Privileges { .. }) => (StatusCode::BAD_GATEWAY, "privileges"),
            Failure::Upstream(Error::Throttled { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_throttled"),
            Failure::Upstream(Error::BudgetSpent { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "budget_spent"),
            Failure::Upstream(Error::BreakerOpen { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "breaker_open"),
            Failure::Upstream(Error::Failed { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_failed"),
            Failure::Upstream(Error::Unreachable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unreachable"),
            Failure::Upstream(Error::Timeout(_)) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_timeout"),
            Failure::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
            Failure::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        };
        let mut problem = Self::new(status, code, failure.to_string());
        problem.throttled = matches!(failure, Failure::Upstream(Error::Throttled { .. }));
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(failure.retry_after()) } else { problem }
    }

    /// Makes the answer to a malformed request: 400, naming the field and what was expected of it.
    #[must_use]
    pub fn bad_field(field: impl Into<String>, expected: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{field}: {expected}")).field(field)
    }

    /// Makes the answer to a path that leads nowhere.
    #[must_use]
    pub fn no_such_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_such_route", "there is no such route")
    }

    /// Makes the answer to a method that a path does not take.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods")
    }

    /// Makes the answer to a lookup that cannot be recorded while everything must be.
    #[must_use]
    pub fn unrecorded() -> Self {
        let detail = "the lookup cannot be recorded now, and what is not recorded is not answered";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", detail);
        problem.retry_after(Duration::from_secs(1))
    }

    /// Names the field that is at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Adds a `Retry-After`, in whole seconds, at least one (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds what the caller has left of its rate.
    #[must_use]
    pub fn allowance(mut self, left: Allowance) -> Self {
        self.allowance = Some(left);
        self
    }

    /// Tells it in a dialect.
    #[must_use]
    pub fn told_in(self, dialect: &Dialect) -> Response {
        match dialect {
            Dialect::Problem => self.into_response(),
            Dialect::Genesys(context) => self.told_by_genesys(context),
        }
    }

    /// Tells it as Genesys would: the other column of the table.
    fn told_by_genesys(self, context: &HeaderValue) -> Response {
        let (status, code, message) = match self.status {
            _ if self.throttled => {
                let seconds = whole_seconds(self.retry_after.unwrap_or_default());
                let message = format!("Rate limit exceeded the maximum. Retry the request in [{seconds}] seconds");
                (StatusCode::TOO_MANY_REQUESTS, "too.many.requests.retry.after", message)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                (StatusCode::NOT_FOUND, "not.found", "The requested resource was not found.".to_owned())
            }
            StatusCode::UNAUTHORIZED => (self.status, "bad.credentials", "Invalid login credentials.".to_owned()),
            status => (status, genesys_code(status), self.detail),
        };
        let body = ErrorBody {
            message,
            code,
            status: status.as_u16(),
            message_params: Empty {},
            context_id: context.to_str().unwrap_or_default().to_owned(),
            details: Vec::new(),
            errors: Vec::new(),
        };
        let mut response = (status, Json(body)).into_response();
        let retry_after = self.retry_after.filter(|_| self.throttled);
        label(&mut response, retry_after, self.allowance);
        response
    }

    /// Returns the status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the stable name of what went wrong.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the sentence that explains it.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl Dialect {
    /// Returns the dialect of a request's path.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        if Self::is_genesys(request.uri().path()) { Self::of_headers(request.headers()) } else { Self::Problem }
    }

    /// Tells whether a path is one of Genesys' own.
    #[must_use]
    pub fn is_genesys(path: &str) -> bool {
        path.starts_with("/api/v2/")
    }

    /// Returns Genesys' dialect for a request with these headers, which hold its correlation id.
    #[must_use]
    pub fn of_headers(headers: &HeaderMap) -> Self {
        Self::Genesys(headers.get(CORRELATION_ID).cloned().unwrap_or_else(|| HeaderValue::from_static("")))
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
        label(&mut response, self.retry_after, self.allowance);
        response
    }
}

/// Adds the headers that failures have in every dialect.
fn label(response: &mut Response, retry_after: Option<Duration>, allowance: Option<Allowance>) {
    let challenged = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if challenged {
        // RFC 9110 section 15.5.2 asks for a challenge.
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"profile-edge\""));
    }
    if let Some(after) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
    }
    if let Some(allowance) = allowance {
        allowance.show(headers);
    }
}

/// Rounds up, to a second at least.
fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

/// Returns Genesys' code for a status; where the known lists have none, one in their manner.
fn genesys_code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "bad.request",
        StatusCode::FORBIDDEN => "not.authorized",
        StatusCode::METHOD_NOT_ALLOWED => "method.not.allowed",
        StatusCode::REQUEST_TIMEOUT => "client.timeout",
        StatusCode::PAYLOAD_TOO_LARGE => "request.entity.too.large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported.media.type",
        StatusCode::TOO_MANY_REQUESTS => "too.many.requests",
        StatusCode::BAD_GATEWAY => "bad.gateway",
        StatusCode::SERVICE_UNAVAILABLE => "service.unavailable",
        _ => "internal.server.error",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn told(failure: Failure, dialect: &Dialect) -> (u16, Option<String>, Value) {
        let response = Problem::of_failure(&failure).told_in(dialect);
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, retry_after, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn only_genesys_own_429_asks_an_sdk_to_come_again() {
        use upstream::Error;
        let genesys = Dialect::Genesys(HeaderValue::from_static("c-1"));
        let wait = Duration::from_millis(41_500);
        let rows = [
            (Error::Throttled { retry_after: wait }.into(), 503, 429, Some("42")),
            (Error::BudgetSpent { retry_after: wait }.into(), 503, 503, None),
            (Error::BreakerOpen { retry_after: wait }.into(), 503, 503, None),
            (Error::Failed { status: 500 }.into(), 503, 503, None),
            (Error::Unreachable(None).into(), 503, 503, None),
            (Error::Timeout(None).into(), 503, 503, None),
            (Failure::Deadline, 503, 503, None),
            (Failure::Draining, 503, 503, None),
            (Error::Unusable { reason: "x" }.into(), 502, 502, None),
            (Error::Denied { status: 403 }.into(), 502, 502, None),
            (Failure::MergeLoop, 502, 502, None),
        ];
        for (failure, problem_status, genesys_status, genesys_retry) in rows {
            let (status, retry_after, body) = told(failure.clone(), &Dialect::Problem).await;
            assert_eq!((status, &body["status"]), (problem_status, &Value::from(problem_status)), "{failure}");
            assert_eq!(retry_after.is_some(), status == 503, "{failure}");
            let (status, retry_after, body) = told(failure.clone(), &genesys).await;
            assert_eq!((status, retry_after.as_deref()), (genesys_status, genesys_retry), "{failure}");
            assert_eq!((&body["contextId"], &body["status"]), (&Value::from("c-1"), &Value::from(status)), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_throttled_lookup_is_told_in_genesys_own_form() {
        let failure = upstream::Error::Throttled { retry_after: Duration::from_secs(42) }.into();
        let (_, _, body) = told(failure, &Dialect::Genesys(HeaderValue::from_static("c"))).await;
        let expected = json!({
            "message": "Rate limit exceeded the maximum. Retry the request in [42] seconds",
            "code": "too.many.requests.retry.after", "status": 429,
            "messageParams": {}, "contextId": "c", "details": [], "errors": [],
        });
        assert_eq!(body, expected);
    }
}
