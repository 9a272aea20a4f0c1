//! What stands at a key.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{At, Identity, Modified, Profile, ProfileBody, Timestamp};

use super::lease::Token;

/// What stands at K: a record, a tombstone, a lease, or something that nobody can read.
#[derive(Clone, Debug)]
pub enum Entry {
    /// What a fill wrote: a profile, a negative answer, or a pointer to the canonical customer.
    Record(Record),
    /// The customer was deleted; K is not filled until a re-creation.
    Tombstone(Tombstone),
    /// Someone is fetching.
    Leased(Leased),
    /// Bytes that are no entry of this version: a miss, leased over by compare-and-set.
    Corrupt(Bytes),
}

/// What a fill wrote. It carries whom it is about and which fill wrote it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Whom it is about: must match the key it stands at, or it is corrupt (a miss).
    pub identity: Identity,
    /// The fill that wrote it: what a refresh compares (rule 4), never the content.
    pub token: Token,
    /// What was fetched.
    pub content: Content,
    /// When it was fetched, by our clock: where `Age` counts from.
    pub fetched_at: Timestamp,
    /// How long the fetch took: what an early refresh weighs.
    pub fetch_cost: Duration,
    /// How long it is fresh, from `fetched_at`.
    pub ttl: Duration,
    /// How much longer it may be served while Genesys is failing. Zero when unsettled.
    pub grace: Duration,
    /// Whether it has caught up with everything announced (rule 7).
    pub settled: bool,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub enum Content {
    /// A profile.
    Found(Found),
    /// Genesys knows no such customer.
    Negative,
    /// The customer was merged into this one, under whose key the profile is kept.
    Pointer(Identity),
    /// Any of these, sealed; of what [`Store::get`](super::Store::get) shows, what does not open: a miss, to be
    /// replaced as a [dead](super::Base::Dead) record.
    Sealed(Ciphertext),
}

/// What a [seal](super::sealed) holds. Cloning is cheap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ciphertext(Bytes);

/// A stored profile.
#[derive(Clone, Debug)]
pub struct Found {
    /// The JSON, verbatim.
    pub body: ProfileBody,
    /// Its validator, computed once, when it was fetched: see [`ProfileBody::validator`].
    pub validator: [u8; 16],
    /// Its `modifyDate`, where it has one.
    pub modified: Option<Modified>,
}

impl From<Profile> for Found {
    /// Takes a fetched profile, and computes its validator.
    fn from(profile: Profile) -> Self {
        Self { validator: profile.body.validator(), body: profile.body, modified: profile.modified }
    }
}

/// The mark of a deletion.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// The write that placed it: what a verified replacement compares.
    pub token: Token,
    /// When the customer was deleted, by Genesys' clock, where the event told.
    pub at: Option<At>,
    /// When it was written, by our clock.
    pub written_at: Timestamp,
}

/// Someone is fetching.
#[derive(Clone, Copy, Debug)]
pub struct Leased {
    /// The lease.
    pub token: Token,
    /// When it runs out, by our clock.
    pub until: Timestamp,
}

impl Ciphertext {
    /// Wraps sealed bytes.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the sealed bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Gives the sealed bytes away, for opening them where they are.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertext({} bytes)", self.0.len())
    }
}

impl Record {
    /// Returns how long the store keeps it: TTL and grace.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.ttl.saturating_add(self.grace)
    }
}

impl Entry {
    /// Returns the entry with its body, or its unreadable bytes, left out. What is sealed stays, for who can open it.
    #[must_use]
    pub fn without_body(self) -> Self {
        match self {
            Self::Record(mut record) => {
                if let Content::Found(found) = &mut record.content {
                    found.body = ProfileBody::new(Bytes::new());
                }
                Self::Record(record)
            }
            Self::Corrupt(_) => Self::Corrupt(Bytes::new()),
            Self::Tombstone(_) | Self::Leased(_) => self,
        }
    }

    /// Returns the token of the write that placed this entry, where it has one.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        match self {
            Self::Record(record) => Some(record.token),
            Self::Tombstone(tombstone) => Some(tombstone.token),
            Self::Leased(leased) => Some(leased.token),
            Self::Corrupt(_) => None,
        }
    }
}
