//! The queue ports: how events travel from ingest to the consumer, and what operators can see and do.
//!
//! # Guarantees
//!
//! [`Publisher::publish`] returns after every given event is durable: fsynced (embedded) or confirmed by the broker
//! (AMQP). From then on the queue delivers each event **at least once** until its [`Delivery`] is settled by `ack` or
//! `dead_letter`, across restarts, crashes and `kill -9`. The queue does not promise an order; the consumer does not
//! need one, see [`rules::fence`](crate::rules#fence).
//!
//! # Obligations
//!
//! A [`Delivery`] is settled exactly once, by value. If it is dropped unsettled (a panic, a cancelled task, a closing
//! process), the queue redelivers the event with its count raised. Bytes that cannot be decoded are delivered too, as
//! [`Undecodable`]: the consumer decides about poison messages, and the queue itself drops nothing.

pub mod amqp;
pub mod delivery;
pub mod embedded;
mod error;
pub mod metered;
pub mod open;
pub mod outbox;
pub mod shards;
pub mod traced;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt::Debug;

use async_trait::async_trait;

use crate::domain::{Event, Timestamp};

pub use delivery::{DeadLetterReason, Delivery, Payload, Settle, Undecodable};
pub use error::Error;

/// Makes events durable.
#[async_trait]
pub trait Publisher: Debug + Send + Sync {
    /// Returns when all events are durable.
    ///
    /// After an [`Error`] some of them may be durable. Publishing them again is safe, since an event that is applied
    /// twice has one effect. The same holds after the future is cancelled.
    async fn publish(&self, events: &[Event]) -> Result<(), Error>;
}

/// A stream of deliveries.
#[async_trait]
pub trait Subscription: Debug + Send {
    /// Waits for the next delivery; `None` once the queue is closed. Cancel-safe: a dropped call takes nothing.
    ///
    /// At most `prefetch` deliveries are unsettled at once; at that number the call waits for a settlement.
    async fn next(&mut self) -> Option<Delivery>;
}

/// The consumer's side of a queue, and the operators' view of it.
#[async_trait]
pub trait Queue: Debug + Send + Sync {
    /// Starts a subscription with at most `prefetch` unsettled deliveries. The queue redelivers what an earlier
    /// subscription took and did not settle.
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error>;

    /// Succeeds if the queue works.
    async fn ping(&self) -> Result<(), Error>;

    /// Returns how much the queue holds.
    async fn depth(&self) -> Result<Depth, Error>;

    /// Requests a redelivery of all events in the journal that were published since a time, and a minute before, as
    /// [`Restored`](crate::domain::Redelivery::Restored). Returns when the request is durable, before it is carried
    /// out. A repeated request is allowed.
    async fn restore(&self, since: Timestamp) -> Result<RestoreOutcome, Error>;

    /// Starts to read the journal; `None` if the queue has no journal. The reader returns each event received at
    /// `since` or later, or shortly before, once, as it was first published, without redeliveries. It may omit events
    /// that are published after this call. Reading removes nothing.
    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error>;

    /// Sends a notice to every process that takes events from this queue and calls this, and returns those that were sent
    /// since the last call, at most about a hundred: best effort, and not authenticated. `None`: no other process can use the
    /// queue, or the user of the broker lacks a permission for notices.
    async fn exchange_notices(&self, _notice: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Error> {
        Ok(None)
    }
}

/// A journal that is being read.
#[async_trait]
pub trait Journal: Debug + Send {
    /// Returns more events, roughly in the order of publishing: at most a few hundred, possibly none. `None` at the
    /// end. After an [`Error`] the reader cannot be used again.
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error>;
}

/// The dead letters, for operators.
#[async_trait]
pub trait DeadLetters: Debug + Send + Sync {
    /// Returns the oldest dead letters, at most `limit`, and keeps them.
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error>;

    /// Publishes dead letters again, as [`Redriven`](crate::domain::Redelivery::Redriven). Each is durable in the queue
    /// before its dead letter is removed. A dead letter that cannot be decoded stays. After an [`Error`] some may be
    /// published; repeating the call is safe.
    async fn redrive(&self, which: &DeadLetterSelection) -> Result<Redriven, Error>;

    /// Deletes dead letters; returns how many.
    async fn purge(&self, which: &DeadLetterSelection) -> Result<u64, Error>;
}

/// A selection of dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterSelection {
    /// All dead letters that exist at the start of the operation.
    All,
    /// The dead letters with these ids, among the oldest [`MAX_SEARCHED`].
    Ids(BTreeSet<String>),
}

impl DeadLetterSelection {
    /// Returns whether the selection contains a dead letter.
    #[must_use]
    pub fn holds(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Ids(ids) => ids.contains(id),
        }
    }
}

/// How many dead letters a search for ids covers.
pub const MAX_SEARCHED: usize = 1000;

/// The result of a redrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// How many events were published again.
    pub events: u64,
    /// How many dead letters cannot be decoded and stayed.
    pub kept: u64,
}

/// The answer to [`Queue::restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreOutcome {
    /// The request is durable.
    Ordered,
    /// This queue has no journal.
    NoJournal,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its id among the dead letters.
    pub id: String,
    /// The reason: one of [`DeadLetterReason`], or the text of another program.
    pub reason: String,
    /// When it became a dead letter, to the second, if known.
    pub since: Option<Timestamp>,
    /// The number of its redeliveries, if known.
    pub redelivered: Option<u32>,
    /// The event, or a description of bytes that cannot be decoded.
    pub payload: Payload,
}

/// The content of a queue, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Unsettled events, including those that this process has taken.
    pub events: u64,
    /// Their size in bytes; embedded queue only.
    pub bytes: Option<u64>,
    /// When the oldest unsettled event was received, as of the last ping; embedded queue only.
    pub oldest: Option<Timestamp>,
    /// Dead letters.
    pub dead_letters: u64,
}
