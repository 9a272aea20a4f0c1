//! Recently recorded events: they distinguish a redelivery with a record from one whose record was lost in a crash.

use std::collections::{HashSet, VecDeque};

use crate::domain::Digest;

/// How many events are remembered: far more than a queue delivers before the first acknowledgement.
pub(super) const CAPACITY: usize = 65_536;

/// A bounded set; the oldest events are removed first.
#[derive(Debug, Default)]
pub(super) struct RecentEvents {
    known: HashSet<Digest>,
    order: VecDeque<Digest>,
}

impl RecentEvents {
    /// Adds an event; returns whether it is new.
    pub(super) fn insert(&mut self, event: Digest) -> bool {
        if !self.known.insert(event) {
            return false;
        }
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(event);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let event = |n: usize| Digest::from_bytes((n as u128).to_be_bytes());
        let mut recent = RecentEvents::default();
        assert!((0..=CAPACITY).all(|n| recent.insert(event(n))));
        assert!(!recent.insert(event(1)) && !recent.insert(event(CAPACITY)));
        assert!(recent.insert(event(0)));
        assert_eq!((recent.known.len(), recent.order.len()), (CAPACITY, CAPACITY));
    }
}
