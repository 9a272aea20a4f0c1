//! Request bodies, limited in size, time, and memory: a body takes memory as its bytes arrive, from a budget.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::http::request::budget::{ByteBudget, ReservedBytes};
use crate::http::response::problem::Problem;

/// The maximum time for a body to arrive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of bytes that are read from a refused body.
const DRAIN_MAX: usize = 16 << 20;

/// The maximum time for reading the rest of a refused body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A complete body; its memory belongs to a budget until this is dropped.
#[derive(Debug)]
pub struct ReadBody {
    /// The bytes.
    pub bytes: Bytes,
    _reserved: ReservedBytes,
}

impl ReadBody {
    /// Refuses a body that is compressed or not JSON, by its headers. An empty one may have any.
    ///
    /// # Errors
    ///
    /// 415.
    pub fn check_form(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.bytes.is_empty() { Ok(()) } else { check_form(headers) }
    }
}

/// Reads a JSON body. An empty body is accepted with any `Content-Type`, and a body without a `Content-Type` is taken as
/// JSON.
///
/// # Errors
///
/// 413 when the body is larger than `max` bytes, 415 when its `Content-Type` is not JSON or it is compressed, 408 when it does not arrive
/// within [`READ_TIMEOUT`], 400 when it is incomplete, 503 when the budget has too few bytes.
pub async fn read(headers: &HeaderMap, body: Body, max: usize, budget: &ByteBudget) -> Result<ReadBody, Problem> {
    if body.is_end_stream() {
        return Ok(ReadBody { bytes: Bytes::new(), _reserved: budget.reserve() });
    }
    let body = read_any(headers, body, max, budget).await?;
    body.check_form(headers)?;
    Ok(body)
}

/// Discards the body of a request that is refused whatever the body is.
///
/// # Errors
///
/// As [`read`]: 413 and 415.
pub async fn discard(headers: &HeaderMap, body: Body, max: usize) -> Result<(), Problem> {
    let seen = drain(body).await;
    if seen > max || content_length(headers).is_some_and(|length| length > max as u64) {
        return Err(too_large(max));
    }
    if seen == 0 { Ok(()) } else { check_form(headers) }
}

/// Reads a body of any type.
///
/// # Errors
///
/// As [`read`], except 415.
pub async fn read_any(
    headers: &HeaderMap,
    mut body: Body,
    max: usize,
    budget: &ByteBudget,
) -> Result<ReadBody, Problem> {
    if content_length(headers).is_some_and(|length| length > max as u64) {
        drain(body).await;
        return Err(too_large(max));
    }
    let collected = timeout(READ_TIMEOUT, collect(&mut body, max, budget)).await.unwrap_or_else(|_elapsed| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time"))
    });
    let is_refused =
        |problem: &Problem| matches!(problem.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::SERVICE_UNAVAILABLE);
    if collected.as_ref().is_err_and(is_refused) {
        drain(body).await;
    }
    collected
}

/// Copies the frames of a body into one buffer: a frame keeps the read buffer of its connection alive, whatever its size.
async fn collect(body: &mut Body, max: usize, budget: &ByteBudget) -> Result<ReadBody, Problem> {
    let (mut bytes, mut reserved) = (Vec::new(), budget.reserve());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let detail = "the connection closed before the body was complete";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", detail));
        };
        let Some(data) = frame.data_ref() else { continue };
        let needed = bytes.len() + data.len();
        if needed > max {
            return Err(too_large(max));
        }
        if needed > bytes.capacity() {
            let capacity = (2 * bytes.capacity()).clamp(needed, max);
            if !reserved.add(capacity - bytes.capacity()) {
                let detail = "too many bytes of requests in progress";
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shed", detail);
                return Err(problem.retry_after(Duration::from_secs(1)));
            }
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(data);
    }
    Ok(ReadBody { bytes: bytes.into(), _reserved: reserved })
}

/// Reads and discards the rest of a refused body, within limits: a client that is still writing when the connection closes
/// would get a broken pipe instead of the answer (RFC 9112 section 9.6). Returns how many bytes it read.
pub async fn drain(mut body: Body) -> usize {
    let mut seen = 0;
    let reading = async {
        while seen < DRAIN_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            seen += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // The answer does not depend on whether this is all.
    let _ = timeout(DRAIN_TIMEOUT, reading).await;
    seen
}

fn too_large(max: usize) -> Problem {
    let detail = format!("the body is larger than {max} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// Refuses a body that is compressed or not JSON.
fn check_form(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported = |detail| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
    if !is_json(headers) {
        return Err(unsupported("content-type: expected application/json"));
    }
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
        return Err(unsupported("content-encoding: expected none"));
    }
    Ok(())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Returns the media type of `Content-Type` in lower case, without parameters; empty if there is no such header.
pub fn media_type(headers: &HeaderMap) -> Vec<u8> {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase()
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = media_type(headers);
    media_type.is_empty()
        || media_type == b"application/json"
        || media_type == b"text/json"
        || media_type.ends_with(b"+json")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_times_out() {
        let started = tokio::time::Instant::now();
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = read(&HeaderMap::new(), never, 100, &ByteBudget::of(100)).await.unwrap_err();
        assert_eq!(
            (problem.status(), started.elapsed().as_secs()),
            (StatusCode::REQUEST_TIMEOUT, READ_TIMEOUT.as_secs())
        );
    }
}
