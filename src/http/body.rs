//! Reading request bodies: bounded in size and in time.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use http::{HeaderMap, StatusCode, header};
use tokio::time::timeout;

use super::error::Problem;

/// The longest that a body may take to arrive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a body that is JSON if it is anything: an empty body is no body whatever its Content-Type,
/// and one without a Content-Type is JSON.
///
/// # Errors
///
/// 413 when it is larger than `max` bytes, 415 when its Content-Type is not JSON, 408 when it does not
/// arrive within [`READ_TIMEOUT`], 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, Problem> {
    if announced(headers) == Some(0) {
        return Ok(Bytes::new());
    }
    let body = read_any(headers, body, max).await?;
    if !body.is_empty() && !is_json(headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "content-type: expected application/json",
        ));
    }
    Ok(body)
}

/// Reads a body of any type; errors as [`read`], but never 415.
pub async fn read_any(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("the body is larger than {max} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    if announced(headers).is_some_and(|length| length > max as u64) {
        return Err(too_large());
    }
    match timeout(READ_TIMEOUT, to_bytes(body, max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_over_limit(&error) => Err(too_large()),
        Ok(Err(_broken)) => Err(Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body broke off")),
        Err(_elapsed) => {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time"))
        }
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_over_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let essence = essence.to_ascii_lowercase();
    essence.is_empty() || essence == b"application/json" || essence == b"text/json" || essence.ends_with(b"+json")
}
