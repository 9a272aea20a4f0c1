//! Tokens: the identities of writes.

use std::fmt;

/// Identifies one write at a key: a lease, a record or a tombstone.
///
/// 128 random bits, drawn for each attempt and never reused. So "the key still holds what I saw" is a comparison of
/// tokens and never of contents: [`rules::lease-is-the-value`](crate::rules#lease-is-the-value) and
/// [`rules::compare-the-read-record`](crate::rules#compare-the-read-record).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

impl Token {
    /// Draws a new token.
    #[must_use]
    pub fn draw() -> Self {
        Self(rand::random())
    }

    /// Creates a token from the bytes of a stored record.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
