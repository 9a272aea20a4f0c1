//! The headers of an answered lookup: `Cache-Status` (RFC 9211), `Age`, `Cache-Control`.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::domain::Timestamp;
use crate::lookup::{AnswerSource, ForwardReason, LookupAnswer, LookupOutcome, StaleReason};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Adds the headers that describe where an answer came from and its age.
pub(in crate::http) fn write_headers(headers: &mut HeaderMap, answer: &LookupAnswer, now: Timestamp) {
    headers.insert(CACHE_STATUS, cache_status(answer));
    headers.insert(header::AGE, HeaderValue::from(now.since(answer.since).as_secs()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
}

/// Returns the value of `Cache-Status` (RFC 9211).
pub(in crate::http) fn cache_status(answer: &LookupAnswer) -> HeaderValue {
    let mut text = String::with_capacity(64);
    text.push_str("profile-edge");
    // Writing to a String cannot fail.
    let _ = match answer.how {
        AnswerSource::Hit { remaining: Some(remaining), .. } => write!(text, "; hit; ttl={}", remaining.as_secs()),
        AnswerSource::Hit { remaining: None, .. } => write!(text, "; hit"),
        // `fwd` also holds for a request that was not sent; the stored answer is returned.
        AnswerSource::Stale { since, .. } => write!(text, "; fwd=stale; ttl=-{}", since.as_secs()),
        AnswerSource::Fetched { over, stored } => {
            write!(text, "; fwd={}{}", fwd(over), if stored { "; stored" } else { "" })
        }
        AnswerSource::Collapsed { over } => write!(text, "; fwd={}; collapsed", fwd(over)),
        AnswerSource::Bypass | AnswerSource::Expanded => write!(text, "; fwd=bypass"),
    };
    if let Some(detail) = detail(answer) {
        let _ = write!(text, "; detail={detail}");
    }
    // Every part is a constant or a number, so it is a valid header value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("profile-edge"))
}

fn detail(answer: &LookupAnswer) -> Option<&'static str> {
    match (&answer.outcome, answer.how) {
        (LookupOutcome::Deleted, _) => Some("tombstone"),
        (_, AnswerSource::Bypass) => Some("store-unavailable"),
        (_, AnswerSource::Expanded) => None,
        (_, AnswerSource::Stale { why: StaleReason::Error, .. }) => Some("stale-if-error"),
        (_, AnswerSource::Stale { why: StaleReason::SoftTimeout, .. }) => Some("soft-timeout"),
        (LookupOutcome::Absent, _) if answer.unsettled => Some("negative-unsettled"),
        (LookupOutcome::Absent, _) => Some("negative"),
        (LookupOutcome::Found(_), _) if answer.unsettled => Some("unsettled"),
        (LookupOutcome::Found(_), _) if answer.unwatched => Some("unwatched"),
        (LookupOutcome::Found(_), AnswerSource::Hit { refreshing: true, .. }) => Some("refreshing"),
        (LookupOutcome::Found(_), _) => None,
    }
}

fn fwd(over: ForwardReason) -> &'static str {
    match over {
        ForwardReason::Miss => "miss",
        ForwardReason::Stale => "stale",
        ForwardReason::Request => "request",
    }
}
