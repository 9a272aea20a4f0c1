//! The slots of a cluster whose move to another node does not end.
//!
//! While a slot moves, each of the two nodes may send a command to the other (`ASK`, `TRYAGAIN`), until all keys of the
//! customer have arrived. So a command is repeated, until the timeout. But if that is in vain, the events of one slot would
//! hold all places of the consumer. Then only one command of the slot in a [`PERIOD`] is repeated, and the others fail at
//! once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time in which one command of a stuck slot is repeated.
const PERIOD: Duration = Duration::from_secs(1);

/// After this time without a command a slot is no longer taken for stuck: it may move again, and in time.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// From when on a command of each stuck slot may be repeated again.
#[derive(Debug, Default)]
pub(super) struct StuckSlots(Mutex<HashMap<usize, Instant>>);

impl StuckSlots {
    /// Returns whether a command may be repeated that starts to wait now.
    pub(super) fn may_repeat(&self, slot: usize, now: Instant) -> bool {
        match self.0.lock().entry(slot) {
            Entry::Vacant(_) => true,
            Entry::Occupied(mut next) => {
                let is_due = now >= *next.get();
                if now >= *next.get() + FORGOTTEN_AFTER {
                    next.remove();
                } else if is_due {
                    next.insert(now + PERIOD);
                }
                is_due
            }
        }
    }

    /// Records that a command was repeated until the timeout, in vain.
    pub(super) fn repeated_in_vain(&self, slot: usize, now: Instant) {
        self.0.lock().insert(slot, now + PERIOD);
    }

    /// Records that a repeated command was run.
    pub(super) fn ran(&self, slot: usize) {
        self.0.lock().remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_command_of_a_stuck_slot_is_repeated_in_each_period() {
        let (slots, now) = (StuckSlots::default(), Instant::now());
        assert!(slots.may_repeat(1, now) && slots.may_repeat(1, now), "nothing was in vain");
        slots.repeated_in_vain(1, now);
        assert!(!slots.may_repeat(1, now));
        assert!(slots.may_repeat(2, now), "another slot");
        assert!(slots.may_repeat(1, now + PERIOD));
        assert!(!slots.may_repeat(1, now + PERIOD), "a second one in the period");
        let later = now + PERIOD * 2 + FORGOTTEN_AFTER;
        assert!(slots.may_repeat(1, later) && slots.may_repeat(1, later), "it moves again");
        slots.repeated_in_vain(1, now);
        slots.ran(1);
        assert!(slots.may_repeat(1, now + PERIOD) && slots.may_repeat(1, now + PERIOD));
    }
}
