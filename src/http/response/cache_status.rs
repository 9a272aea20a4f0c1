//! The headers of an answered lookup: `Cache-Status` (RFC 9211), `Age`, `Cache-Control`.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::domain::Timestamp;
use crate::lookup::{Answer, How, Outcome, Over, StaleReason};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Adds the headers that describe where an answer came from and its age.
pub(in crate::http) fn write_headers(headers: &mut HeaderMap, answer: &Answer, now: Timestamp) {
    headers.insert(CACHE_STATUS, cache_status(answer));
    headers.insert(header::AGE, HeaderValue::from(now.since(answer.since).as_secs()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
}

/// Returns the value of `Cache-Status` (RFC 9211).
fn cache_status(answer: &Answer) -> HeaderValue {
    let mut text = String::with_capacity(64);
    text.push_str("profile-edge");
    // Writing to a String cannot fail.
    let _ = match answer.how {
        How::Hit { remaining: Some(remaining), .. } => write!(text, "; hit; ttl={}", remaining.as_secs()),
        How::Hit { remaining: None, .. } => write!(text, "; hit"),
        // `fwd` also holds for a request that was not sent; the stored answer is returned.
        How::Stale { since, .. } => write!(text, "; fwd=stale; ttl=-{}", since.as_secs()),
        How::Fetched { over, stored } => write!(text, "; fwd={}{}", fwd(over), if stored { "; stored" } else { "" }),
        How::Collapsed { over } => write!(text, "; fwd={}; collapsed", fwd(over)),
        How::Bypass | How::Expanded => write!(text, "; fwd=bypass"),
    };
    if let Some(detail) = detail(answer) {
        let _ = write!(text, "; detail={detail}");
    }
    // Every part is a constant or a number, so it is a valid header value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("profile-edge"))
}

fn detail(answer: &Answer) -> Option<&'static str> {
    match (&answer.outcome, answer.how) {
        (Outcome::Deleted, _) => Some("tombstone"),
        (_, How::Bypass) => Some("store-unavailable"),
        (_, How::Expanded) => None,
        (_, How::Stale { why: StaleReason::Error, .. }) => Some("stale-if-error"),
        (_, How::Stale { why: StaleReason::SoftTimeout, .. }) => Some("soft-timeout"),
        (Outcome::Absent, _) if answer.unsettled => Some("negative-unsettled"),
        (Outcome::Absent, _) => Some("negative"),
        (Outcome::Found(_), _) if answer.unsettled => Some("unsettled"),
        (Outcome::Found(_), How::Hit { refreshing: true, .. }) => Some("refreshing"),
        (Outcome::Found(_), _) => None,
    }
}

fn fwd(over: Over) -> &'static str {
    match over {
        Over::Miss => "miss",
        Over::Stale => "stale",
    }
}
