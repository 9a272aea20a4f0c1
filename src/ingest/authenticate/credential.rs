//! Schemes that send the secret itself: in a header of its own, as a bearer token, or with a username.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::domain::Secret;
use crate::invalid::InvalidSetting;

use super::any_match;

/// The SHA-256 of each valid credential: all have the same length.
#[derive(Clone)]
pub(super) struct CredentialDigests(Vec<[u8; 32]>);

impl std::fmt::Debug for CredentialDigests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The digest of a weak secret reveals it.
        write!(f, "CredentialDigests({} of [redacted])", self.0.len())
    }
}

impl CredentialDigests {
    /// Hashes secrets that are sent alone.
    pub(super) fn of(secrets: &[Secret]) -> Self {
        Self(secrets.iter().map(|secret| Sha256::digest(secret.expose()).into()).collect())
    }

    /// Hashes secrets that are sent after a username and a colon.
    pub(super) fn of_user(username: Option<&str>, secrets: &[Secret]) -> Result<Self, InvalidSetting> {
        let username = username.ok_or_else(|| InvalidSetting::new("username", "is missing: \"basic\" needs it"))?;
        // RFC 7617 section 2. A colon in the username would make the joined text ambiguous.
        if username.is_empty() || username.contains(':') || username.contains(char::is_control) {
            return Err(InvalidSetting::new("username", "must not be empty, hold a colon or a control character"));
        }
        let digest = |secret: &Secret| {
            Sha256::new().chain_update(username).chain_update(":").chain_update(secret.expose()).finalize().into()
        };
        Ok(Self(secrets.iter().map(digest).collect()))
    }

    /// Checks the credential of a request.
    pub(super) fn accept(&self, presented: Option<&[u8]>) -> Choice {
        let Some(presented) = presented else { return Choice::from(0) };
        let presented: [u8; 32] = Sha256::digest(presented).into();
        any_match(self.0.iter().map(|digest| digest.ct_eq(&presented)))
    }
}
