//! What a request of an agent says before its body is read: the tenant, and whether its credential may be a token.

use http::{HeaderMap, HeaderName};

use crate::domain::TenantId;

/// The longest token, in bytes.
const MAX_TOKEN: usize = 4096;

/// Returns the tenant that a request names, outside its body: `Some(None)` if the name is malformed or given twice.
pub(super) fn named_tenant(headers: &HeaderMap, query: Option<&str>) -> Option<Option<TenantId>> {
    const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
    let mut of_header = headers.get_all(TENANT_ID).iter();
    match (of_header.next(), of_header.next()) {
        (Some(name), None) => Some(name.to_str().ok().and_then(|name| name.parse().ok())),
        (Some(_), Some(_)) => Some(None),
        (None, _) => {
            let named = url::form_urlencoded::parse(query?.as_bytes()).find(|(name, _)| name == "tenantId");
            named.map(|(_, id)| id.parse().ok())
        }
    }
}

/// Returns whether a credential may be a bearer token of Genesys (RFC 6750 section 2.1).
pub(super) fn is_token(credential: &[u8]) -> bool {
    let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
    credential.len() <= MAX_TOKEN && credential.iter().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_request_names_its_tenant_in_a_header_or_the_query() {
        let id = |id: &str| Some(Some(id.parse().unwrap()));
        let mut headers = HeaderMap::new();
        assert_eq!(named_tenant(&headers, None), None);
        assert_eq!(named_tenant(&headers, Some("customerId=1")), None);
        assert_eq!(named_tenant(&headers, Some("customerId=1&tenantId=a%2Db")), id("a-b"));
        assert_eq!(named_tenant(&headers, Some("tenantId=a/b")), Some(None));
        headers.append("x-tenant-id", HeaderValue::from_static("one"));
        assert_eq!(named_tenant(&headers, Some("tenantId=two")), id("one"));
        headers.append("x-tenant-id", HeaderValue::from_static("one"));
        assert_eq!(named_tenant(&headers, None), Some(None));
    }

    #[test]
    fn only_short_texts_of_the_grammar_may_be_tokens() {
        assert!(is_token(b"abc-._~+/=") && is_token(&[b'a'; MAX_TOKEN]));
        for bad in [&b"a b"[..], b"a\x00", "\u{e9}".as_bytes(), &[b'a'; MAX_TOKEN + 1]] {
            assert!(!is_token(bad));
        }
    }
}
