//! What can go wrong with a store, by what the caller does next.

/// The store could not do what was asked. Nothing is known of what it did: an operation that
/// answers this may or may not have taken effect, and is safe to repeat (a lease with a new token).
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store is unreachable or does not answer at all: lookups go upstream, the consumer stops
    /// taking and probes.
    #[error("store unavailable: {reason}")]
    Unavailable {
        /// What failed, without any key's contents.
        reason: String,
    },
    /// The store works, but did not answer this operation in time, or this process lacked the processor time to read
    /// the answer: lookups try again until their deadline and do not go upstream.
    #[error("store slow: {reason}")]
    Slow {
        /// What was waited for.
        reason: String,
    },
    /// The store refused the operation: a fault of configuration or of this program.
    #[error("store refused: {reason}")]
    Rejected {
        /// What the store said.
        reason: String,
    },
}
