//! Entries: the values of entry keys.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{EventTime, IdentifierMarks, Identity, Modified, Profile, ProfileBody, Timestamp};

use super::token::Token;

/// The value of an entry key: a record, a tombstone, a lease, or unreadable bytes.
#[derive(Clone, Debug)]
pub enum Entry {
    /// What a fill wrote: a profile, a negative answer, or a pointer to a customer.
    Record(Record),
    /// The customer was deleted; the key is not filled until a re-creation.
    Tombstone(Tombstone),
    /// A lookup is fetching.
    Leased(Leased),
    /// Bytes that are not an entry of a known version: a miss. A lease replaces them by compare-and-set.
    Corrupt(Bytes),
}

/// What a fill wrote, with the identity of the customer and the token of the fill.
#[derive(Clone, Debug)]
pub struct Record {
    /// The customer or the identifier. It must match the key, or the record is corrupt (a miss).
    pub identity: Identity,
    /// The fill that wrote it. A refresh compares it, and never the content:
    /// [`rules::compare-the-read-record`](crate::rules#compare-the-read-record).
    pub token: Token,
    /// What was fetched.
    pub content: Content,
    /// When it was fetched, by our clock: the start of `Age`.
    pub fetched_at: Timestamp,
    /// How long the fetch took, for the decision about an early refresh.
    pub fetch_cost: Duration,
    /// How long it is fresh, from `fetched_at`.
    pub ttl: Duration,
    /// How much longer it may be served while Genesys fails. Zero when unsettled.
    pub grace: Duration,
    /// Whether it is as new as all announced events: [`rules::unsettled`](crate::rules#unsettled).
    pub settled: bool,
    /// The tenant's generation when it was fetched: see [`clears`](super::clears). Zero before the first clear.
    pub generation: u64,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub enum Content {
    /// A profile.
    Found(Found),
    /// Genesys has no such customer.
    Negative,
    /// The customer was merged into this one, whose key holds the profile.
    Pointer(Identity),
    /// The customer that has this identifier.
    IdentifierPointer(IdentifierPointer),
    /// Any of these, sealed. If [`Store::get`](super::Store::get) returns it, it could not be opened: a miss, to be
    /// replaced like a [dead](super::Base::Dead) record.
    Sealed(Ciphertext),
}

/// A [sealed](super::sealed) content. Cloning is cheap.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ciphertext(Bytes);

/// The customer that has an identifier: see [`rules::identifier-pointer`](crate::rules#identifier-pointer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifierPointer {
    /// The customer, whose key may hold the profile.
    pub to: Identity,
    /// The token of the record that was filled there from the same request, if one was.
    pub filled_with: Option<Token>,
}

/// A stored profile.
#[derive(Clone, Debug)]
pub struct Found {
    /// The JSON, unchanged.
    pub body: ProfileBody,
    /// The validator, computed once after the fetch: see [`ProfileBody::validator`].
    pub validator: [u8; 16],
    /// The `modifyDate`, if the profile has one.
    pub modified: Option<Modified>,
    /// The identifiers that the profile shows; empty if none were computed.
    pub identifiers: IdentifierMarks,
}

impl From<Profile> for Found {
    /// Converts a fetched profile and computes its validator, but not the marks of its identifiers.
    fn from(profile: Profile) -> Self {
        let (validator, identifiers) = (profile.body.validator(), IdentifierMarks::default());
        Self { validator, body: profile.body, modified: profile.modified, identifiers }
    }
}

/// Marks a deleted customer.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// The write that placed it. A verified replacement compares it.
    pub token: Token,
    /// When the customer was deleted, by the clock of Genesys, if the event says it.
    pub at: Option<EventTime>,
    /// When it was written, by our clock.
    pub written_at: Timestamp,
}

/// The lease of a lookup that is fetching.
#[derive(Clone, Copy, Debug)]
pub struct Leased {
    /// The lease.
    pub token: Token,
    /// When it expires, by our clock.
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

    /// Returns the sealed bytes, to be opened in place.
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
    /// Returns how long the store keeps the record: TTL and grace.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.ttl.saturating_add(self.grace)
    }

    /// Returns the record with an age of at least `age` at `now`: the clock may have been set back since the fetch.
    #[must_use]
    pub fn at_least_as_old_as(self, age: Duration, now: Timestamp) -> Self {
        Self { fetched_at: self.fetched_at.min(now.minus(age)), ..self }
    }
}

impl Entry {
    /// Returns the entry without its body or its unreadable bytes. A sealed content stays, to be opened later.
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

    /// Returns the token of the write that placed this entry, if it has one.
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
