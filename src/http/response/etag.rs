//! Entity tags (RFC 9110 section 8.8.3) of profiles.

use http::{HeaderMap, HeaderValue, header};

/// Creates a strong entity tag from the validator of the bytes that are sent, and of nothing else: a tag of more than them
/// would reveal fields that the caller may not see.
pub(in crate::http) fn etag(validator: [u8; 16]) -> HeaderValue {
    const DIGITS: usize = 32;
    let mut tag = [b'"'; DIGITS + 2];
    // 16 bytes always fit 32 digits, so the encoding cannot fail.
    let _ = hex::encode_to_slice(validator, &mut tag[1..=DIGITS]);
    // Hex digits and quotes are a valid header value.
    HeaderValue::from_bytes(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Returns whether `If-None-Match` matches a tag (RFC 9110 section 13.1.2, weak comparison).
pub(in crate::http) fn if_none_match(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let etag = etag.as_bytes();
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|candidate| candidate == b"*" || candidate.strip_prefix(b"W/").unwrap_or(candidate) == etag)
    })
}
