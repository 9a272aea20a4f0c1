//! Webhook authentication: whether whoever posts an event is the tenant's own source.
//!
//! A tenant has any number of schemes, and each any number of secrets, so that they can be rotated; one
//! that matches is enough. All are tried, in time that does not depend on which matches, over the raw bytes
//! as they arrived. What was wrong is never told.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::domain::Secret;

/// The header of the `hub-signature` scheme.
const HUB_SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

/// The header of the `api-key` scheme, unless another is configured.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// `[[tenant.webhook]]`: one way in which a tenant's source may prove itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How.
    pub scheme: Scheme,
    /// The header of the `api-key` scheme; absent: `X-API-Key`.
    #[serde(default)]
    pub header: Option<String>,
    /// All of them are valid, so that they can be rotated.
    pub secrets: Vec<Secret>,
}

/// The schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// The secret itself in a header: what EventBridge and data actions can send.
    ApiKey,
    /// `X-Hub-Signature-256: sha256=` and the HMAC-SHA-256 of the raw body, in base64 (as Genesys' Open
    /// Messaging sends it) or in hex.
    HubSignature,
}

/// A webhook's configuration is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant.webhook.{field}: {reason}")]
pub struct ConfigError {
    /// Which field of it.
    pub field: &'static str,
    /// What is expected of it.
    pub reason: String,
}

/// One scheme, ready to judge.
#[derive(Clone, Debug)]
pub enum Authenticator {
    /// See [`Scheme::ApiKey`].
    ApiKey {
        /// Where the key stands.
        header: HeaderName,
        /// The SHA-256 of each valid key: of equal length whatever the keys' lengths.
        digests: Vec<[u8; 32]>,
    },
    /// See [`Scheme::HubSignature`].
    HubSignature {
        /// The valid secrets.
        secrets: Vec<Secret>,
    },
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    ///
    /// No secret, an empty one, or a header that is no header's name or belongs to another scheme.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Authenticator::new(self).map(drop)
    }
}

impl Authenticator {
    /// Makes a scheme ready.
    ///
    /// # Errors
    ///
    /// As [`Config::validate`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let refuse = |field, reason: &str| Err(ConfigError { field, reason: reason.to_owned() });
        if config.secrets.is_empty() {
            return refuse("secrets", "at least one is needed");
        }
        if config.secrets.iter().any(Secret::is_empty) {
            return refuse("secrets", "must not be empty");
        }
        match (config.scheme, &config.header) {
            (Scheme::ApiKey, header) => {
                let header = match header.as_deref().map(str::parse) {
                    None => API_KEY,
                    Some(Ok(header)) => header,
                    Some(Err(_)) => return refuse("header", "must be the name of an HTTP header"),
                };
                let digest = |secret: &Secret| Sha256::digest(secret.expose()).into();
                Ok(Self::ApiKey { header, digests: config.secrets.iter().map(digest).collect() })
            }
            (Scheme::HubSignature, Some(_)) => refuse("header", "belongs to the scheme \"api-key\" only"),
            (Scheme::HubSignature, None) => Ok(Self::HubSignature { secrets: config.secrets.clone() }),
        }
    }

    /// Judges a request by its headers and its raw body. A header that is given twice proves nothing.
    #[must_use]
    pub fn accepts(&self, headers: &HeaderMap, body: &[u8]) -> Choice {
        match self {
            Self::ApiKey { header, digests } => {
                let Some(presented) = only(headers, header) else { return Choice::from(0) };
                let presented = Sha256::digest(presented);
                any(digests.iter().map(|digest| presented.as_slice().ct_eq(digest)))
            }
            Self::HubSignature { secrets } => {
                let Some(signature) = only(headers, &HUB_SIGNATURE).and_then(hub_signature) else {
                    return Choice::from(0);
                };
                any(secrets.iter().map(|secret| sign(secret, body).as_slice().ct_eq(&signature)))
            }
        }
    }
}

/// Judges a request by all of a tenant's schemes.
#[must_use]
pub fn accepts(authenticators: &[Authenticator], headers: &HeaderMap, body: &[u8]) -> bool {
    any(authenticators.iter().map(|authenticator| authenticator.accepts(headers, body))).into()
}

/// Joins judgements without stopping at the first that accepts.
fn any(judgements: impl Iterator<Item = Choice>) -> Choice {
    judgements.fold(Choice::from(0), |all, one| all | one)
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Reads `sha256=` followed by 44 characters of base64 or 64 hex digits.
fn hub_signature(value: &[u8]) -> Option<[u8; 32]> {
    let encoded = value.trim_ascii().strip_prefix(b"sha256=")?;
    let decoded = match encoded.len() {
        64 => hex::decode(encoded).ok(),
        44 => STANDARD.decode(encoded).ok(),
        _ => None,
    }?;
    decoded.try_into().ok()
}

fn sign(secret: &Secret, body: &[u8]) -> [u8; 32] {
    // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
    let mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("hmac takes keys of any length");
    mac.chain_update(body).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// GENESYS.md section 3.7.
    const BODY: &[u8] = br#"{"id":"m1","type":"Text","text":"hi"}"#;
    const SIGNATURE: &str = "sha256=NWWtmyELOP7eWVLU0uDIWgoiBzcpvwknWXYoojjn5oE=";

    fn made(scheme: Scheme, secrets: &[&str]) -> Vec<Authenticator> {
        let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
        vec![Authenticator::new(&Config { scheme, header: None, secrets }).unwrap()]
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn hex_form() -> String {
        format!("sha256={}", hex::encode(STANDARD.decode(&SIGNATURE[7..]).unwrap()))
    }

    #[test]
    fn the_known_vector_verifies_in_base64_and_in_hex() {
        let hub = made(Scheme::HubSignature, &["another", "shared-secret"]);
        let upper = format!("sha256={}", hex_form()[7..].to_ascii_uppercase());
        for signature in [SIGNATURE, &hex_form(), &upper] {
            assert!(accepts(&hub, &headers(&[("x-hub-signature-256", signature)]), BODY), "{signature}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let hub = made(Scheme::HubSignature, &["shared-secret"]);
        let bare = &SIGNATURE[7..];
        for signature in [bare, "sha256=", "sha1=NWWtmyELOP7eWVLU0uDIWgoiBzcpvwknWXYoojjn5oE=", &SIGNATURE[..50]] {
            assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", signature)]), BODY), "{signature}");
        }
        assert!(!accepts(&hub, &HeaderMap::new(), BODY));
        let twice = headers(&[("x-hub-signature-256", SIGNATURE), ("x-hub-signature-256", SIGNATURE)]);
        assert!(!accepts(&hub, &twice, BODY));
        assert!(!accepts(&[], &headers(&[("x-hub-signature-256", SIGNATURE)]), BODY));
    }

    #[test]
    fn an_api_key_is_one_of_the_configured_ones_in_the_configured_header() {
        let keys = made(Scheme::ApiKey, &["old", "new"]);
        assert!(accepts(&keys, &headers(&[("x-api-key", "old")]), BODY));
        assert!(accepts(&keys, &headers(&[("x-api-key", "new")]), BODY));
        assert!(!accepts(&keys, &headers(&[("x-api-key", "newer")]), BODY));
        assert!(!accepts(&keys, &headers(&[("x-api-key", "old"), ("x-api-key", "old")]), BODY));
        let config =
            Config { scheme: Scheme::ApiKey, header: Some("X-Edge-Key".to_owned()), secrets: vec![Secret::new("k")] };
        let own = [Authenticator::new(&config).unwrap()];
        assert!(accepts(&own, &headers(&[("x-edge-key", "k")]), BODY));
        assert!(!accepts(&own, &headers(&[("x-api-key", "k")]), BODY));
    }

    #[test]
    fn unusable_configurations_name_the_field() {
        let field = |scheme, header: Option<&str>, secrets: &[&str]| {
            let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
            Config { scheme, header: header.map(str::to_owned), secrets }.validate().unwrap_err().field
        };
        assert_eq!(field(Scheme::ApiKey, None, &[]), "secrets");
        assert_eq!(field(Scheme::ApiKey, None, &["a", ""]), "secrets");
        assert_eq!(field(Scheme::ApiKey, Some("a b"), &["a"]), "header");
        assert_eq!(field(Scheme::HubSignature, Some("x-a"), &["a"]), "header");
    }

    proptest! {
        #[test]
        fn one_changed_byte_of_body_signature_or_secret_is_refused(at in 0usize..1000, flip in 1u8..=255) {
            let hub = made(Scheme::HubSignature, &["shared-secret"]);
            let mut body = BODY.to_vec();
            let place = at % body.len();
            body[place] ^= flip;
            prop_assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", SIGNATURE)]), &body));

            let mut signature = STANDARD.decode(&SIGNATURE[7..]).unwrap();
            signature[at % 32] ^= flip;
            let forged = format!("sha256={}", STANDARD.encode(&signature));
            prop_assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", &forged)]), BODY));

            let mut secret = b"shared-secret".to_vec();
            let place = at % secret.len();
            secret[place] = (secret[place] ^ flip) & 0x7f;
            prop_assume!(secret != b"shared-secret");
            let other = made(Scheme::HubSignature, &[std::str::from_utf8(&secret).unwrap()]);
            prop_assert!(!accepts(&other, &headers(&[("x-hub-signature-256", SIGNATURE)]), BODY));
        }

        #[test]
        fn no_signature_header_makes_it_panic(value in "[ -~]{0,100}") {
            let hub = made(Scheme::HubSignature, &["shared-secret"]);
            let _ = accepts(&hub, &headers(&[("x-hub-signature-256", &value)]), BODY);
        }
    }
}
