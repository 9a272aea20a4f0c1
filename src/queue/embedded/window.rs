//! The delivery window: which events of a subscription are unsettled, and which wait for their redelivery. Pure: no
//! I/O, no clock.
//!
//! At most `prefetch` events are unsettled. A returned event waits for its [redelivery delay](redelivery_delay), so that
//! other events go first and a failing event does not spin. At most [`MAX_DELAYED`] events wait at once; at that number
//! no new event is delivered until one of them was redelivered.

use std::collections::{BTreeMap, HashSet, VecDeque};

use tokio::time::Instant;

use crate::queue::delivery::redelivery_delay;

use super::change::LogEntry;

/// How many events may wait for their redelivery at once.
const MAX_DELAYED: usize = 1_024;

/// The unsettled and the delayed events of one subscription.
#[derive(Debug)]
pub(super) struct DeliveryWindow {
    prefetch: usize,
    unsettled: HashSet<u64>,
    delayed: BTreeMap<(Instant, u64), LogEntry>,
    ended: bool,
}

/// The next action of the subscription.
#[derive(Debug)]
pub(super) enum NextAction {
    /// Deliver this event.
    Deliver(LogEntry),
    /// Wait for a settlement or until `until`, and for new events if they are `wanted`.
    Wait {
        /// Whether a new event can be delivered.
        wanted: bool,
        /// When the first delayed event is due.
        until: Option<Instant>,
    },
    /// End: another subscription has taken over.
    End,
}

impl DeliveryWindow {
    pub(super) fn new(prefetch: usize) -> Self {
        Self { prefetch: prefetch.max(1), unsettled: HashSet::new(), delayed: BTreeMap::new(), ended: false }
    }

    /// Decides what to deliver now: a delayed event that is due, else the first of `fresh`.
    pub(super) fn next_action(&mut self, now: Instant, fresh: &mut VecDeque<LogEntry>) -> NextAction {
        if self.ended {
            return NextAction::End;
        }
        if self.unsettled.len() >= self.prefetch {
            return NextAction::Wait { wanted: false, until: None };
        }
        let wanted = self.delayed.len() < MAX_DELAYED;
        let entry = match self.delayed.first_entry().filter(|first| first.key().0 <= now) {
            Some(due) => Some(due.remove()),
            None if wanted => fresh.pop_front(),
            None => None,
        };
        match entry {
            Some(entry) => {
                self.unsettled.insert(entry.position);
                NextAction::Deliver(entry)
            }
            None => NextAction::Wait { wanted, until: self.delayed.first_key_value().map(|((due, _), _)| *due) },
        }
    }

    /// Removes a settled event.
    pub(super) fn settled(&mut self, position: u64) {
        self.unsettled.remove(&position);
    }

    /// Delays a returned event. Returns whether it was unsettled; after the end of the subscription no event is.
    pub(super) fn returned(&mut self, mut entry: LogEntry, now: Instant) -> bool {
        let was_unsettled = self.unsettled.remove(&entry.position);
        if was_unsettled {
            let due = now + redelivery_delay(entry.returns);
            entry.returns = entry.returns.saturating_add(1);
            self.delayed.insert((due, entry.position), entry);
        }
        was_unsettled
    }

    /// Returns whether an event is unsettled or delayed.
    pub(super) fn contains(&self, position: u64) -> bool {
        self.unsettled.contains(&position) || self.delayed.values().any(|entry| entry.position == position)
    }

    /// Ends the subscription, and returns the positions of the unsettled events.
    pub(super) fn end(&mut self) -> HashSet<u64> {
        self.ended = true;
        self.delayed.clear();
        std::mem::take(&mut self.unsettled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    fn entries(positions: std::ops::Range<u64>) -> VecDeque<LogEntry> {
        positions.map(|position| LogEntry { position, returns: 0, wire: Bytes::new() }).collect()
    }

    fn deliver(window: &mut DeliveryWindow, now: Instant, fresh: &mut VecDeque<LogEntry>) -> LogEntry {
        match window.next_action(now, fresh) {
            NextAction::Deliver(entry) => entry,
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_returned_event_is_redelivered_after_its_delay_and_not_before() {
        let (mut window, mut fresh, now) = (DeliveryWindow::new(1), entries(0..2), Instant::now());
        let first = deliver(&mut window, now, &mut fresh);
        assert!(window.returned(first, now));
        let second = deliver(&mut window, now, &mut fresh);
        assert_eq!(second.position, 1);
        window.settled(1);
        let due = now + redelivery_delay(0);
        let waits = window.next_action(due - Duration::from_millis(1), &mut fresh);
        assert!(matches!(waits, NextAction::Wait { wanted: true, until: Some(until) } if until == due), "{waits:?}");
        let again = deliver(&mut window, due, &mut fresh);
        assert_eq!((again.position, again.returns), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_new_event_is_delivered_while_too_many_are_delayed() {
        let (mut window, now) = (DeliveryWindow::new(1), Instant::now());
        let mut fresh = entries(0..MAX_DELAYED as u64 + 1);
        for _ in 0..MAX_DELAYED {
            let entry = deliver(&mut window, now, &mut fresh);
            assert!(window.returned(entry, now));
        }
        assert!(matches!(window.next_action(now, &mut fresh), NextAction::Wait { wanted: false, until: Some(_) }));
        assert_eq!(fresh.len(), 1);
        assert_eq!(deliver(&mut window, now + redelivery_delay(0), &mut fresh).returns, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_end_no_event_is_returned() {
        let (mut window, mut fresh, now) = (DeliveryWindow::new(2), entries(0..2), Instant::now());
        let entry = deliver(&mut window, now, &mut fresh);
        assert_eq!(window.end(), HashSet::from([0]));
        assert!(!window.returned(entry, now));
        assert!(matches!(window.next_action(now, &mut fresh), NextAction::End));
    }
}
