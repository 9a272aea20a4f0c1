//! Callers: who looks profiles up.

use serde::Deserialize;

use crate::domain::TenantId;

/// `[[caller]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, for logs and audit.
    pub name: String,
    /// SHA-256 of its key, in hex (see `profile-edge hash-key`).
    pub key_sha256: String,
    /// The tenants whose customers it may look up.
    pub tenants: Vec<TenantId>,
    /// The fields it may see: `*`, or dotted paths such as `workPhone.e164`.
    pub fields: Vec<String>,
}
