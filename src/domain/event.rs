//! Events: what Genesys reported about customers, without personal data.
//!
//! An event names its customers by the digests of their entry keys, so it may be stored in the queue. It contains no
//! customer id and no part of a profile.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::event_id::EventId;
use super::key::{Digest, Key};
use super::stamps::{Precision, Stamps};
use super::tenant::TenantId;
use super::time::Timestamp;
use super::traceparent::Traceparent;

/// What happened to a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The customer was created.
    Created,
    /// The profile changed.
    Updated,
    /// The customer was deleted: a tombstone replaces its entry.
    Deleted,
    /// Customers were merged: the entry of every id that the event names is evicted.
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

/// The envelope in which an event was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// The flat form of this program.
    Flat,
    /// A Genesys notification envelope (WebSocket form).
    Notification,
    /// An Amazon EventBridge event.
    EventBridge,
    /// A `CloudEvents` 1.0 event, structured or binary.
    CloudEvents,
    /// Created by a command of an operator.
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

/// The id of a replay that an operator requested: a UUID of version 7 (RFC 9562).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplayId(Uuid);

impl ReplayId {
    /// Generates an id.
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

/// Why an event is delivered again, possibly long after it was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// Its effect may have been lost. If it was not, the event is a duplicate.
    Restored,
    /// An operator returned it from the dead letters to the queue.
    Redriven,
    /// An operator wants to apply it again, even if its effect exists.
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

/// An event, as the queue stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The id that people see.
    pub id: EventId,
    /// A digest of the sender's id of the event; part of [`Event::dedup_digest`].
    pub identity: Digest,
    /// The tenant of its customers.
    pub tenant: TenantId,
    /// The digests of its customers; never empty, no duplicates.
    pub keys: Vec<Digest>,
    /// The digests of the identifiers in its body, under each key scheme; no duplicates.
    pub identifiers: Vec<Digest>,
    /// What happened.
    pub kind: Kind,
    /// When it happened, by the clocks of Genesys.
    pub stamps: Stamps,
    /// When it was received, by our clock: for the lag metric, and to find it in the journal.
    pub received_at: Timestamp,
    /// The envelope in which it was posted.
    pub shape: Shape,
    /// The trace context of its sender.
    pub traceparent: Option<Traceparent>,
    /// Whether it removes a tombstone too, by order of an operator.
    pub force: bool,
    /// Why it is delivered again; `None` the first time.
    pub again: Option<Redelivery>,
}

impl Event {
    /// Returns the entry keys of its customers.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys.iter().map(|digest| Key::new(&self.tenant, *digest))
    }

    /// Returns the entry keys of its identifiers.
    pub fn identifier_keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.identifiers.iter().map(|digest| Key::of_identifier(&self.tenant, *digest))
    }

    /// Returns the event as a redriven dead letter. A replayed event stays a replayed one.
    #[must_use]
    pub fn redriven(&self) -> Self {
        let replayed = self.again.filter(|again| matches!(again, Redelivery::Replayed(_)));
        Self { again: replayed.or(Some(Redelivery::Redriven)), ..self.clone() }
    }

    /// Returns the digest that the dedup window remembers. It covers the sender's id, kind, stamps, keys and identifiers, so that
    /// an event is not dropped if its sender reuses an id ([`rules::dedup`](crate::rules#dedup)).
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
        for key in self.keys.iter().chain(&self.identifiers) {
            hash.update(key.as_bytes());
        }
        cut(hash)
    }

    /// Returns the digest that is stored when this event is applied: its [`dedup_digest`](Self::dedup_digest),
    /// combined with the id of the replay if the event is replayed.
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
    /// Creates an event for tests that do not depend on its content.
    pub(crate) fn example() -> Self {
        Self {
            id: EventId::fresh(),
            identity: Digest::from_bytes([7; 16]),
            // A tenant id is one.
            tenant: "10001".parse().expect("a tenant id"),
            keys: vec![Digest::from_bytes([1; 16])],
            identifiers: Vec::new(),
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
