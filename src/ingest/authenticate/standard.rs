//! Standard Webhooks 1.0, the symmetric signature `v1`.
//!
//! Signed is `{webhook-id}.{webhook-timestamp}.{raw body}`, with the bytes of the headers as they came. The
//! timestamp is of the attempt, and must be within [`TOLERANCE`] of our clock, on either side: together with
//! the dedup window, which remembers ids for much longer, nothing that was recorded can be played again. A
//! sender that rotates its secret signs with both and sends the signatures with a space in between; versions
//! other than `v1` are passed over.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::domain::{Secret, Timestamp};
use crate::invalid::InvalidSetting;

use super::{LENIENT, joined, only};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How far a timestamp may be from our clock.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// What a symmetric secret starts with, usually.
const PREFIX: &str = "whsec_";

/// The shortest key, in bytes: 128 bits. The specification asks senders for 24, the test cases of the
/// reference libraries use 23.
const SHORTEST_KEY: usize = 16;

/// The valid keys.
#[derive(Clone)]
pub struct StandardWebhooks(Vec<Zeroizing<Vec<u8>>>);

impl std::fmt::Debug for StandardWebhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StandardWebhooks({} keys, [redacted])", self.0.len())
    }
}

impl StandardWebhooks {
    /// Decodes the secrets.
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, InvalidSetting> {
        let key = |secret: &Secret| {
            let encoded = secret.expose().strip_prefix(PREFIX).unwrap_or(secret.expose());
            let key = LENIENT.decode(encoded).ok().map(Zeroizing::new).filter(|key| key.len() >= SHORTEST_KEY);
            key.ok_or_else(|| InvalidSetting::new("secrets", "must be \"whsec_\" and base64 of 16 bytes or more"))
        };
        secrets.iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// Judges a request.
    pub(super) fn accept(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Choice {
        let Some(signed) = Signed::read(headers).filter(|signed| signed.is_recent(now)) else {
            return Choice::from(0);
        };
        joined(self.0.iter().map(|key| {
            let expected = mac(key, &[signed.id.as_bytes(), b".", signed.timestamp, b".", body]);
            joined(signed.signatures().map(|signature| signature.ct_eq(&expected)))
        }))
    }
}

/// What the three headers say.
struct Signed<'a> {
    id: &'a str,
    timestamp: &'a [u8],
    seconds: i64,
    signatures: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(headers: &'a HeaderMap) -> Option<Self> {
        let timestamp = only(headers, &TIMESTAMP)?;
        // Digits only: the integer of the specification has one spelling, so nothing else was signed.
        let digits = std::str::from_utf8(timestamp).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
        let seconds = digits.parse().ok()?;
        Some(Self { id: id(headers)?, timestamp, seconds, signatures: only(headers, &SIGNATURE)? })
    }

    fn is_recent(&self, now: Timestamp) -> bool {
        now.as_millis().div_euclid(1_000).abs_diff(self.seconds) <= TOLERANCE.as_secs()
    }

    fn signatures(&self) -> impl Iterator<Item = [u8; 32]> {
        self.signatures.split(|b| *b == b' ').filter_map(|versioned| base64_mac(versioned.strip_prefix(b"v1,")?))
    }
}

/// Returns the id of the message: not empty, and given once.
pub(super) fn id(headers: &HeaderMap) -> Option<&str> {
    only(headers, &ID).and_then(|id| std::str::from_utf8(id).ok()).filter(|id| !id.is_empty())
}

/// Decodes the base64 of a MAC: 44 characters, 32 bytes, nothing shorter.
pub(super) fn base64_mac(encoded: &[u8]) -> Option<[u8; 32]> {
    let encoded = (encoded.len() == 44).then_some(encoded)?;
    // The engine wants room for what the length may hold.
    let mut decoded = [0; 33];
    let length = STANDARD.decode_slice(encoded, &mut decoded).ok()?;
    decoded.first_chunk().copied().filter(|_| length == 32)
}

/// Makes the HMAC-SHA-256 of parts that follow each other.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("hmac takes keys of any length");
    parts.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
