//! The delivery window: which events of a subscription are unsettled, and which wait for their redelivery. Pure: no
//! I/O, no clock.
//!
//! At most `prefetch` events are unsettled. A returned event waits for its [redelivery delay](redelivery_delay), so that
//! other events go first and a failing event does not spin. Many wait where a part of the store fails; so that the events of
//! the other parts go on, new events and due ones take turns, and a due one is at least [`SPACING`] after the one before.
//! At most [`MAX_DELAYED`] events of [`MAX_DELAYED_BYTES`] wait at once; at that number no new event is delivered until one
//! of them was redelivered.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::delivery::redelivery_delay;

use super::change::LogEntry;

/// How many events may wait for their redelivery at once.
const MAX_DELAYED: usize = 65_536;

/// How many bytes they may have together, since they wait in memory.
const MAX_DELAYED_BYTES: usize = 64 << 20;

/// The least time between two redeliveries.
const SPACING: Duration = Duration::from_micros(500);

/// The unsettled and the delayed events of one subscription.
#[derive(Debug)]
pub(super) struct DeliveryWindow {
    prefetch: usize,
    unsettled: HashSet<u64>,
    delayed: BTreeMap<(Instant, u64), LogEntry>,
    delayed_positions: HashSet<u64>,
    delayed_bytes: usize,
    /// Whether the last delivery was a redelivery.
    redelivered_last: bool,
    /// When the next redelivery is allowed.
    redeliver_from: Option<Instant>,
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
        Self {
            prefetch: prefetch.max(1),
            unsettled: HashSet::new(),
            delayed: BTreeMap::new(),
            delayed_positions: HashSet::new(),
            delayed_bytes: 0,
            redelivered_last: false,
            redeliver_from: None,
            ended: false,
        }
    }

    /// Decides what to deliver now: a delayed event that is due or the first of `fresh`, in turns.
    pub(super) fn next_action(&mut self, now: Instant, fresh: &mut VecDeque<LogEntry>) -> NextAction {
        if self.ended {
            return NextAction::End;
        }
        if self.unsettled.len() >= self.prefetch {
            return NextAction::Wait { wanted: false, until: None };
        }
        let wanted = self.has_room();
        let due =
            self.delayed.first_key_value().map(|((due, _), _)| self.redeliver_from.map_or(*due, |from| from.max(*due)));
        let is_due = due.is_some_and(|due| due <= now);
        let is_fresh = wanted && !fresh.is_empty() && (!is_due || self.redelivered_last);
        self.redelivered_last = is_due && !is_fresh;
        let entry = if is_fresh {
            fresh.pop_front()
        } else if is_due {
            self.redeliver_from = Some(now + SPACING);
            self.take_delayed()
        } else {
            None
        };
        match entry {
            Some(entry) => {
                self.unsettled.insert(entry.position);
                NextAction::Deliver(entry)
            }
            None => NextAction::Wait { wanted, until: due },
        }
    }

    /// Returns whether the delayed events alone may keep the consumer busy, while there is room for new ones.
    pub(super) fn may_starve_new_events(&self) -> bool {
        !self.delayed.is_empty() && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.delayed.len() < MAX_DELAYED && self.delayed_bytes < MAX_DELAYED_BYTES
    }

    fn take_delayed(&mut self) -> Option<LogEntry> {
        let (_, entry) = self.delayed.pop_first()?;
        self.delayed_positions.remove(&entry.position);
        self.delayed_bytes -= entry.wire.len();
        Some(entry)
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
            self.delayed_positions.insert(entry.position);
            self.delayed_bytes += entry.wire.len();
            self.delayed.insert((due, entry.position), entry);
        }
        was_unsettled
    }

    /// Returns whether an event is unsettled or delayed.
    pub(super) fn contains(&self, position: u64) -> bool {
        self.unsettled.contains(&position) || self.delayed_positions.contains(&position)
    }

    /// Ends the subscription, and returns the positions of the unsettled events.
    pub(super) fn end(&mut self) -> HashSet<u64> {
        self.ended = true;
        self.delayed.clear();
        self.delayed_positions.clear();
        self.delayed_bytes = 0;
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
    async fn new_events_and_due_ones_take_turns() {
        let (mut window, mut fresh, now) = (DeliveryWindow::new(16), entries(0..8), Instant::now());
        for _ in 0..4 {
            let entry = deliver(&mut window, now, &mut fresh);
            assert!(window.returned(entry, now));
        }
        let mut at = now + redelivery_delay(0);
        let mut returns = Vec::new();
        for _ in 0..8 {
            returns.push(deliver(&mut window, at, &mut fresh).returns);
            at += SPACING;
        }
        assert_eq!(returns.iter().filter(|returns| **returns == 1).count(), 4);
        assert!(returns.windows(2).all(|two| two[0] != two[1]), "{returns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn redeliveries_have_a_least_distance() {
        let (mut window, mut fresh, now) = (DeliveryWindow::new(4), entries(0..2), Instant::now());
        for _ in 0..2 {
            let entry = deliver(&mut window, now, &mut fresh);
            assert!(window.returned(entry, now));
        }
        let due = now + redelivery_delay(0);
        deliver(&mut window, due, &mut fresh);
        let waits = window.next_action(due, &mut fresh);
        assert!(matches!(waits, NextAction::Wait { until: Some(until), .. } if until == due + SPACING), "{waits:?}");
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
