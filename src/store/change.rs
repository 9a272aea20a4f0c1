//! What an event does to a key: the argument and the answer of [`Store::apply`](super::Store::apply).

use std::time::Duration;

use crate::domain::{Digest, Kind, Redelivery, Stamps};

/// One event, as it concerns one key.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// What the dedup window remembers: [`Event::mark`](crate::domain::Event::mark).
    pub event: Digest,
    /// The mark of the event itself, if `event` is that of its replay. While it is remembered, the fence holds all
    /// that the event announced: see [`fence::repeat`](super::fence::repeat).
    pub of: Option<Digest>,
    /// What happened.
    pub kind: Kind,
    /// When it happened, by the clocks of Genesys.
    pub stamps: Stamps,
    /// Why it is delivered once more, if it is: then it may be long past.
    pub again: Option<Redelivery>,
    /// Whether to remove a tombstone whatever the times are (an operator's `invalidate --force`).
    pub force: bool,
}

/// The answer to an applied event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The entry was deleted, or replaced by a tombstone.
    Applied {
        /// The key held a record or tombstone before.
        had_entry: bool,
    },
    /// This event was applied before; nothing changed.
    Duplicate,
    /// A later event was applied before; the entry was deleted all the same.
    Outrun,
}

/// The lifetimes of what events write, from `[consumer]` of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// How long an applied event is remembered.
    pub dedup_window: Duration,
    /// How long a deletion keeps its key from being filled.
    pub tombstone_ttl: Duration,
}

impl Lifetimes {
    /// Returns the lifetime of a fence; raising a fence never shortens it.
    #[must_use]
    pub fn fence(&self) -> Duration {
        self.tombstone_ttl.max(self.dedup_window)
    }
}
