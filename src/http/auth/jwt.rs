//! Tokens: a caller exchanges its name and key for one, and presents it instead of them.
//!
//! A token is a JSON Web Token (RFC 7519) signed with HMAC-SHA-256 (RFC 7518 section 3.2). It contains the caller's name,
//! its expiry, its scope if it has one, and a name of the caller's key: when the key is changed or removed, its tokens become
//! invalid, without a revocation list.
//!
//! Only this service writes and reads the tokens, so nothing is negotiated: the first part must be, byte for byte, the one
//! header that we write. A token with `alg` none or any other algorithm is invalid; no code reads its header. The signature
//! is verified before anything is parsed. The common JWT crates include RSA and elliptic curves (and an open advisory
//! about one of them); this needs one HMAC, from crates that are used here anyway.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::SharedClock;
use crate::domain::Secret;

use crate::http::auth::callers::KeyDigest;

/// The header of every token and the dot after it: `{"alg":"HS256","typ":"JWT"}` in base64url.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";

/// The minimum size of the signing key, in bytes: the size of the hash (RFC 7518 section 3.2).
const MIN_KEY: usize = 32;

/// Signs and verifies tokens.
#[derive(Debug)]
pub struct TokenSigner {
    key: Hmac<Sha256>,
    lifetime: Duration,
    clock: SharedClock,
}

/// The configured secret is not a usable signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be base64 of 32 bytes or more")]
pub struct InvalidTokenSecret;

/// The claims of a token.
#[derive(Debug, Serialize, Deserialize)]
struct Claims<'a> {
    /// The caller's name.
    sub: &'a str,
    /// When it was issued, in seconds since the Unix epoch.
    iat: i64,
    /// When it expires, in seconds since the Unix epoch.
    exp: i64,
    /// The name of the caller's key; only the signing key can compute it.
    key: &'a str,
    /// What it may do of all that its caller may (RFC 8693 section 4.2); absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
}

/// A token with a valid signature that has not expired.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The name of its caller.
    pub caller: String,
    /// What it may do of all that its caller may.
    pub scope: Option<String>,
    /// The time until it expires.
    pub expires_in: Duration,
    /// The name of the key that it was issued for.
    key: String,
}

impl TokenSigner {
    /// Creates a signer; without a secret it uses a random key of this process.
    ///
    /// # Errors
    ///
    /// The secret is not base64 of 32 bytes or more.
    pub fn new(secret: Option<&Secret>, lifetime: Duration, clock: SharedClock) -> Result<Self, InvalidTokenSecret> {
        let material = match secret {
            Some(secret) => STANDARD.decode(secret.expose()).map_err(|_| InvalidTokenSecret)?,
            None => rand::random::<[u8; MIN_KEY]>().to_vec(),
        };
        let material = Zeroizing::new(material);
        if material.len() < MIN_KEY {
            return Err(InvalidTokenSecret);
        }
        // HMAC accepts keys of any length.
        let key = Hmac::new_from_slice(&material).map_err(|_| InvalidTokenSecret)?;
        Ok(Self { key, lifetime, clock })
    }

    /// Derives a key for another purpose (RFC 5869 section 2.3: one step of HKDF-Expand). A token is never signed over a
    /// purpose, because each begins with the same header.
    #[must_use]
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        self.key.clone().chain_update(purpose).chain_update([1]).finalize().into_bytes().into()
    }

    /// Returns the longest lifetime of a token.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Issues a token for the caller with this name and key, for this scope and time.
    #[must_use]
    pub fn issue(&self, caller: &str, key: &KeyDigest, scope: Option<&str>, lifetime: Duration) -> String {
        let now = self.seconds();
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let (exp, key) = (now.saturating_add(lifetime), self.name_of(key, scope));
        let claims = Claims { sub: caller, iat: now, exp, key: &key, scope };
        // Strings and numbers always serialize.
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let mut token = String::from(HEADER);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.clone().chain_update(&token).finalize().into_bytes();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }

    /// Returns whether a credential has the form of a token; otherwise it may be a key.
    #[must_use]
    pub fn is_token(credential: &[u8]) -> bool {
        // "ey" is `{"` in base64: the beginning of any token's header.
        credential.starts_with(b"ey") && credential.iter().filter(|b| **b == b'.').count() == 2
    }

    /// Verifies a token; `None` if its signature is wrong or it has expired.
    #[must_use]
    pub fn verify(&self, token: &[u8]) -> Option<VerifiedToken> {
        let dot = token.iter().rposition(|b| *b == b'.')?;
        let (signed, signature) = (&token[..dot], &token[dot + 1..]);
        let claims = signed.strip_prefix(HEADER.as_bytes())?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // Compares in constant time.
        self.key.clone().chain_update(signed).verify_slice(&signature).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).ok()?;
        let left = claims.exp.checked_sub(self.seconds()).and_then(|left| u64::try_from(left).ok());
        let expires_in = Duration::from_secs(left.filter(|left| *left > 0)?);
        let (caller, scope, key) = (claims.sub.to_owned(), claims.scope.map(str::to_owned), claims.key.to_owned());
        Some(VerifiedToken { caller, scope, expires_in, key })
    }

    /// Returns whether a token was issued for this key.
    #[must_use]
    pub fn is_for(&self, token: &VerifiedToken, key: &KeyDigest) -> bool {
        token.key.as_bytes().ct_eq(self.name_of(key, token.scope.as_deref()).as_bytes()).into()
    }

    /// Returns the name of a caller's key: a keyed hash, so that it does not help to guess the key. It covers the scope: versions
    /// that know no scopes must refuse such a token, and not take it for one with all rights.
    fn name_of(&self, key: &KeyDigest, scope: Option<&str>) -> String {
        // No token begins like this, so a signature is never a valid name, nor a name a valid signature.
        let name = self.key.clone().chain_update(b"caller key:").chain_update(key.as_bytes());
        let name = name.chain_update(scope.unwrap_or_default()).finalize();
        URL_SAFE_NO_PAD.encode(&name.into_bytes()[..16])
    }

    fn seconds(&self) -> i64 {
        self.clock.now().as_millis().div_euclid(1000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::clock::{ManualClock, SystemClock};
    use crate::domain::Timestamp;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn secret(byte: u8) -> Secret {
        Secret::new(STANDARD.encode([byte; 32]))
    }

    fn tokens(byte: u8) -> TokenSigner {
        TokenSigner::new(Some(&secret(byte)), HOUR, SystemClock::shared()).unwrap()
    }

    fn key(key: &str) -> KeyDigest {
        KeyDigest::of(key.as_bytes())
    }

    /// Signs any header and claims with the key of `tokens(byte)`.
    fn forge(byte: u8, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = tokens(byte).key.chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_is_bound_to_its_caller_and_key() {
        let tokens = tokens(1);
        let token = tokens.issue("desktop", &key("k"), None, HOUR);
        let valid = tokens.verify(token.as_bytes()).unwrap();
        assert_eq!(valid.caller, "desktop");
        assert!(tokens.is_for(&valid, &key("k")));
        assert!(!tokens.is_for(&valid, &key("rotated")));
        assert!(TokenSigner::is_token(token.as_bytes()));
    }

    #[test]
    fn the_scope_of_a_token_cannot_be_removed() {
        let tokens = tokens(1);
        let token = tokens.issue("desktop", &key("k"), Some("tenant:1"), HOUR);
        let valid = tokens.verify(token.as_bytes()).unwrap();
        assert_eq!(valid.scope.as_deref(), Some("tenant:1"));
        assert!(tokens.is_for(&valid, &key("k")));
        assert!(!tokens.is_for(&VerifiedToken { scope: None, ..valid }, &key("k")), "as an older version reads it");
    }

    #[test]
    fn only_processes_with_the_same_secret_accept_a_token() {
        let token = tokens(1).issue("desktop", &key("k"), None, HOUR);
        assert!(tokens(1).verify(token.as_bytes()).is_some());
        assert!(tokens(2).verify(token.as_bytes()).is_none());
        let lone = || TokenSigner::new(None, HOUR, SystemClock::shared()).unwrap();
        assert!(lone().verify(lone().issue("desktop", &key("k"), None, HOUR).as_bytes()).is_none());
    }

    #[test]
    fn a_token_expires() {
        let clock = ManualClock::at(Timestamp::from_millis(1_700_000_000_000));
        let tokens = TokenSigner::new(Some(&secret(1)), HOUR, clock.clone()).unwrap();
        let token = tokens.issue("desktop", &key("k"), None, HOUR);
        clock.advance(HOUR - Duration::from_secs(1));
        assert!(tokens.verify(token.as_bytes()).is_some());
        clock.advance(Duration::from_secs(1));
        assert!(tokens.verify(token.as_bytes()).is_none());
    }

    #[test]
    fn a_signed_token_with_another_header_is_refused() {
        let claims = r#"{"sub":"desktop","iat":1,"exp":99999999999,"key":"x"}"#;
        let good = forge(1, r#"{"alg":"HS256","typ":"JWT"}"#, claims);
        assert!(tokens(1).verify(good.as_bytes()).is_some());
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims));
        assert!(tokens(1).verify(none.as_bytes()).is_none());
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#, r#"{"alg":"HS512","typ":"JWT"}"#, "{}", ""] {
            let forged = forge(1, header, claims);
            assert!(tokens(1).verify(forged.as_bytes()).is_none(), "{header}");
        }
        for claims in ["", "{}", "[]", r#"{"sub":"desktop","iat":1,"exp":"never","key":"x"}"#] {
            assert!(tokens(1).verify(forge(1, r#"{"alg":"HS256","typ":"JWT"}"#, claims).as_bytes()).is_none());
        }
    }

    #[test]
    fn a_secret_is_base64_of_32_bytes_or_more() {
        let made = |text: &str| TokenSigner::new(Some(&Secret::new(text)), HOUR, SystemClock::shared()).map(drop);
        assert_eq!(made(&STANDARD.encode([1; 31])), Err(InvalidTokenSecret));
        assert_eq!(made("not base64"), Err(InvalidTokenSecret));
        assert_eq!(made(&STANDARD.encode([1; 64])), Ok(()));
    }

    proptest! {
        #[test]
        fn a_token_with_one_changed_byte_is_refused(at in 0usize..1000, to in any::<u8>()) {
            let tokens = tokens(1);
            let mut token = tokens.issue("desktop", &key("k"), None, HOUR).into_bytes();
            let at = at % token.len();
            prop_assume!(token[at] != to);
            token[at] = to;
            prop_assert!(tokens.verify(&token).is_none());
        }

        #[test]
        fn random_bytes_are_not_a_token(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(tokens(1).verify(&bytes).is_none());
        }
    }
}
