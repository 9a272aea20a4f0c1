//! Deliveries: the obligation to settle one event, once.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::Event;

use super::Error;

/// One event, handed to the consumer until it settles it.
///
/// Settling consumes it. A delivery that is dropped unsettled is delivered again.
#[must_use = "an unsettled delivery is delivered again"]
#[derive(Debug)]
pub struct Delivery {
    payload: Payload,
    redelivered: u32,
    settle: Option<Box<dyn Settle>>,
}

/// What a delivery holds.
#[derive(Clone, Debug)]
pub enum Payload {
    /// An event to apply.
    Event(Arc<Event>),
    /// Bytes that are no event of a version we know.
    Undecodable(Undecodable),
}

/// Why bytes from the queue are no event, with what may be told about them: never the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Their number.
    pub length: usize,
    /// Their SHA-256, in hex.
    pub sha256: String,
    /// What is wrong with them.
    pub reason: Reason,
}

/// Why an event is given up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not the wire form.
    Undecodable,
    /// A wire version that is newer than this program.
    UnknownVersion,
    /// Redelivered too often, and failing while the store works.
    RedeliveredTooOften,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Undecodable, Self::UnknownVersion, Self::RedeliveredTooOften];

    /// Returns the value of the dead letter's header `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownVersion => "unknown-version",
            Self::RedeliveredTooOften => "redelivered-too-often",
        }
    }
}

/// An adapter's side of a settlement. Dropping it unused gives the event back to the queue.
#[async_trait]
pub trait Settle: Debug + Send {
    /// Removes the event from the queue.
    async fn ack(self: Box<Self>) -> Result<(), Error>;
    /// Gives the event back, to be delivered again with its count raised.
    async fn retry(self: Box<Self>) -> Result<(), Error>;
    /// Keeps the event among the dead letters, durably, then removes it from the queue.
    async fn dead_letter(self: Box<Self>, reason: Reason) -> Result<(), Error>;
}

impl Delivery {
    /// Makes a delivery; called by adapters only. `redelivered` counts how often it was out before.
    pub fn new(payload: Payload, redelivered: u32, settle: Box<dyn Settle>) -> Self {
        Self { payload, redelivered, settle: Some(settle) }
    }

    /// Returns what is delivered.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Returns how often this was delivered before.
    #[must_use]
    pub const fn redelivered(&self) -> u32 {
        self.redelivered
    }

    /// Settles: the event has taken effect. After an [`Error`] it is delivered again.
    pub async fn ack(mut self) -> Result<(), Error> {
        match self.settle.take() {
            Some(settle) => settle.ack().await,
            None => Ok(()),
        }
    }

    /// Settles: not now. The event is delivered again, with its count raised.
    pub async fn retry(mut self) -> Result<(), Error> {
        match self.settle.take() {
            Some(settle) => settle.retry().await,
            None => Ok(()),
        }
    }

    /// Settles: never. The event is kept among the dead letters with the reason, then acknowledged.
    pub async fn dead_letter(mut self, reason: Reason) -> Result<(), Error> {
        match self.settle.take() {
            Some(settle) => settle.dead_letter(reason).await,
            None => Ok(()),
        }
    }
}
