//! Entity tags (RFC 9110 section 8.8.3) of profiles.

use http::{HeaderMap, HeaderValue, header};

/// Creates a strong entity tag from the stored body's validator and the fingerprint of the visible fields.
///
/// Without a fingerprint the whole body is visible.
pub(in crate::http) fn etag(validator: [u8; 16], fingerprint: Option<&str>) -> HeaderValue {
    const DIGITS: usize = 32;
    let mut plain = [b'"'; DIGITS + 2];
    // 16 bytes always fit 32 digits, so the encoding cannot fail.
    let _ = hex::encode_to_slice(validator, &mut plain[1..=DIGITS]);
    let tag = match fingerprint {
        None => HeaderValue::from_bytes(&plain),
        Some(fingerprint) => {
            let mut text = plain[..=DIGITS].to_vec();
            text.push(b'-');
            text.extend_from_slice(fingerprint.as_bytes());
            text.push(b'"');
            HeaderValue::try_from(text)
        }
    };
    // Hex digits, a hyphen and quotes are a valid header value.
    tag.unwrap_or_else(|_| HeaderValue::from_static("\"\""))
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
