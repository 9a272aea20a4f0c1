//! The events that were recorded lately: what tells a redelivery whose record is there from one whose record was lost
//! in a crash.

use std::collections::{HashSet, VecDeque};

use crate::domain::Digest;

/// How many are remembered: far more than a queue hands out before the acknowledgement of the first.
pub(super) const CAPACITY: usize = 65_536;

/// A bounded set; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    known: HashSet<Digest>,
    order: VecDeque<Digest>,
}

impl Recent {
    /// Remembers an event; tells whether it was not known.
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
    fn the_oldest_is_forgotten_and_the_others_are_known() {
        let event = |n: usize| Digest::from_bytes((n as u128).to_be_bytes());
        let mut recent = Recent::default();
        assert!((0..=CAPACITY).all(|n| recent.insert(event(n))));
        assert!(!recent.insert(event(1)) && !recent.insert(event(CAPACITY)));
        assert!(recent.insert(event(0)));
        assert_eq!((recent.known.len(), recent.order.len()), (CAPACITY, CAPACITY));
    }
}
