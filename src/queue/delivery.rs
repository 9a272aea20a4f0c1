//! Deliveries: each is an obligation to settle one event, once.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{Event, Timestamp};

use super::Error;

/// The delay before the first redelivery of an event.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay before a redelivery.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// One event, handed to the consumer until the consumer settles it.
///
/// Settling consumes the value. The queue redelivers an event whose delivery is dropped unsettled.
#[must_use = "the queue redelivers the event of an unsettled delivery"]
#[derive(Debug)]
pub struct Delivery {
    payload: Payload,
    redelivered: u32,
    settle: Box<dyn Settle>,
}

/// The content of a delivery.
#[derive(Clone, Debug)]
pub enum Payload {
    /// An event to apply.
    Event(Arc<Event>),
    /// Bytes that are not an event of a known version.
    Undecodable(Undecodable),
}

impl Payload {
    /// Returns when the event was received, if it can be decoded.
    #[must_use]
    pub fn received_at(&self) -> Option<Timestamp> {
        match self {
            Self::Event(event) => Some(event.received_at),
            Self::Undecodable(_) => None,
        }
    }
}

/// A description of bytes that cannot be decoded. It never contains the bytes, which may be personal data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// The number of bytes.
    pub length: usize,
    /// Their SHA-256, in hex.
    pub sha256: String,
    /// Why decoding failed.
    pub reason: DeadLetterReason,
}

/// Why an event becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// The bytes are not the wire form of an event.
    Undecodable,
    /// The wire version is newer than this program.
    UnknownVersion,
    /// A MAC is required, and it has none or a wrong one.
    Unauthentic,
    /// It was redelivered too often and keeps failing while the store works.
    RedeliveredTooOften,
}

impl DeadLetterReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Undecodable, Self::UnknownVersion, Self::Unauthentic, Self::RedeliveredTooOften];

    /// Returns the value for the header `reason` of a dead letter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownVersion => "unknown-version",
            Self::Unauthentic => "unauthentic",
            Self::RedeliveredTooOften => "redelivered-too-often",
        }
    }
}

/// The adapter's side of a delivery. Dropping it unused returns the event to the queue.
#[async_trait]
pub trait Settle: Debug + Send {
    /// Removes the event from the queue.
    async fn ack(self: Box<Self>) -> Result<(), Error>;
    /// Returns the event to the queue, which redelivers it with its count raised.
    async fn retry(self: Box<Self>) -> Result<(), Error>;
    /// Stores the event as a dead letter, durably, then removes it from the queue.
    async fn dead_letter(self: Box<Self>, reason: DeadLetterReason) -> Result<(), Error>;
}

impl Delivery {
    /// Creates a delivery; for adapters only. `redelivered` is the number of earlier deliveries.
    pub fn new(payload: Payload, redelivered: u32, settle: Box<dyn Settle>) -> Self {
        Self { payload, redelivered, settle }
    }

    /// Returns the content.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Returns the number of earlier deliveries of this event.
    #[must_use]
    pub const fn redelivered(&self) -> u32 {
        self.redelivered
    }

    /// Acknowledges an event that has taken effect. After an [`Error`] the queue redelivers it.
    pub async fn ack(self) -> Result<(), Error> {
        self.settle.ack().await
    }

    /// Asks for a redelivery, with the count raised.
    pub async fn retry(self) -> Result<(), Error> {
        self.settle.retry().await
    }

    /// Stores the event as a dead letter with the reason, then acknowledges it.
    pub async fn dead_letter(self, reason: DeadLetterReason) -> Result<(), Error> {
        self.settle.dead_letter(reason).await
    }
}

/// Returns how long a returned event waits before its next delivery, so that other events go first: 100 ms,
/// doubled with each of its earlier redeliveries, at most 5 s.
pub(super) fn redelivery_delay(redelivered: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1 << redelivered.min(16)).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redelivery_delays_double_up_to_five_seconds() {
        let millis: Vec<u128> =
            [0, 1, 2, 5, 6, 19, u32::MAX].map(|redelivered| redelivery_delay(redelivered).as_millis()).into();
        assert_eq!(millis, [100, 200, 400, 3_200, 5_000, 5_000, 5_000]);
    }
}
