//! Ledger: what is out on one channel, and how little must be said to settle it.
//!
//! # Acknowledging many at once
//!
//! One frame acknowledges every delivery up to its tag, so it may name a tag only if all below it are
//! settled **and have been seen**: the deliveries of several queues are numbered together but come
//! through buffers of their own, so a low tag may not have been looked at yet. Above the first that is
//! unsettled or unseen, each tag is acknowledged alone.
//!
//! # Marks
//!
//! The mark of a queue is the time before which everything that it gave us is settled, as far as one
//! channel can know: the queue hands out the oldest first.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::Timestamp;

/// An acknowledgement to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// The tag to name.
    pub(super) tag: u64,
    /// Whether it speaks for every unsettled tag below too.
    pub(super) multiple: bool,
}

/// What is known of a delivery that is out.
#[derive(Clone, Copy, Debug)]
struct Out {
    queue: usize,
    received_at: Option<Timestamp>,
}

/// What is out on one channel.
#[derive(Debug)]
pub(super) struct Ledger {
    out: BTreeMap<u64, Out>,
    /// All tags up to here have been seen.
    seen: u64,
    /// Tags beyond the first gap that have been seen.
    early: BTreeSet<u64>,
    /// Per queue: when the newest event that is settled was received.
    settled: Vec<Option<Timestamp>>,
}

impl Ledger {
    /// Makes the ledger of a new channel that so many queues are consumed on.
    pub(super) fn new(queues: usize) -> Self {
        Self { out: BTreeMap::new(), seen: 0, early: BTreeSet::new(), settled: vec![None; queues] }
    }

    /// Returns how many deliveries are out.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// Notes a delivery. `received_at` is that of its event, if it is one.
    pub(super) fn arrived(&mut self, tag: u64, queue: usize, received_at: Option<Timestamp>) {
        self.out.insert(tag, Out { queue, received_at });
        self.early.insert(tag);
        while self.early.remove(&(self.seen + 1)) {
            self.seen += 1;
        }
    }

    /// Notes that deliveries are settled, and returns what to tell the broker.
    pub(super) fn acknowledged(&mut self, mut tags: Vec<u64>) -> Vec<Ack> {
        tags.retain(|tag| self.take(*tag));
        tags.sort_unstable();
        let first_unsettled = self.out.first_key_value().map_or(u64::MAX, |(tag, _)| *tag);
        let covered = tags.partition_point(|tag| *tag < first_unsettled && *tag <= self.seen);
        let together = tags[..covered].last().map(|tag| Ack { tag: *tag, multiple: covered > 1 });
        together.into_iter().chain(tags[covered..].iter().map(|tag| Ack { tag: *tag, multiple: false })).collect()
    }

    /// Notes that a delivery goes back; returns whether it was out.
    pub(super) fn returned(&mut self, tag: u64) -> bool {
        self.out.remove(&tag).is_some()
    }

    /// Returns the mark of every queue that has one.
    pub(super) fn marks(&self) -> Vec<Option<Timestamp>> {
        let mut marks = self.settled.clone();
        for out in self.out.values() {
            if let (Some(mark), Some(received_at)) = (&mut marks[out.queue], out.received_at) {
                *mark = received_at.min(*mark);
            }
        }
        marks
    }

    fn take(&mut self, tag: u64) -> bool {
        let Some(out) = self.out.remove(&tag) else { return false };
        self.settled[out.queue] = self.settled[out.queue].max(out.received_at);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn many_are_acknowledged_by_one_frame_and_only_stragglers_alone() {
        let mut ledger = Ledger::new(1);
        (1..=6).for_each(|tag| ledger.arrived(tag, 0, None));
        let one = |tag| Ack { tag, multiple: false };
        assert_eq!(ledger.acknowledged(vec![3, 1, 2, 5]), [Ack { tag: 3, multiple: true }, one(5)]);
        assert_eq!(ledger.acknowledged(vec![4]), [one(4)]);
        assert_eq!(ledger.acknowledged(vec![4]), []);
        assert_eq!(ledger.len(), 1);
    }

    #[test]
    fn a_tag_that_was_not_seen_yet_is_never_covered() {
        let mut ledger = Ledger::new(2);
        for tag in [1, 3, 4] {
            ledger.arrived(tag, 1, None);
        }
        let one = |tag| Ack { tag, multiple: false };
        assert_eq!(ledger.acknowledged(vec![1, 3, 4]), [one(1), one(3), one(4)]);
    }

    #[test]
    fn a_mark_is_older_than_everything_that_is_out() {
        let mut ledger = Ledger::new(2);
        for (tag, queue, millis) in [(1, 0, 10), (2, 0, 20), (3, 0, 30), (4, 1, 5)] {
            ledger.arrived(tag, queue, Some(at(millis)));
        }
        assert_eq!(ledger.marks(), [None, None]);
        ledger.acknowledged(vec![1, 3]);
        assert_eq!(ledger.marks(), [Some(at(20)), None]);
        ledger.acknowledged(vec![2]);
        assert_eq!(ledger.marks(), [Some(at(30)), None]);
    }

    proptest! {
        /// A broker beside the ledger, which takes every frame by the letter.
        #[test]
        fn the_broker_hears_exactly_what_was_settled(
            arrivals in Just((1..=40u64).collect::<Vec<_>>()).prop_shuffle(),
            steps in proptest::collection::vec((0..3usize, any::<prop::sample::Index>(), 1..6usize), 1..80),
        ) {
            let (mut ledger, mut arrivals) = (Ledger::new(1), arrivals);
            let mut broker: BTreeSet<u64> = arrivals.iter().copied().collect();
            let (mut held, mut settled) = (Vec::new(), 0);
            for (step, index, count) in steps {
                match step {
                    0 => for tag in arrivals.split_off(arrivals.len().saturating_sub(count)) {
                        ledger.arrived(tag, 0, None);
                        held.push(tag);
                    },
                    _ if held.is_empty() => {}
                    1 => {
                        let tag = held.swap_remove(index.index(held.len()));
                        prop_assert!(ledger.returned(tag) && broker.remove(&tag));
                        settled += 1;
                    }
                    _ => {
                        let middle = index.index(held.len());
                        held.rotate_left(middle);
                        let tags = held.split_off(held.len().saturating_sub(count));
                        settled += tags.len();
                        for ack in ledger.acknowledged(tags) {
                            prop_assert!(broker.contains(&ack.tag));
                            broker.retain(|tag| if ack.multiple { *tag > ack.tag } else { *tag != ack.tag });
                        }
                    }
                }
                prop_assert_eq!(broker.len(), 40 - settled);
                prop_assert_eq!(ledger.len(), held.len());
            }
        }
    }
}
