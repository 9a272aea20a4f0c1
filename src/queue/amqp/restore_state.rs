//! The state of the restores that are due: orders and their progress, merged into one.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use lapin::types::FieldTable;
use serde::{Deserialize, Serialize};

use super::message::Message;
use super::topology::Topology;

/// What is restored: a range of the journal, into some work queues. It is the content of a message in the queue of
/// restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestoreState {
    /// The work queues that get their events of the range again.
    queues: BTreeSet<String>,
    /// The offset in the journal of the next message to look at.
    next: u64,
    /// The offset after the last one.
    end: u64,
    /// How many events were published again.
    moved: u64,
}

impl RestoreState {
    /// The end of a restore that has none yet.
    pub(super) const OPEN: u64 = u64::MAX;

    /// Creates a restore that has not begun.
    pub(super) fn new(queues: BTreeSet<String>, range: Range<u64>) -> Self {
        Self { queues, next: range.start, end: range.end, moved: 0 }
    }

    /// Returns a restore that includes what is left of both.
    pub(super) fn merge(mut self, mut other: Self) -> Self {
        self.queues.append(&mut other.queues);
        Self {
            queues: self.queues,
            next: self.next.min(other.next),
            end: self.end.max(other.end),
            moved: self.moved.max(other.moved),
        }
    }

    /// Returns the offsets that are left.
    pub(super) const fn left(&self) -> Range<u64> {
        self.next..self.end
    }

    /// Shortens the restore to what the journal holds, which ends before an offset. A journal that was deleted starts
    /// again at 0.
    pub(super) fn limit(&mut self, end: u64) {
        self.end = self.end.min(end);
    }

    /// Notes progress: everything before an offset is done, and this many events were published again.
    pub(super) fn advance(&mut self, next: u64, moved: u64) {
        self.next = next;
        self.moved += moved;
    }

    /// Returns how many events were published again.
    pub(super) const fn moved(&self) -> u64 {
        self.moved
    }

    /// Returns whether nothing is left.
    pub(super) const fn is_complete(&self) -> bool {
        self.next >= self.end
    }

    /// Returns the work queues that get their events again.
    pub(super) const fn queues(&self) -> &BTreeSet<String> {
        &self.queues
    }

    /// Returns whether a work queue gets its events again.
    pub(super) fn includes(&self, queue: &str) -> bool {
        self.queues.contains(queue)
    }

    /// Returns the message of this state.
    pub(super) fn message(&self, topology: &Topology) -> Message {
        // Strings and numbers always serialize to JSON.
        let body = serde_json::to_vec(self).expect("strings and numbers are JSON");
        Message::to_queue(&topology.restores, FieldTable::default(), body)
    }
}

impl fmt::Display for RestoreState {
    /// Writes the queues and the offsets that are left.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, queue) in self.queues.iter().enumerate() {
            write!(f, "{}{queue}", if n == 0 { "" } else { ", " })?;
        }
        match self.end {
            Self::OPEN => write!(f, " from offset {}", self.next),
            end => write!(f, " offsets {} to {end}", self.next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(queue: &str, range: Range<u64>) -> RestoreState {
        RestoreState::new(BTreeSet::from([queue.to_owned()]), range)
    }

    #[test]
    fn merged_restores_include_what_is_left_of_both() {
        let mut running = state("a", 10..100);
        running.advance(50, 40);
        let merged = running.clone().merge(state("b", 70..120));
        assert_eq!((merged.left(), merged.moved()), (50..120, 40));
        assert!(merged.includes("a") && merged.includes("b") && !merged.includes("c"));
        assert_eq!(running.clone().merge(running.clone()), running);
    }

    #[test]
    fn a_restore_of_a_journal_that_was_deleted_ends() {
        let mut restore = state("a", 1_000..2_000);
        restore.limit(5);
        assert!(restore.is_complete());
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let mut restore = state("a", 3..9);
        restore.advance(5, 2);
        let written = serde_json::to_vec(&restore).unwrap();
        assert_eq!(serde_json::from_slice::<RestoreState>(&written).unwrap(), restore);
        assert_eq!(restore.to_string(), "a offsets 5 to 9");
    }
}
