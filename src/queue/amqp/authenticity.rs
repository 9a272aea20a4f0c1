//! Authentic messages: a MAC at the end of each event's body, so that a consumer applies only what this program published.
//!
//! ```text
//! {"v":1, … ,"mac":"<64 hex digits>"}
//! ```
//!
//! The MAC is HMAC-SHA-256 (RFC 2104) over [`LABEL`] and every byte of the body before `,"mac":"`. It is a part of the
//! body, so the journal, replays, restored events and dead letters keep it. Consumers without a key ignore the field. It does
//! not cover headers: they hold the trace context and the mark of a redelivery, which only makes an event weaker.
//!
//! An authentic message that is published again by somebody else is authentic. It has the effect of its event, once more.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::domain::{Event, Secret};
use crate::queue::{DeadLetterReason, Undecodable, wire};

use super::config::Config;

/// The purpose of the MAC, which it covers first.
const LABEL: &[u8] = b"profile-edge queue message 1\0";

/// What precedes the MAC in a body.
const FIELD: &[u8] = b",\"mac\":\"";

/// The hex digits of a MAC.
const DIGITS: usize = 64;

/// The keys of messages.
pub(super) struct MessageKeys {
    /// The first one signs, every one verifies; none: messages are neither signed nor verified.
    keys: Vec<Zeroizing<Vec<u8>>>,
    /// Whether other messages are refused.
    required: bool,
}

impl MessageKeys {
    /// Reads the keys of a valid configuration.
    pub(super) fn new(config: &Config) -> Self {
        let keys = config.mac_key.iter().chain(&config.mac_previous).filter_map(Secret::key_material);
        Self { keys: keys.collect(), required: config.mac_required }
    }

    /// Encodes an event, with its MAC if there is a key.
    pub(super) fn encode(&self, event: &Event) -> Bytes {
        let body = wire::encode(event);
        let Some((key, unfinished)) = self.keys.first().zip(body.strip_suffix(b"}")) else { return body };
        let mac = hex::encode(mac(key, unfinished).finalize().into_bytes());
        [unfinished, FIELD, mac.as_bytes(), b"\"}"].concat().into()
    }

    /// Decodes an event.
    ///
    /// # Errors
    ///
    /// As [`wire::decode`]; and, where a MAC is required, [`DeadLetterReason::Unauthentic`] without a MAC under one of the keys.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Event, Undecodable> {
        let event = wire::decode(bytes)?;
        if self.required && !self.is_authentic(bytes) {
            return Err(wire::undecodable(bytes, DeadLetterReason::Unauthentic));
        }
        Ok(event)
    }

    fn is_authentic(&self, bytes: &[u8]) -> bool {
        let given = || {
            let (rest, digits) = bytes.strip_suffix(b"\"}")?.split_last_chunk::<DIGITS>()?;
            Some((rest.strip_suffix(FIELD)?, hex::decode(digits).ok()?))
        };
        let verify = |(text, given): (&[u8], Vec<u8>)| {
            // In constant time.
            self.keys.iter().any(|key| mac(key, text).verify_slice(&given).is_ok())
        };
        given().is_some_and(verify)
    }
}

impl std::fmt::Debug for MessageKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MessageKeys({}, required: {})", self.keys.len(), self.required)
    }
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of any length (RFC 2104 section 2).
    let mac = Hmac::new_from_slice(key).expect("any length is a key");
    mac.chain_update(LABEL).chain_update(text)
}

#[cfg(test)]
mod tests {
    use crate::domain::Redelivery;

    use super::*;

    fn keys(bytes: &[u8], required: bool) -> MessageKeys {
        MessageKeys { keys: bytes.iter().map(|byte| Zeroizing::new(vec![*byte; 32])).collect(), required }
    }

    fn refused(keys: &MessageKeys, body: &[u8]) -> Option<DeadLetterReason> {
        keys.decode(body).err().map(|undecodable| undecodable.reason)
    }

    #[test]
    fn a_message_is_authentic_only_under_a_known_key() {
        let event = Event { again: Some(Redelivery::Redriven), ..Event::example() };
        let unsigned = keys(&[], false).encode(&event);
        assert_eq!(unsigned, wire::encode(&event));
        let signed = keys(&[1], true).encode(&event);
        // Consumers without keys, and of an earlier version, read it too.
        assert_eq!(wire::decode(&signed).unwrap(), event);
        for (verifying, body, accepted) in [
            (keys(&[1], true), &signed, true),
            (keys(&[2, 1], true), &signed, true),
            (keys(&[2], true), &signed, false),
            (keys(&[], true), &signed, false),
            (keys(&[1], true), &unsigned, false),
            (keys(&[1], false), &unsigned, true),
            (keys(&[2], false), &signed, true),
            (keys(&[], false), &signed, true),
        ] {
            let expected = (!accepted).then_some(DeadLetterReason::Unauthentic);
            assert_eq!(refused(&verifying, body), expected, "{verifying:?}");
        }
    }

    #[test]
    fn a_message_that_was_altered_in_any_byte_is_refused() {
        let keys = keys(&[1], true);
        let signed = keys.encode(&Event::example());
        assert!(keys.decode(&signed).is_ok());
        for byte in 0..signed.len() {
            for bit in 0..8 {
                let mut altered = signed.to_vec();
                altered[byte] ^= 1 << bit;
                // The case of a hex digit has no meaning.
                if !altered.eq_ignore_ascii_case(&signed) || byte < signed.len() - DIGITS - 2 {
                    assert!(keys.decode(&altered).is_err(), "byte {byte}, bit {bit}");
                }
            }
            assert!(keys.decode(&signed[..byte]).is_err());
        }
    }
}
