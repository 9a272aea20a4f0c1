//! Webhook authentication: checks that a request comes from a source of the tenant.
//!
//! A sender must present a valid credential or sign the raw body. A tenant has any number of schemes, and each scheme
//! any number of secrets, so that secrets can be rotated; one match is enough. All are tried, on the raw bytes of the
//! request, and the duration does not depend on which one matches. A refusal never says what was wrong.
//!
//! | scheme | the request contains | the proof covers |
//! |---|---|---|
//! | `api-key` | the secret in a header | the whole request: its sender is trusted |
//! | `basic` | `Authorization: Basic`, username and secret (RFC 7617) | the whole request |
//! | `bearer` | `Authorization: Bearer`, the secret (RFC 6750) | the whole request |
//! | `hub-signature` | `X-Hub-Signature-256`, a MAC of the body | the body |
//! | `standard-webhooks` | `webhook-id`, `webhook-timestamp`, `webhook-signature` | the body, the id, and a recent time |
//!
//! What a proof does not cover can be changed by anybody who recorded a request, so the rest of the flow cannot see it:
//! [`verify`] returns a [`Proof`], which contains only what is covered. A scheme may also be limited to the networks of
//! its sources; then the address of the connection counts, and no header.
//!
//! All comparisons take constant time: the input is first reduced to 32 bytes (the digest of a credential, or a decoded
//! MAC, which is always that long), and 32 bytes are compared with 32 bytes. So the duration reveals no length, and a
//! prefix of a signature never matches it (CVE-2024-21491).

mod credential;
mod proof;
mod standard;

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::authorization::{Authorization, LENIENT_BASE64 as LENIENT};
use crate::domain::{Secret, Timestamp};
use crate::invalid::InvalidSetting;

use super::shapes::SenderId;
use credential::CredentialDigests;
use standard::StandardWebhooks;

pub use proof::{HeaderProof, Proof, ReceivedRequest, header_proof};

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
    /// The networks of the sources, IPv4 or IPv6; absent: any.
    #[serde(default)]
    pub networks: Option<Vec<IpNet>>,
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

/// One configured scheme with its secrets and networks.
#[derive(Clone, Debug)]
pub struct Authenticator {
    credentials: Credentials,
    networks: Option<Vec<IpNet>>,
}

/// The secrets of a scheme.
#[derive(Clone, Debug)]
enum Credentials {
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

impl Config {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// There is no secret, or an invalid one; the header name or the username is invalid; the username is missing; the
    /// list of networks is empty; or an option belongs to another scheme.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        Authenticator::new(self).map(drop)
    }

    /// Returns the places in `secrets` of those with fewer bytes than `length`, without empty ones and those of
    /// `standard-webhooks`, which [`Config::validate`] judges.
    pub fn secrets_below(&self, length: usize) -> impl Iterator<Item = usize> {
        let is_judged = self.scheme != Scheme::StandardWebhooks;
        let short = move |secret: &Secret| is_judged && (1..length).contains(&secret.expose().len());
        self.secrets.iter().enumerate().filter(move |(_, secret)| short(secret)).map(|(place, _)| place)
    }

    /// Refuses options of another scheme.
    fn check_options(&self) -> Result<(), InvalidSetting> {
        if self.header.is_some() && self.scheme != Scheme::ApiKey {
            return Err(InvalidSetting::new("header", "belongs to the scheme \"api-key\" only"));
        }
        if self.username.is_some() && self.scheme != Scheme::Basic {
            return Err(InvalidSetting::new("username", "belongs to the scheme \"basic\" only"));
        }
        if self.networks.as_ref().is_some_and(Vec::is_empty) {
            return Err(InvalidSetting::new("networks", "names no network: leave it out to accept any"));
        }
        Ok(())
    }

    /// Refuses credentials that no header can contain: HTTP removes spaces at both ends of a value.
    fn check_sendable(&self) -> Result<(), InvalidSetting> {
        let is_sent = self.scheme != Scheme::HubSignature && self.scheme != Scheme::StandardWebhooks;
        let is_sendable = |secret: &Secret| {
            let text = secret.expose();
            text.trim() == text && !text.contains(char::is_control)
        };
        if is_sent && !self.secrets.iter().all(is_sendable) {
            let reason = "must not contain a control character such as a newline, or start or end with a space: no header can \
                          carry it";
            return Err(InvalidSetting::new("secrets", reason));
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
        config.check_sendable()?;
        let credentials = match config.scheme {
            Scheme::ApiKey => {
                Credentials::ApiKey { header: config.api_key_header()?, digests: CredentialDigests::of(secrets) }
            }
            Scheme::Basic => Credentials::Basic(CredentialDigests::of_user(config.username.as_deref(), secrets)?),
            Scheme::Bearer => Credentials::Bearer(CredentialDigests::of(secrets)),
            Scheme::HubSignature => Credentials::HubSignature { secrets: secrets.clone() },
            Scheme::StandardWebhooks => Credentials::StandardWebhooks(StandardWebhooks::new(secrets)?),
        };
        Ok(Self { credentials, networks: config.networks.clone() })
    }

    /// Checks a request. A header that is given twice is not accepted.
    fn accepts(&self, request: &ReceivedRequest<'_>, now: Timestamp) -> Choice {
        Choice::from(u8::from(self.is_from_its_network(request.peer))) & self.credentials.accept(request, now)
    }

    /// Returns whether an address is in the networks of the scheme. On a listener of both families an IPv4 address
    /// arrives in its IPv6 form.
    fn is_from_its_network(&self, peer: Option<IpAddr>) -> bool {
        self.networks.as_ref().is_none_or(|networks| {
            peer.is_some_and(|peer| networks.iter().any(|network| network.contains(&peer.to_canonical())))
        })
    }
}

impl Credentials {
    fn accept(&self, request: &ReceivedRequest<'_>, now: Timestamp) -> Choice {
        let ReceivedRequest { headers, body, .. } = *request;
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
pub fn verify<'a>(
    authenticators: &[Authenticator],
    request: &ReceivedRequest<'a>,
    now: Timestamp,
) -> Option<Proof<'a>> {
    let (mut accepted, mut sender_is_known, mut id_is_signed) = (Choice::from(0), Choice::from(0), Choice::from(0));
    for authenticator in authenticators {
        let is_valid = authenticator.accepts(request, now);
        accepted |= is_valid;
        match authenticator.credentials {
            Credentials::ApiKey { .. } | Credentials::Basic(_) | Credentials::Bearer(_) => sender_is_known |= is_valid,
            Credentials::HubSignature { .. } => {}
            Credentials::StandardWebhooks(_) => id_is_signed |= is_valid,
        }
    }
    let message_id = || bool::from(id_is_signed).then(|| standard::id(request.headers).map(SenderId::of)).flatten();
    bool::from(accepted).then(|| Proof {
        body: request.body,
        headers: bool::from(sender_is_known).then_some(request.headers),
        message_id: message_id(),
    })
}

/// Returns what equal secrets have in common, in any of their spellings: a digest, so that it reveals nothing.
#[must_use]
pub fn comparable(secret: &Secret) -> [u8; 32] {
    let text = secret.expose();
    Sha256::digest(text.strip_prefix(standard::PREFIX).unwrap_or(text).trim_end_matches('=')).into()
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
