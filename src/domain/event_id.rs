//! The ids of events.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

/// The id of an event, as senders and operators see it: 1–128 characters of `[A-Za-z0-9._:+-]`.
///
/// Ingest replaces a sender's id by its digest unless it [is made by a machine](Self::of_machine) and contains no
/// customer id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId(Arc<str>);

/// The text is not an event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 128 characters of A-Z, a-z, 0-9 and . _ : + -")]
pub struct InvalidEventId;

impl EventId {
    /// The maximum length of an event id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Generates an id (a UUID of version 7, RFC 9562), for an event without one.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Takes an id that is made by a machine, and so is no name or number of a person: a UUID (RFC 9562), a ULID, or 32
    /// to 128 hex digits. No phone, card or account number is that long.
    #[must_use]
    pub fn of_machine(text: &str) -> Option<Self> {
        let is_uuid = text.len() == uuid::fmt::Hyphenated::LENGTH && Uuid::try_parse(text).is_ok();
        (is_uuid || is_ulid(text) || is_hex(text)).then(|| Self(text.into()))
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns whether a text is a ULID: 26 digits of Crockford's base 32, the first at most 7.
fn is_ulid(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_alphanumeric() && !matches!(b.to_ascii_uppercase(), b'I' | b'L' | b'O' | b'U');
    text.len() == 26 && text.starts_with(|first: char| ('0'..='7').contains(&first)) && text.bytes().all(is_digit)
}

fn is_hex(text: &str) -> bool {
    (32..=EventId::MAX_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'+' | b'-');
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidEventId)
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
