//! Which events the store refuses, and whether one of them is a poison message.
//!
//! A poison message is refused while others succeed. What is refused together with everything else is an outage: a user
//! lost a permission, or the server does not know a command. So a refusal counts only if another event took effect since
//! the last refusal of the same event, or if no other event is refused. Counts are kept here, not by the queue, which
//! counts returns for every reason.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::domain::Digest;

/// The number of refusals after which an event may be a poison message.
const MAX_REFUSALS: u32 = 20;

/// How many refused events are remembered; further ones are redelivered without a count.
const MAX_EVENTS: usize = 4_096;

/// The refused events of this process.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Refused>);

#[derive(Debug, Default)]
struct Refused {
    /// How many events have taken effect.
    succeeded: u64,
    events: HashMap<Digest, EventRefusals>,
}

/// The refusals of one event.
#[derive(Debug)]
struct EventRefusals {
    counted: u32,
    /// How many events had taken effect at its last refusal.
    seen: u64,
}

impl Refusals {
    /// Records that an event took effect.
    pub(super) fn succeeded(&self, event: Digest) {
        let mut refused = self.0.lock();
        refused.succeeded += 1;
        if !refused.events.is_empty() {
            refused.events.remove(&event);
        }
    }

    /// Records that an event was refused. Returns whether it may be a poison message.
    pub(super) fn refused(&self, event: Digest) -> bool {
        let Refused { succeeded, events } = &mut *self.0.lock();
        let is_alone = events.keys().all(|known| *known == event);
        if !events.contains_key(&event) && events.len() >= MAX_EVENTS {
            return false;
        }
        let known = events.entry(event).or_insert(EventRefusals { counted: 0, seen: *succeeded });
        if is_alone || *succeeded > known.seen {
            known.counted += 1;
        }
        known.seen = *succeeded;
        known.counted > MAX_REFUSALS
    }

    /// Returns how many events are refused.
    pub(super) fn len(&self) -> usize {
        self.0.lock().events.len()
    }

    /// Forgets an event that became a dead letter.
    pub(super) fn forget(&self, event: Digest) {
        self.0.lock().events.remove(&event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> Digest {
        Digest::from_bytes((n as u128).to_be_bytes())
    }

    #[test]
    fn what_is_refused_with_all_others_is_never_poison() {
        let (refusals, all) = (Refusals::default(), [1, 2, 3].map(event));
        refusals.refused(all[0]);
        for _ in 0..10 * MAX_REFUSALS {
            assert!(all.iter().all(|one| !refusals.refused(*one)));
        }
    }

    #[test]
    fn what_is_refused_while_others_succeed_is_poison() {
        let (refusals, one, two) = (Refusals::default(), event(1), event(2));
        refusals.refused(one);
        for _ in 0..=MAX_REFUSALS {
            assert!(!refusals.refused(two));
            refusals.succeeded(event(3));
        }
        assert!(refusals.refused(two));
        refusals.forget(two);
        assert!(!refusals.refused(two));
        assert_eq!(refusals.len(), 2);
    }

    #[test]
    fn the_only_refused_event_is_poison_without_others() {
        let (refusals, one) = (Refusals::default(), event(1));
        assert!((0..MAX_REFUSALS).all(|_| !refusals.refused(one)));
        assert!(refusals.refused(one));
    }

    #[test]
    fn the_number_of_remembered_events_is_bounded() {
        let refusals = Refusals::default();
        for n in 0..=MAX_EVENTS {
            assert!(!refusals.refused(event(n)));
        }
        assert_eq!(refusals.len(), MAX_EVENTS);
    }
}
