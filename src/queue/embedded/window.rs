//! What one subscription has out, and what rests before it goes out again. Pure: no I/O, no time of
//! its own.
//!
//! At most `prefetch` events are out. One that came back unsettled rests for a while that doubles
//! with each return ([`rest`]), so that others go first and a failing event does not spin. At most
//! [`MAX_RESTING`] rest at once; with that many, nothing fresh goes out until one of them has.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::log::Entry;

/// How many events may rest at once.
const MAX_RESTING: usize = 1_024;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// What one subscription has out and what rests.
#[derive(Debug)]
pub(super) struct Window {
    prefetch: usize,
    out: HashSet<u64>,
    resting: BTreeMap<(Instant, u64), Entry>,
    ended: bool,
}

/// What the subscription does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Hand this out.
    Deliver(Entry),
    /// Wait until something comes back or `until`, and for fresh events if they are `wanted`.
    Wait {
        /// There is room for a fresh event.
        wanted: bool,
        /// When the first resting event is due.
        until: Option<Instant>,
    },
    /// End: another subscription has taken over.
    End,
}

/// Returns how long an event rests after it came back for the `returns`th time: 100 ms, doubling to 5 s.
fn rest(returns: u32) -> Duration {
    FIRST_REST.saturating_mul(1 << returns.saturating_sub(1).min(16)).min(LONGEST_REST)
}

impl Window {
    pub(super) fn new(prefetch: usize) -> Self {
        Self { prefetch: prefetch.max(1), out: HashSet::new(), resting: BTreeMap::new(), ended: false }
    }

    /// Decides what goes out now: what is due, else the first of `fresh`.
    pub(super) fn step(&mut self, now: Instant, fresh: &mut VecDeque<Entry>) -> Step {
        if self.ended {
            return Step::End;
        }
        if self.out.len() >= self.prefetch {
            return Step::Wait { wanted: false, until: None };
        }
        let room = self.resting.len() < MAX_RESTING;
        let entry = match self.resting.first_entry().filter(|first| first.key().0 <= now) {
            Some(due) => Some(due.remove()),
            None if room => fresh.pop_front(),
            None => None,
        };
        match entry {
            Some(entry) => {
                self.out.insert(entry.seq);
                Step::Deliver(entry)
            }
            None => Step::Wait { wanted: room, until: self.resting.first_key_value().map(|((due, _), _)| *due) },
        }
    }

    /// Forgets an event that was settled.
    pub(super) fn settled(&mut self, seq: u64) {
        self.out.remove(&seq);
    }

    /// Puts an event to rest that came back. Tells whether it was still out: after the end of the
    /// subscription it no longer is.
    pub(super) fn came_back(&mut self, mut entry: Entry, now: Instant) -> bool {
        let was_out = self.out.remove(&entry.seq);
        if was_out {
            entry.returns = entry.returns.saturating_add(1);
            self.resting.insert((now + rest(entry.returns), entry.seq), entry);
        }
        was_out
    }

    /// Tells whether an event is out or rests.
    pub(super) fn holds(&self, seq: u64) -> bool {
        self.out.contains(&seq) || self.resting.values().any(|entry| entry.seq == seq)
    }

    /// Ends the subscription, and returns what was out.
    pub(super) fn end(&mut self) -> HashSet<u64> {
        self.ended = true;
        self.resting.clear();
        std::mem::take(&mut self.out)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entries(seqs: std::ops::Range<u64>) -> VecDeque<Entry> {
        seqs.map(|seq| Entry { seq, returns: 0, wire: Bytes::new() }).collect()
    }

    fn deliver(window: &mut Window, now: Instant, fresh: &mut VecDeque<Entry>) -> Entry {
        match window.step(now, fresh) {
            Step::Deliver(entry) => entry,
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    #[test]
    fn rests_double_up_to_the_longest() {
        let millis: Vec<u128> = [1, 2, 3, 6, 7, 20, u32::MAX].map(|returns| rest(returns).as_millis()).into();
        assert_eq!(millis, [100, 200, 400, 3_200, 5_000, 5_000, 5_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_came_back_goes_out_when_its_rest_is_over_and_not_before() {
        let (mut window, mut fresh, now) = (Window::new(1), entries(0..2), Instant::now());
        let first = deliver(&mut window, now, &mut fresh);
        assert!(window.came_back(first, now));
        let second = deliver(&mut window, now, &mut fresh);
        assert_eq!(second.seq, 1);
        window.settled(1);
        let due = now + FIRST_REST;
        let waits = window.step(due - Duration::from_millis(1), &mut fresh);
        assert!(matches!(waits, Step::Wait { wanted: true, until: Some(until) } if until == due), "{waits:?}");
        let again = deliver(&mut window, due, &mut fresh);
        assert_eq!((again.seq, again.returns), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_fresh_goes_out_while_too_many_rest() {
        let (mut window, now) = (Window::new(1), Instant::now());
        let mut fresh = entries(0..MAX_RESTING as u64 + 1);
        for _ in 0..MAX_RESTING {
            let entry = deliver(&mut window, now, &mut fresh);
            assert!(window.came_back(entry, now));
        }
        assert!(matches!(window.step(now, &mut fresh), Step::Wait { wanted: false, until: Some(_) }));
        assert_eq!(fresh.len(), 1);
        assert_eq!(deliver(&mut window, now + FIRST_REST, &mut fresh).returns, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_end_nothing_comes_back() {
        let (mut window, mut fresh, now) = (Window::new(2), entries(0..2), Instant::now());
        let entry = deliver(&mut window, now, &mut fresh);
        assert_eq!(window.end(), HashSet::from([0]));
        assert!(!window.came_back(entry, now));
        assert!(matches!(window.step(now, &mut fresh), Step::End));
    }
}
