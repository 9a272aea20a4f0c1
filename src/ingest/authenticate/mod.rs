//! Webhook authentication: checks that a request comes from a source of the tenant.
//!
//! A sender must present a valid credential or sign the raw body. A tenant has any number of schemes, and each scheme
//! any number of secrets, so that secrets can be rotated; one match is enough. All are tried, on the raw bytes of the
//! request, and the duration does not depend on which one matches. A refusal never says what was wrong.
//!
//! | scheme | the request contains | proves |
//! |---|---|---|
//! | `api-key` | the secret in a header | the sender |
//! | `basic` | `Authorization: Basic`, username and secret (RFC 7617) | the sender |
//! | `bearer` | `Authorization: Bearer`, the secret (RFC 6750) | the sender |
//! | `hub-signature` | `X-Hub-Signature-256`, a MAC of the body | the sender and the body |
//! | `standard-webhooks` | `webhook-id`, `webhook-timestamp`, `webhook-signature` | both, the id, and a recent time |
//!
//! All comparisons take constant time: the input is first reduced to 32 bytes (the digest of a credential, or a decoded
//! MAC, which is always that long), and 32 bytes are compared with 32 bytes. So the duration reveals no length, and a
//! prefix of a signature never matches it (CVE-2024-21491).

mod credential;
mod standard;

use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

use crate::authorization::{Authorization, LENIENT_BASE64 as LENIENT};
use crate::domain::{Secret, Timestamp};
use crate::invalid::InvalidSetting;

use super::shapes::SenderId;
use credential::CredentialDigests;
use standard::StandardWebhooks;

/// The header of the `hub-signature` scheme.
const HUB_SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

/// The header of the `api-key` scheme, unless another is configured.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// `[[tenant.webhook]]`: one way in which the sources of a tenant authenticate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The scheme.
    pub scheme: Scheme,
    /// The header of the `api-key` scheme; absent: `X-API-Key`.
    #[serde(default)]
    pub header: Option<String>,
    /// The username of the `basic` scheme.
    #[serde(default)]
    pub username: Option<String>,
    /// The secrets. All of them are valid, so that they can be rotated.
    pub secrets: Vec<Secret>,
}

/// The authentication schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// The secret itself in a header, as EventBridge and data actions can send it.
    ApiKey,
    /// `Authorization: Basic` with a username and the secret (RFC 7617).
    Basic,
    /// `Authorization: Bearer` with the secret (RFC 6750).
    Bearer,
    /// `X-Hub-Signature-256: sha256=` and the HMAC-SHA-256 of the raw body, in base64 (as Genesys Open Messaging sends
    /// it) or in hex.
    HubSignature,
    /// Standard Webhooks 1.0, symmetric (`v1`): the HMAC-SHA-256 of id, timestamp and raw body.
    StandardWebhooks,
}

/// One configured scheme with its secrets.
#[derive(Clone, Debug)]
pub enum Authenticator {
    /// See [`Scheme::ApiKey`].
    ApiKey {
        /// The header that contains the key.
        header: HeaderName,
        /// The digests of the valid keys.
        digests: CredentialDigests,
    },
    /// See [`Scheme::Basic`].
    Basic(CredentialDigests),
    /// See [`Scheme::Bearer`].
    Bearer(CredentialDigests),
    /// See [`Scheme::HubSignature`].
    HubSignature {
        /// The valid secrets.
        secrets: Vec<Secret>,
    },
    /// See [`Scheme::StandardWebhooks`].
    StandardWebhooks(StandardWebhooks),
}

/// An authenticated request.
#[derive(Clone, Debug)]
pub struct VerifiedRequest {
    /// The `webhook-id`, if a signature covers it. An unsigned id is not trusted.
    pub message_id: Option<SenderId>,
}

impl Config {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// There is no secret, or an invalid one; the header name or the username is invalid; the username is missing; or
    /// an option belongs to another scheme.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        Authenticator::new(self).map(drop)
    }

    /// Refuses options of another scheme.
    fn check_options(&self) -> Result<(), InvalidSetting> {
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
    /// Creates the scheme from its configuration.
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
        config.check_options()?;
        Ok(match config.scheme {
            Scheme::ApiKey => {
                Self::ApiKey { header: config.api_key_header()?, digests: CredentialDigests::of(secrets) }
            }
            Scheme::Basic => Self::Basic(CredentialDigests::of_user(config.username.as_deref(), secrets)?),
            Scheme::Bearer => Self::Bearer(CredentialDigests::of(secrets)),
            Scheme::HubSignature => Self::HubSignature { secrets: secrets.clone() },
            Scheme::StandardWebhooks => Self::StandardWebhooks(StandardWebhooks::new(secrets)?),
        })
    }

    /// Checks the headers and the raw body of a request. A header that is given twice is not accepted.
    #[must_use]
    pub fn accepts(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Choice {
        match self {
            Self::ApiKey { header, digests } => digests.accept(only(headers, header)),
            Self::Basic(digests) => match Authorization::of(headers) {
                Ok(Some(Authorization::Basic(pair))) => digests.accept(Some(pair.joined())),
                Ok(Some(Authorization::Bearer(_)) | None) | Err(_) => digests.accept(None),
            },
            Self::Bearer(digests) => match Authorization::of(headers) {
                Ok(Some(Authorization::Bearer(token))) => digests.accept(Some(token)),
                Ok(Some(Authorization::Basic(_)) | None) | Err(_) => digests.accept(None),
            },
            Self::HubSignature { secrets } => {
                let Some(signature) = only(headers, &HUB_SIGNATURE).and_then(hub_signature) else {
                    return Choice::from(0);
                };
                any_match(
                    secrets.iter().map(|secret| standard::mac(secret.expose().as_bytes(), &[body]).ct_eq(&signature)),
                )
            }
            Self::StandardWebhooks(standard) => standard.accept(headers, body, now),
        }
    }
}

/// Checks a request with all schemes of a tenant; returns `None` if no scheme accepts it.
#[must_use]
pub fn verify(
    authenticators: &[Authenticator],
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Option<VerifiedRequest> {
    let (mut accepted, mut id_is_signed) = (Choice::from(0), Choice::from(0));
    for authenticator in authenticators {
        let is_valid = authenticator.accepts(headers, body, now);
        accepted |= is_valid;
        match authenticator {
            Authenticator::StandardWebhooks(_) => id_is_signed |= is_valid,
            Authenticator::ApiKey { .. }
            | Authenticator::Basic(_)
            | Authenticator::Bearer(_)
            | Authenticator::HubSignature { .. } => {}
        }
    }
    let message_id = || bool::from(id_is_signed).then(|| standard::id(headers).map(SenderId::of)).flatten();
    bool::from(accepted).then(|| VerifiedRequest { message_id: message_id() })
}

/// Combines results without stopping at the first match.
fn any_match(results: impl Iterator<Item = Choice>) -> Choice {
    results.fold(Choice::from(0), |all, one| all | one)
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Decodes `sha256=` followed by 44 characters of base64 or 64 hex digits.
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
