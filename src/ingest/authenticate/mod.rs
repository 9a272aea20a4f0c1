//! Webhook authentication: whether whoever posts an event is the tenant's own source.
//!
//! A tenant has any number of schemes, and each any number of secrets, so that they can be rotated; one
//! that matches is enough. All are tried, in time that does not depend on which matches, over the raw bytes
//! as they arrived. What was wrong is never told.
//!
//! | scheme | the request carries | proves |
//! |---|---|---|
//! | `api-key` | the secret in a header | who sends |
//! | `basic` | `Authorization: Basic`, username and secret (RFC 7617) | who sends |
//! | `bearer` | `Authorization: Bearer`, the secret (RFC 6750) | who sends |
//! | `hub-signature` | `X-Hub-Signature-256`, a MAC of the body | who sends, and the body |
//! | `standard-webhooks` | `webhook-id`, `webhook-timestamp`, `webhook-signature` | both, the id, and that it is recent |
//!
//! Comparisons take the same time by construction: whatever is presented becomes 32 bytes first (a digest of
//! a credential, or a decoded MAC, which has no other length), and 32 bytes are compared with 32 bytes. So
//! no length tells anything, and no shorter text can match the beginning of a longer one (CVE-2024-21491).

mod credential;
mod standard;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

use crate::domain::{Secret, Timestamp};
use crate::invalid::InvalidSetting;

use super::shapes::SenderId;
use credential::Digests;
use standard::StandardWebhooks;

/// The header of the `hub-signature` scheme.
const HUB_SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

/// The header of the `api-key` scheme, unless another is configured.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Base64 of secrets and credentials: padding and the unused bits of the last character do not matter, since
/// senders and the reference libraries of Standard Webhooks differ in them.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// `[[tenant.webhook]]`: one way in which a tenant's source may prove itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How.
    pub scheme: Scheme,
    /// The header of the `api-key` scheme; absent: `X-API-Key`.
    #[serde(default)]
    pub header: Option<String>,
    /// The username of the `basic` scheme.
    #[serde(default)]
    pub username: Option<String>,
    /// All of them are valid, so that they can be rotated.
    pub secrets: Vec<Secret>,
}

/// The schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// The secret itself in a header: what EventBridge and data actions can send.
    ApiKey,
    /// `Authorization: Basic` with a username and the secret (RFC 7617).
    Basic,
    /// `Authorization: Bearer` with the secret (RFC 6750).
    Bearer,
    /// `X-Hub-Signature-256: sha256=` and the HMAC-SHA-256 of the raw body, in base64 (as Genesys' Open
    /// Messaging sends it) or in hex.
    HubSignature,
    /// Standard Webhooks 1.0, symmetric (`v1`): the HMAC-SHA-256 of id, timestamp and raw body.
    StandardWebhooks,
}

/// One scheme, ready to judge.
#[derive(Clone, Debug)]
pub enum Authenticator {
    /// See [`Scheme::ApiKey`].
    ApiKey {
        /// Where the key stands.
        header: HeaderName,
        /// The digests of the valid keys.
        digests: Digests,
    },
    /// See [`Scheme::Basic`].
    Basic(Digests),
    /// See [`Scheme::Bearer`].
    Bearer(Digests),
    /// See [`Scheme::HubSignature`].
    HubSignature {
        /// The valid secrets.
        secrets: Vec<Secret>,
    },
    /// See [`Scheme::StandardWebhooks`].
    StandardWebhooks(StandardWebhooks),
}

/// What a request has proved besides that it comes from the tenant's source.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The `webhook-id`, where a signature covers it: anyone else's is hearsay.
    pub message: Option<SenderId>,
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    ///
    /// No secret, an unusable one, a header that is no header's name, a username that cannot be sent or is
    /// missing, or an option that belongs to another scheme.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        Authenticator::new(self).map(drop)
    }

    /// Refuses the options that belong to another scheme.
    fn belongs(&self) -> Result<(), InvalidSetting> {
        if self.header.is_some() && self.scheme != Scheme::ApiKey {
            return Err(InvalidSetting::new("header", "belongs to the scheme \"api-key\" only"));
        }
        if self.username.is_some() && self.scheme != Scheme::Basic {
            return Err(InvalidSetting::new("username", "belongs to the scheme \"basic\" only"));
        }
        Ok(())
    }

    fn api_key_header(&self) -> Result<HeaderName, InvalidSetting> {
        let Some(header) = &self.header else { return Ok(API_KEY) };
        header.parse().map_err(|_| InvalidSetting::new("header", "must be the name of an HTTP header"))
    }
}

impl Authenticator {
    /// Makes a scheme ready.
    ///
    /// # Errors
    ///
    /// As [`Config::validate`].
    pub fn new(config: &Config) -> Result<Self, InvalidSetting> {
        let secrets = &config.secrets;
        if secrets.is_empty() {
            return Err(InvalidSetting::new("secrets", "at least one is needed"));
        }
        if secrets.iter().any(Secret::is_empty) {
            return Err(InvalidSetting::new("secrets", "must not be empty"));
        }
        config.belongs()?;
        Ok(match config.scheme {
            Scheme::ApiKey => Self::ApiKey { header: config.api_key_header()?, digests: Digests::of(secrets) },
            Scheme::Basic => Self::Basic(Digests::of_user(config.username.as_deref(), secrets)?),
            Scheme::Bearer => Self::Bearer(Digests::of(secrets)),
            Scheme::HubSignature => Self::HubSignature { secrets: secrets.clone() },
            Scheme::StandardWebhooks => Self::StandardWebhooks(StandardWebhooks::new(secrets)?),
        })
    }

    /// Judges a request by its headers and its raw body. A header that is given twice proves nothing.
    #[must_use]
    pub fn accepts(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Choice {
        match self {
            Self::ApiKey { header, digests } => digests.accept(only(headers, header)),
            Self::Basic(digests) => digests.accept(credential::basic(headers).as_deref().map(Vec::as_slice)),
            Self::Bearer(digests) => digests.accept(credential::bearer(headers)),
            Self::HubSignature { secrets } => {
                let Some(signature) = only(headers, &HUB_SIGNATURE).and_then(hub_signature) else {
                    return Choice::from(0);
                };
                joined(
                    secrets.iter().map(|secret| standard::mac(secret.expose().as_bytes(), &[body]).ct_eq(&signature)),
                )
            }
            Self::StandardWebhooks(standard) => standard.accept(headers, body, now),
        }
    }
}

/// Judges a request by all of a tenant's schemes; `None` when no scheme accepts it.
#[must_use]
pub fn verify(authenticators: &[Authenticator], headers: &HeaderMap, body: &[u8], now: Timestamp) -> Option<Proof> {
    let (mut accepted, mut id_is_signed) = (Choice::from(0), Choice::from(0));
    for authenticator in authenticators {
        let judgement = authenticator.accepts(headers, body, now);
        accepted |= judgement;
        match authenticator {
            Authenticator::StandardWebhooks(_) => id_is_signed |= judgement,
            Authenticator::ApiKey { .. }
            | Authenticator::Basic(_)
            | Authenticator::Bearer(_)
            | Authenticator::HubSignature { .. } => {}
        }
    }
    let message = || bool::from(id_is_signed).then(|| standard::id(headers).map(SenderId::of)).flatten();
    bool::from(accepted).then(|| Proof { message: message() })
}

/// Joins judgements without stopping at the first that accepts.
fn joined(judgements: impl Iterator<Item = Choice>) -> Choice {
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
    let mut decoded = [0; 32];
    match encoded.len() {
        64 => hex::decode_to_slice(encoded, &mut decoded).ok()?,
        _ => decoded = standard::base64_mac(encoded)?,
    }
    Some(decoded)
}

#[cfg(test)]
mod tests;
