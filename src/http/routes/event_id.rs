//! The ids of the events of the change feed: positions that only this process can read.
//!
//! The feed counts the changes of all tenants, so a plain position would show each client how many there are. An id is the
//! same whenever it is written: a client that resumes gets back what it sent. It is a MAC of the position, and the position
//! hidden by a MAC of that (as in SIV, RFC 5297, with HMAC for both parts).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::store::changes::FeedPosition;

/// The length of each part, in bytes.
const PART: usize = 8;

/// Writes and reads ids, with a key of this process.
#[derive(Clone)]
pub(super) struct EventIds(Hmac<Sha256>);

impl EventIds {
    /// Draws a key.
    pub(super) fn new() -> Self {
        // HMAC takes keys of any length (RFC 2104 section 2).
        Self(Hmac::new_from_slice(&rand::random::<[u8; 32]>()).expect("hmac takes keys of any length"))
    }

    /// Returns the id of the event before a position: 32 hex digits.
    pub(super) fn write(&self, position: FeedPosition) -> String {
        let tag = self.tag(position);
        format!("{tag:016x}{:016x}", position.next ^ self.mask(tag))
    }

    /// Returns the position of an id that was written for a feed; `None` for any other text.
    pub(super) fn read(&self, id: &str, epoch: u64) -> Option<FeedPosition> {
        let (tag, hidden) = id.split_at_checked(2 * PART)?;
        let number = |digits: &str| {
            let is_hex = digits.len() == 2 * PART && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let (tag, hidden) = (number(tag)?, number(hidden)?);
        let position = FeedPosition { epoch, next: hidden ^ self.mask(tag) };
        (self.tag(position) == tag).then_some(position)
    }

    fn tag(&self, position: FeedPosition) -> u64 {
        self.mac(&[&[0], &position.epoch.to_be_bytes()[..], &position.next.to_be_bytes()].concat())
    }

    fn mask(&self, tag: u64) -> u64 {
        self.mac(&[&[1], &tag.to_be_bytes()[..]].concat())
    }

    fn mac(&self, text: &[u8]) -> u64 {
        let mac = self.0.clone().chain_update(text).finalize().into_bytes();
        mac.iter().take(PART).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl fmt::Debug for EventIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventIds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_by_its_process_only() {
        let ids = EventIds::new();
        for (epoch, next) in [(0, 0), (u64::MAX, 7), (1, u64::MAX)] {
            let position = FeedPosition { epoch, next };
            let id = ids.write(position);
            assert_eq!((ids.write(position), ids.read(&id, epoch)), (id.clone(), Some(position)));
            assert_eq!((ids.read(&id, epoch ^ 1), EventIds::new().read(&id, epoch)), (None, None));
        }
        for text in ["", "-", "1", &"0".repeat(32), &"+".repeat(32), &"ä".repeat(16)] {
            assert_eq!(ids.read(text, 1), None, "{text}");
        }
    }
}
