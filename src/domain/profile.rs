//! Profiles: the JSON of one customer, exactly as Genesys sent it.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::customer::CustomerId;
use super::stamps::Modified;

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

    /// Returns a validator for this body (RFC 9110 section 8.8.3): 16 bytes of its SHA-256.
    #[must_use]
    pub fn validator(&self) -> [u8; 16] {
        let mut validator = [0; 16];
        validator.copy_from_slice(&Sha256::digest(&self.0)[..16]);
        validator
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
