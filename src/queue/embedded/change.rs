//! The values that go into the log and come out of it.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::Timestamp;
use crate::queue::DeadLetterReason;

/// What a row takes besides its value: its key, and its part of a page's index, in bytes.
pub(super) const ROW_BYTES: u64 = 32;

/// A change of the log.
#[derive(Debug)]
pub(super) enum LogChange {
    /// Adds events: all or none.
    Append(Vec<Bytes>),
    /// Removes an acknowledged event.
    Ack(u64, Retention),
    /// Counts that an event was returned unsettled.
    CountReturn(u64),
    /// Moves an event to the dead letters.
    DeadLetter(u64, DeadLetterReason, Retention),
    /// Publishes the event of a dead letter again, if it can be decoded.
    Redrive(u64),
    /// Deletes a dead letter.
    Purge(u64),
    /// Orders a restore of what was settled at a time or later; the same order again has no effect.
    OrderRestore(Timestamp),
    /// Carries out a part of the ordered restore.
    RestoreSome,
}

impl LogChange {
    /// Returns how many bytes of events it adds that the queue did not have, with their keys.
    pub(super) fn added_bytes(&self) -> u64 {
        match self {
            Self::Append(events) => events.iter().map(|wire| wire.len() as u64 + ROW_BYTES).sum(),
            Self::Ack(..)
            | Self::CountReturn(_)
            | Self::DeadLetter(..)
            | Self::Redrive(_)
            | Self::Purge(_)
            | Self::OrderRestore(_)
            | Self::RestoreSome => 0,
        }
    }
}

/// Whether the journal keeps an event that leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retention {
    Journal,
    /// Without the mark of its restore, which moved it out of the journal.
    Unmarked,
    /// For bytes that cannot be decoded.
    Discard,
}

/// An unsettled event in the log.
#[derive(Clone, Debug)]
pub(super) struct LogEntry {
    /// Its position.
    pub(super) position: u64,
    /// How often it was returned unsettled.
    pub(super) returns: u32,
    /// Its wire form.
    pub(super) wire: Bytes,
}

/// How much the log may contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogLimits {
    /// Bytes of events and dead letters together.
    pub(super) max_bytes: u64,
    /// The limits of the journal.
    pub(super) journal: JournalLimits,
}

/// How much the journal keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct JournalLimits {
    /// Bytes of events.
    pub(super) max_bytes: u64,
    /// The time since their settlement.
    pub(super) retention: Duration,
}

impl JournalLimits {
    /// Returns whether there is a journal.
    pub(super) fn is_enabled(&self) -> bool {
        self.max_bytes > 0 && !self.retention.is_zero()
    }
}
