//! Webhook authentication: who posts events.

use serde::Deserialize;

use crate::domain::Secret;

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
    /// The secret itself in a header.
    ApiKey,
    /// `X-Hub-Signature-256`: HMAC-SHA-256 over the raw body.
    HubSignature,
}
