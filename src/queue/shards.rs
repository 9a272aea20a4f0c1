//! How events are distributed over the work queues of a broker.

use crate::domain::Event;

/// A number of work queues. All events of a customer go to the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards(u64);

impl Shards {
    /// Creates the distribution over `count` work queues; zero counts as one.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Self(u64::from(count.max(1)))
    }

    /// Returns the number of work queues.
    #[must_use]
    pub fn count(self) -> usize {
        self.index(self.0 - 1) + 1
    }

    /// Returns the shard of an event, from its first key.
    #[must_use]
    pub fn of(self, event: &Event) -> usize {
        let mut head = [0; 8];
        if let Some(key) = event.keys.first() {
            head.copy_from_slice(&key.as_bytes()[..8]);
        }
        self.index(u64::from_be_bytes(head))
    }

    /// Returns the shard of a number, which may come from a time with more shards.
    pub(super) fn index(self, number: u64) -> usize {
        // The remainder is below the number of work queues, which is an `u16`.
        usize::try_from(number % self.0).expect("a remainder of a small number is an index")
    }
}
