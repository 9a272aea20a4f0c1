//! The queue ports: events on their way from ingest to the consumer, and what operators see and do of them.
//!
//! # What they promise
//!
//! [`Publisher::publish`] returns only once every given event is durable: fsynced (embedded) or
//! confirmed by the broker (AMQP). From then on each event is delivered **at least once** until its
//! [`Delivery`] is settled by `ack` or `dead_letter`: across restarts, crashes and `kill -9`. Order
//! is not promised and not needed: effects are a join.
//!
//! # Obligations
//!
//! A [`Delivery`] is settled exactly once, by value. One that is dropped unsettled (a panic, a
//! cancelled task, a closing process) is delivered again, with its count raised. What cannot be
//! decoded is delivered too, as [`Undecodable`]: poison is the consumer's to judge, the queue loses
//! nothing by itself.

pub mod amqp;
pub mod delivery;
pub mod embedded;
mod error;
pub mod metered;
pub mod open;
pub mod traced;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt::Debug;

use async_trait::async_trait;

use crate::domain::{Event, Timestamp};

pub use delivery::{Delivery, Payload, Reason, Settle, Undecodable};
pub use error::Error;

/// Makes events durable.
#[async_trait]
pub trait Publisher: Debug + Send + Sync {
    /// Returns when every event is durable; all of them or an error.
    ///
    /// After an [`Error`] some may be durable all the same: publishing them again is safe, since
    /// applying an event twice has one effect. Cancelling the future leaves the same uncertainty.
    async fn publish(&self, events: &[Event]) -> Result<(), Error>;
}

/// A stream of deliveries.
#[async_trait]
pub trait Subscription: Debug + Send {
    /// Returns the next delivery, waiting for one as long as it takes; `None` once the queue is
    /// closed for good. Cancel-safe: a dropped call takes nothing.
    ///
    /// At most the subscription's `prefetch` deliveries are out unsettled at once; with that many
    /// out it waits for a settlement.
    async fn next(&mut self) -> Option<Delivery>;
}

/// The consumer's side of a queue, and operators' view of it.
#[async_trait]
pub trait Queue: Debug + Send + Sync {
    /// Starts taking deliveries, at most `prefetch` of them unsettled at once. Everything that was
    /// taken but not settled by an earlier subscription is delivered again.
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error>;

    /// Answers if the queue works.
    async fn ping(&self) -> Result<(), Error>;

    /// Returns how much the queue holds.
    async fn depth(&self) -> Result<Depth, Error>;

    /// Has everything that was published since a time, and a minute before, handed out again, where a journal keeps
    /// it, as [`Restored`](crate::domain::Redelivery::Restored). Returns once the order is durable, not when it is done.
    /// Ordering twice is allowed.
    async fn restore(&self, since: Timestamp) -> Result<Restore, Error>;

    /// Begins to read the journal; `None` where there is none. It tells every event once, as it was first published
    /// (what was handed out again is left out), from those received at `since` on, or a little before; what is
    /// published from now on may be left out. Nothing is taken from anybody.
    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error>;
}

/// A journal that is being read.
#[async_trait]
pub trait Journal: Debug + Send {
    /// Returns some more events, in about the order in which they were published, at most a few hundred and maybe none;
    /// `None` at the end. After an [`Error`] it is of no more use.
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error>;
}

/// What was given up on, for operators.
#[async_trait]
pub trait DeadLetters: Debug + Send + Sync {
    /// Returns the oldest, at most `limit` of them; they stay where they are.
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error>;

    /// Puts events back: each is published again, as [`Redriven`](crate::domain::Redelivery::Redriven), durably, before it
    /// leaves the dead letters. What is no event stays where it is. After an [`Error`] some may be back; doing it again
    /// is safe.
    async fn redrive(&self, which: &Which) -> Result<Redriven, Error>;

    /// Removes them for good; returns how many.
    async fn purge(&self, which: &Which) -> Result<u64, Error>;
}

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that are there when it begins.
    All,
    /// Those of these ids, of the oldest [`MAX_SEARCHED`].
    These(BTreeSet<String>),
}

impl Which {
    /// Tells whether this is one of them.
    #[must_use]
    pub fn holds(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => ids.contains(id),
        }
    }
}

/// How many dead letters are searched for an id.
pub const MAX_SEARCHED: usize = 1000;

/// What redriving came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many events were put back.
    pub events: u64,
    /// How many dead letters are no events, and stayed.
    pub kept: u64,
}

/// The answer to [`Queue::restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// It is durably ordered.
    Ordered,
    /// This queue keeps nothing that was settled.
    NoJournal,
}

/// An event that was given up on, as it is kept.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// What it is called among the dead letters.
    pub id: String,
    /// Why it was given up on: one of [`Reason`], or what somebody else wrote.
    pub reason: String,
    /// When, to the second, where that is known.
    pub since: Option<Timestamp>,
    /// How often it had been delivered before, where that is known.
    pub redelivered: Option<u32>,
    /// The event, or what may be told of something that is none.
    pub payload: Payload,
}

/// How much a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Events not yet settled, those that this process has taken included.
    pub events: u64,
    /// Their size in bytes, of a queue that this process keeps itself.
    pub bytes: Option<u64>,
    /// Dead letters.
    pub dead_letters: u64,
}
