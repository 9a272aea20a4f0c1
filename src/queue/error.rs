//! What can go wrong with a queue, by what the caller does next.

use std::time::Duration;

/// The queue could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The queue is at its configured size: the sender is told to come again later.
    #[error("queue is full: {bytes} of {max_bytes} bytes are taken")]
    Full {
        /// Bytes that are taken.
        bytes: u64,
        /// Bytes that may be taken.
        max_bytes: u64,
    },
    /// The queue is unreachable, did not confirm in time, or could not write.
    #[error("queue unavailable: {reason}")]
    Unavailable {
        /// What failed, without any event's contents.
        reason: String,
    },
    /// What stands on the broker, or a file that is needed to reach it, is not what it must be: trying
    /// again changes nothing, an operator must.
    #[error("queue is misconfigured: {reason}")]
    Misconfigured {
        /// What differs, in the broker's words.
        reason: String,
    },
    /// The queue is closing down.
    #[error("queue is closed")]
    Closed,
}

impl Error {
    /// Returns when it is worth trying again (for `Retry-After`).
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Full { .. } => Duration::from_secs(5),
            Self::Unavailable { .. } | Self::Misconfigured { .. } | Self::Closed => Duration::from_secs(1),
        }
    }
}
