//! The `RateLimit` and `RateLimit-Policy` headers (draft-ietf-httpapi-ratelimit-headers, the form with named policies).
//!
//! They let a caller slow down before its requests are refused.

use http::{HeaderMap, HeaderName, HeaderValue};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The part of a caller's rate limit that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests per second.
    pub quota: u32,
    /// The requests that the caller may send now.
    pub left: u32,
}

impl Allowance {
    /// Adds both headers. The window is one second: after that the whole quota is available again.
    pub fn write_headers(self, headers: &mut HeaderMap) {
        // Digits, letters and quotes are a valid header value.
        let value =
            |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"caller\""));
        headers.insert(RATE_LIMIT, value(format!("\"caller\";r={};t=1", self.left)));
        headers.insert(RATE_LIMIT_POLICY, value(format!("\"caller\";q={};w=1", self.quota)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_name_the_policy_and_what_is_left() {
        let mut headers = HeaderMap::new();
        Allowance { quota: 7, left: 6 }.write_headers(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"caller\";q=7;w=1");
        assert_eq!(headers["ratelimit"], "\"caller\";r=6;t=1");
    }
}
