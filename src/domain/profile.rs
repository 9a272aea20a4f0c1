//! Profiles: the JSON of one customer, exactly as Genesys sent it.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::customer::CustomerId;
use super::stamps::Modified;

/// The deepest nesting of a profile: objects and arrays within each other, the profile itself included. Profiles of Genesys
/// have about five levels.
pub const MAX_NESTING: usize = 64;

/// The JSON text of a profile: personal data, so it cannot be printed. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct ProfileBody(Bytes);

impl ProfileBody {
    /// Wraps the bytes of a JSON object.
    #[must_use]
    pub const fn new(json: Bytes) -> Self {
        Self(json)
    }

    /// Returns the JSON text, for storing or answering; never for printing.
    #[must_use]
    pub const fn expose(&self) -> &Bytes {
        &self.0
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the body is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the body is nested deeper than [`MAX_NESTING`]. Takes linear time and no memory; the body need not be
    /// JSON.
    #[must_use]
    pub fn is_nested_too_deep(&self) -> bool {
        // Almost no profile has so many brackets, and counting them is much faster than following them.
        let opening = |byte: &u8| u8::from(matches!(byte, b'{' | b'['));
        // Counts of bytes in short chunks fit a byte, so that the compiler counts many at once.
        let opening: usize = self.0.chunks(255).map(|chunk| usize::from(chunk.iter().map(opening).sum::<u8>())).sum();
        opening > MAX_NESTING && deepest(&self.0) > MAX_NESTING
    }

    /// Returns a validator for this body (RFC 9110 section 8.8.3): 16 bytes of its SHA-256.
    #[must_use]
    pub fn validator(&self) -> [u8; 16] {
        let mut validator = [0; 16];
        validator.copy_from_slice(&Sha256::digest(&self.0)[..16]);
        validator
    }
}

/// Returns the deepest nesting of a JSON text.
fn deepest(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Skips the rest of a string and its closing quote.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

impl fmt::Debug for ProfileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProfileBody([redacted], {} bytes)", self.0.len())
    }
}

/// A fetched profile, with the fields that the cache needs.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The JSON, unchanged.
    pub body: ProfileBody,
    /// The `modifyDate` of the body, if it has one.
    pub modified: Option<Modified>,
    /// The `id` of the body: the canonical customer. After a merge it differs from the requested id.
    pub canonical: Option<CustomerId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_too_deep(json: String) -> bool {
        ProfileBody::new(json.into()).is_nested_too_deep()
    }

    #[test]
    fn only_brackets_within_each_other_and_outside_strings_are_levels() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(nested(MAX_NESTING)));
        assert!(is_too_deep(nested(MAX_NESTING + 1)));
        assert!(is_too_deep("{\"a\":".repeat(MAX_NESTING + 1)), "an unfinished body");
        assert!(!is_too_deep(nested(1).repeat(1_000)), "beside each other");
        assert!(!is_too_deep(format!("\"{}\"", nested(1_000))), "in a string");
        assert!(!is_too_deep(format!("\"\\\"{}\"", "[".repeat(1_000))), "after an escaped quote");
        assert!(is_too_deep(format!("\"\\\\\"{}", nested(1_000))), "after an escaped backslash");
        assert!(is_too_deep(format!("{}{}", "]".repeat(1_000), nested(1_000))), "after closing brackets");
    }
}
