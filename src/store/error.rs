//! Errors of a store, by what the caller does next.

/// An operation of the store failed. It may or may not have taken effect, and is safe to repeat (a lease with a new
/// token).
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store is unreachable or does not answer at all: lookups fetch from upstream, the consumer stops taking
    /// events and probes the store.
    #[error("store unavailable: {reason}")]
    Unavailable {
        /// What failed, without the contents of any key.
        reason: String,
    },
    /// The store works, but did not answer this operation in time, or this process lacked the processor time to read
    /// the answer: lookups try again until their deadline and do not fetch past the store.
    #[error("store slow: {reason}")]
    Slow {
        /// What was waited for.
        reason: String,
    },
    /// Some parts of the store do not work (shards of a cluster), others do: the consumer continues with what works. Only
    /// [`Inspect::ping`](super::Inspect::ping) answers this.
    #[error("store partly unavailable: {reason}")]
    Partial {
        /// What failed in a part, without the contents of any key.
        reason: String,
    },
    /// The store refused the operation: an error in the configuration or in this program.
    #[error("store refused: {reason}")]
    Rejected {
        /// The reason.
        reason: String,
    },
}
