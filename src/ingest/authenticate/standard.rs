//! Standard Webhooks 1.0, the symmetric signature `v1`.
//!
//! The signature covers `{webhook-id}.{webhook-timestamp}.{raw body}`, with the unchanged bytes of the headers. The
//! timestamp is the time of the attempt. It must be within [`TOLERANCE`] of our clock, before or after it. A dedup
//! window that is longer remembers its id, so a recorded request has no second effect. A sender that rotates its secret
//! signs with both, and separates the signatures by a space; versions other than `v1` are ignored.

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

use super::{LENIENT, any_match, only};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The maximum distance of a timestamp from our clock.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The usual prefix of a symmetric secret.
pub(super) const PREFIX: &str = "whsec_";

/// The minimum length of a key, in bytes: 128 bits. The specification asks senders for 24 bytes; the test cases of the
/// reference libraries use 23.
const SHORTEST_KEY: usize = 16;

/// The valid keys.
#[derive(Clone)]
pub(super) struct StandardWebhooks(Vec<Zeroizing<Vec<u8>>>);

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

    /// Returns whether a body could exist that the headers sign: all are given, and recent.
    pub(super) fn may_accept(headers: &HeaderMap, now: Timestamp) -> bool {
        SignatureHeaders::read(headers)
            .is_some_and(|signed| signed.is_recent(now) && signed.signatures().next().is_some())
    }

    /// Checks a request.
    pub(super) fn accept(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Choice {
        let Some(signed) = SignatureHeaders::read(headers).filter(|signed| signed.is_recent(now)) else {
            return Choice::from(0);
        };
        any_match(self.0.iter().map(|key| {
            let expected = mac(key, &[signed.id.as_bytes(), b".", signed.timestamp, b".", body]);
            any_match(signed.signatures().map(|signature| signature.ct_eq(&expected)))
        }))
    }
}

/// The three headers of a signed request.
struct SignatureHeaders<'a> {
    id: &'a str,
    timestamp: &'a [u8],
    seconds: i64,
    signatures: &'a [u8],
}

impl<'a> SignatureHeaders<'a> {
    fn read(headers: &'a HeaderMap) -> Option<Self> {
        let timestamp = only(headers, &TIMESTAMP)?;
        // Only digits: the specification asks for an integer, so a sender signs no other form.
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

/// Returns the id of the message, which must be given once and not be empty.
pub(super) fn id(headers: &HeaderMap) -> Option<&str> {
    only(headers, &ID).and_then(|id| std::str::from_utf8(id).ok()).filter(|id| !id.is_empty())
}

/// Decodes the base64 of a MAC: exactly 44 characters and 32 bytes.
pub(super) fn base64_mac(encoded: &[u8]) -> Option<[u8; 32]> {
    let encoded = (encoded.len() == 44).then_some(encoded)?;
    // 44 characters can encode 33 bytes, and the decoder needs room for them.
    let mut decoded = [0; 33];
    let length = STANDARD.decode_slice(encoded, &mut decoded).ok()?;
    decoded.first_chunk().copied().filter(|_| length == 32)
}

/// Returns the HMAC-SHA-256 of the concatenated parts.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("hmac takes keys of any length");
    parts.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
