//! The `Authorization` request header: Basic (RFC 7617) and Bearer (RFC 6750) credentials.
//!
//! Callers, webhook sources and operators all use this parser. It only reads the credentials; each of them checks the
//! credentials in its own way.

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use http::{HeaderMap, header};
use zeroize::Zeroizing;

/// Base64 with optional padding; unused bits of the last character are ignored, because clients differ in both.
pub const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The credentials of an `Authorization` header.
#[derive(Debug)]
pub enum Authorization<'a> {
    /// A user name and a password.
    Basic(UserPass),
    /// A token or key; never empty.
    Bearer(&'a [u8]),
}

/// The user name and password of Basic authentication.
pub struct UserPass {
    joined: Zeroizing<Vec<u8>>,
    colon: usize,
}

/// A request has more than one `Authorization` header, or one with neither Basic nor Bearer credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAuthorization;

impl<'a> Authorization<'a> {
    /// Returns the credentials of a request; `None` if it has no `Authorization` header.
    ///
    /// # Errors
    ///
    /// The header is repeated, or its value is neither Basic nor Bearer.
    pub fn of(headers: &'a HeaderMap) -> Result<Option<Self>, InvalidAuthorization> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value.as_bytes()).map(Some).ok_or(InvalidAuthorization),
            (Some(_), Some(_)) => Err(InvalidAuthorization),
        }
    }

    /// Parses the value of the header; the scheme is case-insensitive (RFC 9110 section 11.1).
    #[must_use]
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let space = value.iter().position(|b| *b == b' ')?;
        let (scheme, credentials) = (&value[..space], value[space..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"bearer") {
            (!credentials.is_empty()).then_some(Self::Bearer(credentials))
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            UserPass::decode(credentials).map(Self::Basic)
        } else {
            None
        }
    }
}

impl UserPass {
    fn decode(credentials: &[u8]) -> Option<Self> {
        let joined = Zeroizing::new(LENIENT_BASE64.decode(credentials).ok()?);
        // A user name has no colon (RFC 7617 section 2); a password may have some.
        let colon = joined.iter().position(|b| *b == b':')?;
        Some(Self { joined, colon })
    }

    /// Returns the user name.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.joined[..self.colon]
    }

    /// Returns the password.
    #[must_use]
    pub fn password(&self) -> &[u8] {
        &self.joined[self.colon + 1..]
    }

    /// Returns `user:password`.
    #[must_use]
    pub fn joined(&self) -> &[u8] {
        &self.joined
    }
}

impl std::fmt::Debug for UserPass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn basic_and_bearer_credentials_are_parsed_in_any_case() {
        for value in ["Basic dTpwOnE=", "basic dTpwOnE", "BASIC  dTpwOnE= "] {
            let Some(Authorization::Basic(pair)) = Authorization::parse(value.as_bytes()) else { panic!("{value}") };
            assert_eq!((pair.user(), pair.password(), pair.joined()), (&b"u"[..], &b"p:q"[..], &b"u:p:q"[..]));
        }
        for value in ["Bearer key", "bEARER  key "] {
            assert!(matches!(Authorization::parse(value.as_bytes()), Some(Authorization::Bearer(b"key"))), "{value}");
        }
        for value in ["", "Bearer", "Bearer ", "Basic", "Basic ", "Basic dQ==", "Basic ?", "Digest key", "Bearerkey"] {
            assert!(Authorization::parse(value.as_bytes()).is_none(), "{value}");
        }
    }

    #[test]
    fn a_repeated_authorization_header_is_invalid() {
        let mut headers = HeaderMap::new();
        assert!(matches!(Authorization::of(&headers), Ok(None)));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer key"));
        assert!(matches!(Authorization::of(&headers), Ok(Some(Authorization::Bearer(b"key")))));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer key"));
        assert_eq!(Authorization::of(&headers).unwrap_err(), InvalidAuthorization);
    }
}
