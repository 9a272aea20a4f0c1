//! The two forms of a failure: an RFC 9457 problem, and Genesys' `ErrorBody` below `/api/v2`.
//!
//! Below `/api/v2` an SDK gets the same errors as from Genesys. The texts are ours or Genesys'.
//!
//! Genesys' SDKs repeat a request up to ten times when a 413, 429 or 503 has a `Retry-After`. So below `/api/v2` only a
//! 429 of Genesys itself has one: waiting helps only against Genesys' own rate limit, and an outage must not multiply
//! every request by eleven.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::response::headers::CORRELATION_ID;
use crate::http::response::problem::{Problem, whole_seconds, write_headers};

/// Genesys' `ErrorBody`: the fields that its SDKs read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// The failure, in one sentence.
    pub message: String,
    /// A stable name of the failure.
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

/// The form of failures.
#[derive(Clone, Debug)]
pub enum Dialect {
    /// An RFC 9457 problem.
    Problem,
    /// Genesys' `ErrorBody`, with this `contextId`.
    Genesys(HeaderValue),
}

impl Dialect {
    /// Returns the dialect for a request's path.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        if Self::is_genesys(request.uri().path()) { Self::of_headers(request.headers()) } else { Self::Problem }
    }

    /// Returns whether Genesys has this path too.
    #[must_use]
    pub fn is_genesys(path: &str) -> bool {
        path.starts_with("/api/v2/")
    }

    /// Returns Genesys' dialect for a request with these headers; they contain its correlation id.
    #[must_use]
    pub fn of_headers(headers: &HeaderMap) -> Self {
        Self::Genesys(headers.get(CORRELATION_ID).cloned().unwrap_or_else(|| HeaderValue::from_static("")))
    }

    /// Returns the body that Genesys sends for a failure.
    #[must_use]
    pub fn error_body(&self, problem: Problem) -> ErrorBody {
        match self {
            Self::Problem => genesys_body(problem, &HeaderValue::from_static("")),
            Self::Genesys(context) => genesys_body(problem, context),
        }
    }

    /// Returns the response for a failure.
    #[must_use]
    pub fn render(&self, problem: Problem) -> Response {
        match self {
            Self::Problem => problem.into_response(),
            Self::Genesys(context) => genesys_response(problem, context),
        }
    }
}

fn genesys_response(problem: Problem, context: &HeaderValue) -> Response {
    let (retry_after, allowance) = (problem.retry_after.filter(|_| problem.throttled), problem.allowance);
    let body = genesys_body(problem, context);
    let status = StatusCode::from_u16(body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(body)).into_response();
    write_headers(&mut response, retry_after, allowance);
    response
}

fn genesys_body(problem: Problem, context: &HeaderValue) -> ErrorBody {
    let (status, code, message) = match problem.status {
        _ if problem.throttled => {
            let seconds = whole_seconds(problem.retry_after.unwrap_or_default());
            let message = format!("Rate limit exceeded the maximum. Retry the request in [{seconds}] seconds");
            (StatusCode::TOO_MANY_REQUESTS, "too.many.requests.retry.after", message)
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            (StatusCode::NOT_FOUND, "not.found", "The requested resource was not found.".to_owned())
        }
        StatusCode::UNAUTHORIZED if problem.anonymous => {
            let message = "No authentication bearer token specified in authorization header.";
            (problem.status, "authentication.required", message.to_owned())
        }
        StatusCode::UNAUTHORIZED => (problem.status, "bad.credentials", "Invalid login credentials.".to_owned()),
        status => (status, genesys_code(status), problem.detail),
    };
    ErrorBody {
        message,
        code,
        status: status.as_u16(),
        message_params: Empty {},
        context_id: context.to_str().unwrap_or_default().to_owned(),
        details: Vec::new(),
        errors: Vec::new(),
    }
}

/// Returns Genesys' code for a status; where Genesys documents none, one in the same style.
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
    use std::time::Duration;

    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use crate::lookup::LookupError;
    use crate::upstream;

    use super::*;

    async fn rendered(failure: LookupError, dialect: &Dialect) -> (u16, Option<String>, Value) {
        let response = dialect.render(Problem::of_failure(&failure));
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, retry_after, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn only_a_429_of_genesys_has_a_retry_after_for_sdks() {
        use upstream::Error;
        let genesys = Dialect::Genesys(HeaderValue::from_static("c-1"));
        let wait = Duration::from_millis(41_500);
        let rows = [
            (Error::Throttled { retry_after: wait }.into(), 503, 429, Some("42")),
            (Error::BudgetSpent { retry_after: wait }.into(), 503, 503, None),
            (Error::BreakerOpen { retry_after: wait }.into(), 503, 503, None),
            (Error::Failed { status: 500, retry_after: None }.into(), 503, 503, None),
            (Error::Unreachable(None).into(), 503, 503, None),
            (Error::Timeout(None).into(), 503, 503, None),
            (LookupError::Deadline, 503, 503, None),
            (LookupError::Overloaded, 503, 503, None),
            (LookupError::Draining, 503, 503, None),
            (Error::Unusable { reason: "x" }.into(), 502, 502, None),
            (Error::Denied { status: 403 }.into(), 502, 502, None),
            (LookupError::MergeLoop, 502, 502, None),
        ];
        for (failure, problem_status, genesys_status, genesys_retry) in rows {
            let (status, retry_after, body) = rendered(failure.clone(), &Dialect::Problem).await;
            assert_eq!((status, &body["status"]), (problem_status, &Value::from(problem_status)), "{failure}");
            assert_eq!(retry_after.is_some(), status == 503, "{failure}");
            let (status, retry_after, body) = rendered(failure.clone(), &genesys).await;
            assert_eq!((status, retry_after.as_deref()), (genesys_status, genesys_retry), "{failure}");
            assert_eq!((&body["contextId"], &body["status"]), (&Value::from("c-1"), &Value::from(status)), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_throttled_lookup_is_answered_as_genesys_does() {
        let failure = upstream::Error::Throttled { retry_after: Duration::from_secs(42) }.into();
        let (_, _, body) = rendered(failure, &Dialect::Genesys(HeaderValue::from_static("c"))).await;
        let expected = json!({
            "message": "Rate limit exceeded the maximum. Retry the request in [42] seconds",
            "code": "too.many.requests.retry.after", "status": 429,
            "messageParams": {}, "contextId": "c", "details": [], "errors": [],
        });
        assert_eq!(body, expected);
    }
}
