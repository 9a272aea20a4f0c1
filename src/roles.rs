//! The roles of a process: it can run all flows, or some of them.

/// Which flows a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Accepts events from webhooks.
    pub ingest: bool,
    /// Applies events to the store.
    pub consumer: bool,
    /// Answers lookups.
    pub lookup: bool,
}

impl Roles {
    /// Every flow.
    pub const ALL: Self = Self { ingest: true, consumer: true, lookup: true };

    /// Returns whether a flow publishes to the queue or consumes from it.
    #[must_use]
    pub const fn use_the_queue(self) -> bool {
        self.ingest || self.consumer
    }

    /// Returns whether a flow reads or writes the store.
    #[must_use]
    pub const fn use_the_store(self) -> bool {
        self.lookup || self.consumer
    }
}
