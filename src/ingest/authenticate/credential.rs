//! Schemes that present the secret itself: in a header of its own, as a bearer, or with a username.

use base64::Engine;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;

use super::{LENIENT, joined, only};

/// The SHA-256 of each valid credential: of equal length whatever the credentials' lengths.
#[derive(Clone)]
pub struct Digests(Vec<[u8; 32]>);

impl std::fmt::Debug for Digests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A digest of a weak secret gives it away.
        write!(f, "Digests({} of [redacted])", self.0.len())
    }
}

impl Digests {
    /// Takes secrets that are presented as they are.
    pub(super) fn of(secrets: &[Secret]) -> Self {
        Self(secrets.iter().map(|secret| Sha256::digest(secret.expose()).into()).collect())
    }

    /// Takes secrets that are presented behind a username and a colon.
    pub(super) fn of_user(username: Option<&str>, secrets: &[Secret]) -> Result<Self, InvalidSetting> {
        let username = username.ok_or_else(|| InvalidSetting::new("username", "is missing: \"basic\" needs it"))?;
        // RFC 7617 section 2. Without a colon in the username the joined text is unambiguous.
        if username.is_empty() || username.contains(':') || username.contains(char::is_control) {
            return Err(InvalidSetting::new("username", "must not be empty, hold a colon or a control character"));
        }
        let digest = |secret: &Secret| {
            Sha256::new().chain_update(username).chain_update(":").chain_update(secret.expose()).finalize().into()
        };
        Ok(Self(secrets.iter().map(digest).collect()))
    }

    /// Judges what a request presents.
    pub(super) fn accept(&self, presented: Option<&[u8]>) -> Choice {
        let Some(presented) = presented else { return Choice::from(0) };
        let presented: [u8; 32] = Sha256::digest(presented).into();
        joined(self.0.iter().map(|digest| digest.ct_eq(&presented)))
    }
}

/// Returns the decoded `username:secret` of `Authorization: Basic`.
pub(super) fn basic(headers: &HeaderMap) -> Option<Zeroizing<Vec<u8>>> {
    LENIENT.decode(authorization(headers, b"basic")?).ok().map(Zeroizing::new)
}

/// Returns the token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    authorization(headers, b"bearer")
}

/// Returns what follows a scheme, whose name is case-insensitive (RFC 9110 section 11.1).
fn authorization<'a>(headers: &'a HeaderMap, scheme: &[u8]) -> Option<&'a [u8]> {
    let value = only(headers, &header::AUTHORIZATION)?;
    let (given, rest) = value.split_at_checked(scheme.len())?;
    let credentials = rest.strip_prefix(b" ")?.trim_ascii();
    (given.eq_ignore_ascii_case(scheme) && !credentials.is_empty()).then_some(credentials)
}
