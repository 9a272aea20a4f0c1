//! The flows that a process runs, together or apart from the others.

/// Which flows a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Takes events.
    pub ingest: bool,
    /// Applies events.
    pub consumer: bool,
    /// Answers lookups.
    pub lookup: bool,
}

impl Roles {
    /// Every flow.
    pub const ALL: Self = Self { ingest: true, consumer: true, lookup: true };

    /// Tells whether a flow gives events to the queue or takes them.
    #[must_use]
    pub const fn use_the_queue(self) -> bool {
        self.ingest || self.consumer
    }

    /// Tells whether a flow reads or writes the store.
    #[must_use]
    pub const fn use_the_store(self) -> bool {
        self.lookup || self.consumer
    }
}
