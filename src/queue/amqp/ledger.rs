//! The ledger: the unsettled deliveries of one channel, and the fewest frames to acknowledge them.
//!
//! # Acknowledging many at once
//!
//! One frame can acknowledge every delivery up to its tag. This requires that all lower tags are settled **and have been
//! seen**: the deliveries of several queues share one sequence of tags but arrive through separate buffers, so a lower
//! tag may still be unseen. Above the first unsettled or unseen tag, each tag is acknowledged alone.
//!
//! # Marks
//!
//! The mark of a queue is the time before which all deliveries of the queue are settled, as far as one channel can know:
//! the queue delivers the oldest events first.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::Timestamp;

/// An acknowledgement to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    /// The tag.
    pub(super) tag: u64,
    /// Whether it includes all lower unsettled tags.
    pub(super) multiple: bool,
}

/// An unsettled delivery.
#[derive(Clone, Copy, Debug)]
struct UnsettledDelivery {
    queue: usize,
    received_at: Option<Timestamp>,
}

/// The unsettled deliveries of one channel.
#[derive(Debug)]
pub(super) struct Ledger {
    unsettled: BTreeMap<u64, UnsettledDelivery>,
    /// All tags up to this one have been seen.
    seen: u64,
    /// Seen tags after the first gap.
    early: BTreeSet<u64>,
    /// Per queue: when its newest settled event was received.
    settled: Vec<Option<Timestamp>>,
}

impl Ledger {
    /// Creates the ledger of a new channel that consumes a number of queues.
    pub(super) fn new(queues: usize) -> Self {
        Self { unsettled: BTreeMap::new(), seen: 0, early: BTreeSet::new(), settled: vec![None; queues] }
    }

    /// Returns the number of unsettled deliveries.
    pub(super) fn len(&self) -> usize {
        self.unsettled.len()
    }

    /// Adds a delivery. `received_at` is that of its event, if it can be decoded.
    pub(super) fn arrived(&mut self, tag: u64, queue: usize, received_at: Option<Timestamp>) {
        self.unsettled.insert(tag, UnsettledDelivery { queue, received_at });
        self.early.insert(tag);
        while self.early.remove(&(self.seen + 1)) {
            self.seen += 1;
        }
    }

    /// Removes settled deliveries, and returns the acknowledgements to send.
    pub(super) fn acknowledged(&mut self, mut tags: Vec<u64>) -> Vec<Ack> {
        tags.retain(|tag| self.take(*tag));
        tags.sort_unstable();
        let first_unsettled = self.unsettled.first_key_value().map_or(u64::MAX, |(tag, _)| *tag);
        let covered = tags.partition_point(|tag| *tag < first_unsettled && *tag <= self.seen);
        let together = tags[..covered].last().map(|tag| Ack { tag: *tag, multiple: covered > 1 });
        together.into_iter().chain(tags[covered..].iter().map(|tag| Ack { tag: *tag, multiple: false })).collect()
    }

    /// Removes a returned delivery; returns whether it was unsettled.
    pub(super) fn returned(&mut self, tag: u64) -> bool {
        self.unsettled.remove(&tag).is_some()
    }

    /// Returns the marks of the queues.
    pub(super) fn marks(&self) -> Vec<Option<Timestamp>> {
        let mut marks = self.settled.clone();
        for delivery in self.unsettled.values() {
            if let (Some(mark), Some(received_at)) = (&mut marks[delivery.queue], delivery.received_at) {
                *mark = received_at.min(*mark);
            }
        }
        marks
    }

    fn take(&mut self, tag: u64) -> bool {
        let Some(delivery) = self.unsettled.remove(&tag) else { return false };
        let newest = &mut self.settled[delivery.queue];
        *newest = (*newest).max(delivery.received_at);
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
    fn one_frame_acknowledges_all_tags_below_the_first_unsettled() {
        let mut ledger = Ledger::new(1);
        (1..=6).for_each(|tag| ledger.arrived(tag, 0, None));
        let one = |tag| Ack { tag, multiple: false };
        assert_eq!(ledger.acknowledged(vec![3, 1, 2, 5]), [Ack { tag: 3, multiple: true }, one(5)]);
        assert_eq!(ledger.acknowledged(vec![4]), [one(4)]);
        assert_eq!(ledger.acknowledged(vec![4]), []);
        assert_eq!(ledger.len(), 1);
    }

    #[test]
    fn an_unseen_tag_is_never_acknowledged() {
        let mut ledger = Ledger::new(2);
        for tag in [1, 3, 4] {
            ledger.arrived(tag, 1, None);
        }
        let one = |tag| Ack { tag, multiple: false };
        assert_eq!(ledger.acknowledged(vec![1, 3, 4]), [one(1), one(3), one(4)]);
    }

    #[test]
    fn a_mark_is_not_newer_than_any_unsettled_event() {
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
        /// Compares the ledger with a broker that executes every frame.
        #[test]
        fn the_broker_removes_exactly_what_was_settled(
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
