//! Which events the store refuses, and whether one of them is a poison message.
//!
//! A poison message is refused while others succeed. What is refused together with everything else is an outage: a user
//! lost a permission, or the server does not know a command. So a refusal counts only if another event took effect since
//! the last refusal of the same event, or if no other event is refused. Counts are kept here, not by the queue, which
//! counts returns for every reason.
//!
//! An event that was refused here may take effect in another process, which this one does not learn. So an event that is not
//! refused again for a while is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::Digest;

/// The number of refusals after which an event may be a poison message.
const MAX_REFUSALS: u32 = 20;

/// How many refused events are remembered; further ones are redelivered without a count.
const MAX_EVENTS: usize = 4_096;

/// How long an event is remembered after its last refusal. Longer than its way to the end of a long queue and back.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The refused events of this process.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Refused>);

#[derive(Debug, Default)]
struct Refused {
    /// How many events have taken effect.
    succeeded: u64,
    events: HashMap<Digest, EventRefusals>,
    /// When events were last forgotten.
    swept: Option<Instant>,
}

/// The refusals of one event.
#[derive(Debug)]
struct EventRefusals {
    counted: u32,
    /// How many events had taken effect at its last refusal.
    seen: u64,
    last: Instant,
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
        let Refused { succeeded, events, swept } = &mut *self.0.lock();
        let now = Instant::now();
        if swept.is_none_or(|swept| now - swept >= REMEMBERED / 10) {
            *swept = Some(now);
            events.retain(|_, known| now - known.last < REMEMBERED);
        }
        let is_alone = events.keys().all(|known| *known == event);
        if !events.contains_key(&event) && events.len() >= MAX_EVENTS {
            return false;
        }
        let known = events.entry(event).or_insert(EventRefusals { counted: 0, seen: *succeeded, last: now });
        if is_alone || *succeeded > known.seen {
            known.counted += 1;
        }
        (known.seen, known.last) = (*succeeded, now);
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

    #[tokio::test(start_paused = true)]
    async fn an_event_that_took_effect_in_another_process_is_forgotten() {
        let (refusals, one, two) = (Refusals::default(), event(1), event(2));
        refusals.refused(one);
        assert!((0..2 * MAX_REFUSALS).all(|_| !refusals.refused(two)), "it may be an outage");
        tokio::time::advance(REMEMBERED).await;
        assert!((0..MAX_REFUSALS).all(|_| !refusals.refused(two)));
        assert!(refusals.refused(two));
        assert_eq!(refusals.len(), 1);
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
