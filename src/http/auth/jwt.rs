//! Tokens: what a caller gets for its name and key, and shows in their place.
//!
//! A token is a JSON Web Token (RFC 7519) signed with HMAC-SHA-256 (RFC 7518 section 3.2). It says whose it
//! is, until when, and which key of that caller it was given for: a caller whose key is changed or removed
//! has no tokens any more, without a list of them.
//!
//! We are the only ones to write tokens and the only ones to read them, so there is nothing to negotiate: the
//! first part must be, byte for byte, the one header that we write. A token with `alg` none, or any other, is
//! not a token, and no code looks at what it says. The signature is checked before anything is parsed. The
//! common JWT crates bring RSA and elliptic curves along (and an open advisory about one of them); this needs
//! one HMAC, of the crates that sign and hash everything else here.

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

/// The header of every token and the dot behind it: `{"alg":"HS256","typ":"JWT"}` in base64url.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";

/// The least key material, in bytes: as much as the hash gives (RFC 7518 section 3.2).
const MIN_KEY: usize = 32;

/// Signs and checks tokens.
#[derive(Debug)]
pub struct Tokens {
    key: Hmac<Sha256>,
    lifetime: Duration,
    clock: SharedClock,
}

/// The secret is no key material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be base64 of 32 bytes or more")]
pub struct InvalidSecret;

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims<'a> {
    /// The caller's name.
    sub: &'a str,
    /// When it was given, in seconds since the Unix epoch.
    iat: i64,
    /// When it ends.
    exp: i64,
    /// Names the caller's key, in a form that only the signing key can make.
    key: &'a str,
}

/// A token that we signed and that has not ended.
#[derive(Debug)]
pub struct Valid {
    /// The name of its caller.
    pub caller: String,
    /// Which key of the caller it was given for.
    key: String,
}

impl Tokens {
    /// Makes the signer; without a secret it signs with a key that only this process has.
    ///
    /// # Errors
    ///
    /// The secret is not base64 of 32 bytes or more.
    pub fn new(secret: Option<&Secret>, lifetime: Duration, clock: SharedClock) -> Result<Self, InvalidSecret> {
        let material = match secret {
            Some(secret) => STANDARD.decode(secret.expose()).map_err(|_| InvalidSecret)?,
            None => rand::random::<[u8; MIN_KEY]>().to_vec(),
        };
        let material = Zeroizing::new(material);
        if material.len() < MIN_KEY {
            return Err(InvalidSecret);
        }
        // HMAC takes keys of any length.
        let key = Hmac::new_from_slice(&material).map_err(|_| InvalidSecret)?;
        Ok(Self { key, lifetime, clock })
    }

    /// Returns how long a token is valid.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Gives a token to the caller with this name and key.
    #[must_use]
    pub fn issue(&self, caller: &str, key: &KeyDigest) -> String {
        let now = self.seconds();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { sub: caller, iat: now, exp: now.saturating_add(lifetime), key: &self.name_of(key) };
        // Texts and numbers always serialize.
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let mut token = String::from(HEADER);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.clone().chain_update(&token).finalize().into_bytes();
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }

    /// Tells whether a credential has the form of a token; if not, it may be a key.
    #[must_use]
    pub fn is_token(credential: &[u8]) -> bool {
        // "ey" is `{"`: whatever its header says, it is one.
        credential.starts_with(b"ey") && credential.iter().filter(|b| **b == b'.').count() == 2
    }

    /// Checks a token; `None` if it is not ours, was altered, or has ended.
    #[must_use]
    pub fn check(&self, token: &[u8]) -> Option<Valid> {
        let dot = token.iter().rposition(|b| *b == b'.')?;
        let (signed, signature) = (&token[..dot], &token[dot + 1..]);
        let claims = signed.strip_prefix(HEADER.as_bytes())?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // Compares in constant time.
        self.key.clone().chain_update(signed).verify_slice(&signature).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).ok()?;
        (self.seconds() < claims.exp).then(|| Valid { caller: claims.sub.to_owned(), key: claims.key.to_owned() })
    }

    /// Tells whether a valid token was given for this key.
    #[must_use]
    pub fn is_for(&self, token: &Valid, key: &KeyDigest) -> bool {
        token.key.as_bytes().ct_eq(self.name_of(key).as_bytes()).into()
    }

    /// Names a caller's key. Keyed, so that the name tells nothing about the key, not even to who guesses it.
    fn name_of(&self, key: &KeyDigest) -> String {
        // No token begins like this, so neither is ever taken for the other.
        let name = self.key.clone().chain_update(b"caller key:").chain_update(key.as_bytes()).finalize();
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

    fn tokens(byte: u8) -> Tokens {
        Tokens::new(Some(&secret(byte)), HOUR, SystemClock::shared()).unwrap()
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
    fn a_token_names_its_caller_and_is_bound_to_its_key() {
        let tokens = tokens(1);
        let token = tokens.issue("desktop", &key("k"));
        let valid = tokens.check(token.as_bytes()).unwrap();
        assert_eq!(valid.caller, "desktop");
        assert!(tokens.is_for(&valid, &key("k")));
        assert!(!tokens.is_for(&valid, &key("rotated")));
        assert!(Tokens::is_token(token.as_bytes()));
    }

    #[test]
    fn replicas_with_the_same_secret_read_each_others_tokens_and_others_do_not() {
        let token = tokens(1).issue("desktop", &key("k"));
        assert!(tokens(1).check(token.as_bytes()).is_some());
        assert!(tokens(2).check(token.as_bytes()).is_none());
        let lone = || Tokens::new(None, HOUR, SystemClock::shared()).unwrap();
        assert!(lone().check(lone().issue("desktop", &key("k")).as_bytes()).is_none());
    }

    #[test]
    fn a_token_ends() {
        let clock = ManualClock::at(Timestamp::from_millis(1_700_000_000_000));
        let tokens = Tokens::new(Some(&secret(1)), HOUR, clock.clone()).unwrap();
        let token = tokens.issue("desktop", &key("k"));
        clock.advance(HOUR - Duration::from_secs(1));
        assert!(tokens.check(token.as_bytes()).is_some());
        clock.advance(Duration::from_secs(1));
        assert!(tokens.check(token.as_bytes()).is_none());
    }

    #[test]
    fn only_the_one_header_is_a_token_however_well_it_is_signed() {
        let claims = r#"{"sub":"desktop","iat":1,"exp":99999999999,"key":"x"}"#;
        let good = forge(1, r#"{"alg":"HS256","typ":"JWT"}"#, claims);
        assert!(tokens(1).check(good.as_bytes()).is_some());
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims));
        assert!(tokens(1).check(none.as_bytes()).is_none());
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#, r#"{"alg":"HS512","typ":"JWT"}"#, "{}", ""] {
            let forged = forge(1, header, claims);
            assert!(tokens(1).check(forged.as_bytes()).is_none(), "{header}");
        }
        for claims in ["", "{}", "[]", r#"{"sub":"desktop","iat":1,"exp":"never","key":"x"}"#] {
            assert!(tokens(1).check(forge(1, r#"{"alg":"HS256","typ":"JWT"}"#, claims).as_bytes()).is_none());
        }
    }

    #[test]
    fn a_secret_is_base64_of_32_bytes_or_more() {
        let made = |text: &str| Tokens::new(Some(&Secret::new(text)), HOUR, SystemClock::shared()).map(drop);
        assert_eq!(made(&STANDARD.encode([1; 31])), Err(InvalidSecret));
        assert_eq!(made("not base64"), Err(InvalidSecret));
        assert_eq!(made(&STANDARD.encode([1; 64])), Ok(()));
    }

    proptest! {
        #[test]
        fn one_changed_byte_anywhere_is_refused(at in 0usize..1000, to in any::<u8>()) {
            let tokens = tokens(1);
            let mut token = tokens.issue("desktop", &key("k")).into_bytes();
            let at = at % token.len();
            prop_assume!(token[at] != to);
            token[at] = to;
            prop_assert!(tokens.check(&token).is_none());
        }

        #[test]
        fn nothing_else_is_a_token(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(tokens(1).check(&bytes).is_none());
        }
    }
}
