//! Events: what Genesys announced about a customer, free of personal data.
//!
//! An event names its customers by the digests of their keys. It is what travels through the queue;
//! neither a customer id nor any part of a profile's body is in it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::key::{Digest, Key};
use super::stamps::{Precision, Stamps};
use super::tenant::TenantId;
use super::time::Timestamp;
use super::traceparent::Traceparent;

/// What happened to a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The customer came into being.
    Created,
    /// The profile changed.
    Updated,
    /// The customer was deleted: its key gets a tombstone.
    Deleted,
    /// Customers became one; every id that the event names is evicted.
    Merged,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Created, Self::Updated, Self::Deleted, Self::Merged];

    /// Returns the wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Merged => "merged",
        }
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// The envelope in which an event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Our own flat form.
    Flat,
    /// A Genesys notification envelope (WebSocket form).
    Notification,
    /// An Amazon EventBridge event.
    EventBridge,
    /// A `CloudEvents` 1.0 event, structured or binary.
    CloudEvents,
    /// Made by an operator's command.
    Operator,
    /// A shape that this version does not know; a newer version published the event.
    Other,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 6] =
        [Self::Flat, Self::Notification, Self::EventBridge, Self::CloudEvents, Self::Operator, Self::Other];

    /// Returns the wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Notification => "notification",
            Self::EventBridge => "eventbridge",
            Self::CloudEvents => "cloudevents",
            Self::Operator => "operator",
            Self::Other => "other",
        }
    }
}

impl FromStr for Shape {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|shape| shape.as_str() == text).ok_or(())
    }
}

/// The id of an event, as it is shown to senders and operators: 1–128 characters of
/// `[A-Za-z0-9._:+-]`. A sender's id that is longer, has other characters or repeats a customer id
/// is replaced by its digest before it gets here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId(Arc<str>);

/// The text is not an event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 128 characters of A-Z, a-z, 0-9 and . _ : + -")]
pub struct InvalidEventId;

impl EventId {
    /// The longest event id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Draws a new id (a UUID of version 7, RFC 9562), for an event that came without one.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
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

/// The id of a replay that an operator asked for: a UUID of version 7 (RFC 9562).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplayId(Uuid);

impl ReplayId {
    /// Draws a new id.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

impl FromStr for ReplayId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Self).map_err(|_| ())
    }
}

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an event is handed out once more, maybe long after it was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// Its effect may have been lost; where it was not, this is a duplicate.
    Restored,
    /// An operator put it back that had been given up on.
    Redriven,
    /// An operator wants its effect once more, also where it has had it.
    Replayed(ReplayId),
}

impl Redelivery {
    /// Returns the wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Redriven => "redriven",
            Self::Replayed(_) => "replayed",
        }
    }
}

/// An event, ready for the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id, for people.
    pub id: EventId,
    /// The 16 bytes by which its sender's identity is remembered: see [`Event::dedup_digest`].
    pub identity: Digest,
    /// The tenant whose customers it names.
    pub tenant: TenantId,
    /// The customers it names; never empty, no duplicates.
    pub keys: Vec<Digest>,
    /// What happened.
    pub kind: Kind,
    /// When, by Genesys' clocks.
    pub stamps: Stamps,
    /// When we took it, by our clock: for the lag metric, and for finding it in a journal.
    pub received_at: Timestamp,
    /// The envelope in which it came.
    pub shape: Shape,
    /// Its place in the trace of whoever caused it.
    pub traceparent: Option<Traceparent>,
    /// An operator asked to remove a tombstone too.
    pub force: bool,
    /// It is handed out once more; `None` the first time.
    pub again: Option<Redelivery>,
}

impl Event {
    /// Returns the full keys of the customers that this event names.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys.iter().map(|digest| Key::new(&self.tenant, *digest))
    }

    /// Returns the event as it is put back after it was given up on; a replay stays one.
    #[must_use]
    pub fn redriven(&self) -> Self {
        let replayed = self.again.filter(|again| matches!(again, Redelivery::Replayed(_)));
        Self { again: replayed.or(Some(Redelivery::Redriven)), ..self.clone() }
    }

    /// Returns what the dedup window remembers: a digest over the sender's identity, kind, stamps
    /// and keys, so that an id which a sender uses again for something else swallows nothing.
    #[must_use]
    pub fn dedup_digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.identity.as_bytes());
        hash.update([self.kind as u8, u8::from(self.force)]);
        match self.stamps.modified {
            Some(modified) => hash.update(modified.as_millis().to_be_bytes()),
            None => hash.update([0xff]),
        }
        match self.stamps.at {
            Some(at) => {
                hash.update(at.as_millis().to_be_bytes());
                hash.update([u8::from(at.precision() == Precision::Millis)]);
            }
            None => hash.update([0xff]),
        }
        for key in &self.keys {
            hash.update(key.as_bytes());
        }
        cut(hash)
    }

    /// Returns the mark that applying this event leaves: its [`dedup_digest`](Self::dedup_digest), joined with the
    /// id of the replay where an operator wants its effect once more.
    #[must_use]
    pub fn mark(&self) -> Digest {
        let own = self.dedup_digest();
        match self.again {
            Some(Redelivery::Replayed(ReplayId(replay))) => {
                cut(Sha256::new().chain_update(own.as_bytes()).chain_update(replay.as_bytes()))
            }
            Some(Redelivery::Restored | Redelivery::Redriven) | None => own,
        }
    }
}

#[cfg(test)]
impl Event {
    /// Makes an event for tests that mind little of what it says.
    pub(crate) fn example() -> Self {
        Self {
            id: EventId::fresh(),
            identity: Digest::from_bytes([7; 16]),
            // A tenant id is one.
            tenant: "10001".parse().expect("a tenant id"),
            keys: vec![Digest::from_bytes([1; 16])],
            kind: Kind::Updated,
            stamps: Stamps::default(),
            received_at: Timestamp::from_millis(1_741_064_767_500),
            shape: Shape::Flat,
            traceparent: None,
            force: false,
            again: None,
        }
    }
}

fn cut(hash: Sha256) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finalize()[..16]);
    Digest::from_bytes(digest)
}
