//! Errors of a queue. Each variant is a decision for the caller: retry later, or ask an operator.

use std::time::Duration;

/// A queue operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The queue has reached its configured size; the sender retries later.
    #[error("queue is full: {bytes} of {max_bytes} bytes are used")]
    Full {
        /// The bytes in use.
        bytes: u64,
        /// The configured limit in bytes.
        max_bytes: u64,
    },
    /// The disk of a local queue is full. What is in the queue is delivered and settled; events are accepted when the disk
    /// has space.
    #[error("the disk of the queue is full: {reason}")]
    DiskFull {
        /// What the system reported.
        reason: String,
    },
    /// The queue is unreachable, did not confirm in time, or could not write.
    #[error("queue unavailable: {reason}")]
    Unavailable {
        /// What failed, without the content of any event.
        reason: String,
    },
    /// The broker's state, or a file that is needed to connect, does not match the configuration. A retry cannot
    /// help; an operator must act.
    #[error("queue is misconfigured: {reason}")]
    Misconfigured {
        /// What differs, as the broker reports it.
        reason: String,
    },
    /// The queue is closed or closing.
    #[error("queue is closed")]
    Closed,
}

impl Error {
    /// Returns the delay before a retry, for `Retry-After`.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Full { .. } | Self::DiskFull { .. } => Duration::from_secs(5),
            Self::Unavailable { .. } | Self::Misconfigured { .. } | Self::Closed => Duration::from_secs(1),
        }
    }
}
