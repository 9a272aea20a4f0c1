//! The lanes: for each shard, where its next event goes. No I/O.
//!
//! | state of a lane | its next event |
//! |---|---|
//! | nothing waits and the broker answers | goes to the broker |
//! | the broker does not answer | goes to the log |
//! | older events wait | goes to the log, behind them |
//! | few wait, and the broker answers | waits for them, then goes to the broker |
//!
//! Without the last state a steady stream of events would never leave the detour, since the log would never be empty.
//! Events that an earlier process left count for every lane, because their shards are not known.
//!
//! The counts may be too high after a cancelled publish or a failure of the disk. They start over when the log is empty.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// How many events of a lane may wait while newer ones wait for them.
pub(super) const FEW: u64 = 256;

/// How long a refusal of the broker counts for a full log: longer than the relay pauses and waits for a confirm.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The lanes of all shards.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Whether an event may have to take the detour. Read without the lock, once for each publish.
    detour: AtomicBool,
    state: Mutex<LaneStates>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct LaneStates {
    lanes: Vec<Lane>,
    /// Events that an earlier process left in the log.
    inherited: u64,
    /// Appends to the log in progress.
    appending: u64,
    /// Events that were appended since the last call of [`Lanes::take_arrived`].
    arrived: u64,
    /// Events that were handed on since the detour began.
    handed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// Events in the log, or on their way there.
    waiting: u64,
    /// When the broker last did not take an event, if it has taken none since.
    failed: Option<Instant>,
    /// Newer events wait until none is in the log.
    is_closing: bool,
}

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Route {
    /// To the broker.
    Broker,
    /// Wait for a change of the lanes, then ask again.
    Wait,
    /// To the log.
    Log,
}

/// What a handover changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handover {
    /// More events wait.
    Continues,
    /// The broker answers again, and more events wait.
    Resumed,
    /// The log is empty; the number of events that were handed on.
    Complete(u64),
}

impl Lanes {
    /// Creates the lanes of `shards` shards; `inherited` events are in the log already.
    pub(super) fn new(shards: usize, inherited: u64) -> Self {
        let lanes = vec![Lane::default(); shards];
        let state = Mutex::new(LaneStates { lanes, inherited, appending: 0, arrived: 0, handed: 0 });
        Self { detour: AtomicBool::new(inherited > 0), state, changed: watch::Sender::new(()) }
    }

    /// Returns whether every event goes to the broker.
    pub(super) fn are_open(&self) -> bool {
        !self.detour.load(Ordering::Acquire)
    }

    /// Returns a receiver that is told of later changes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns where events of these shards go, all of them together.
    pub(super) fn route(&self, shards: &[usize]) -> Route {
        let state = self.state.lock();
        let route = |shard: &usize| {
            let lane = state.lanes[*shard];
            match (lane.failed.is_some(), lane.waiting + state.inherited, lane.is_closing) {
                (true, _, _) => Route::Log,
                (false, 0, _) => Route::Broker,
                (false, _, true) => Route::Wait,
                (false, _, false) => Route::Log,
            }
        };
        shards.iter().map(route).max().unwrap_or(Route::Broker)
    }

    /// Notes that the broker did not take events of these shards; returns whether it took the events of one before.
    pub(super) fn failed(&self, shards: &[usize]) -> bool {
        let mut is_new = false;
        self.change(|state| {
            for shard in shards {
                let lane = &mut state.lanes[*shard];
                is_new |= lane.failed.is_none();
                (lane.failed, lane.is_closing) = (Some(Instant::now()), false);
            }
        });
        is_new
    }

    /// Counts events that are about to be appended to the log, one for each of these shards.
    pub(super) fn append<'a>(&'a self, shards: &'a [usize]) -> Append<'a> {
        self.change(|state| {
            state.appending += 1;
            state.arrived += shards.len() as u64;
            shards.iter().for_each(|shard| state.lanes[*shard].waiting += 1);
        });
        Append { lanes: self, shards, has_result: false }
    }

    /// Returns how many events were appended since the last call.
    pub(super) fn take_arrived(&self) -> u64 {
        std::mem::take(&mut self.state.lock().arrived)
    }

    /// Notes that the broker has events of a shard, and that the log has no longer; `left` returns how many it has.
    pub(super) fn handed_on(&self, shard: usize, events: u64, left: impl FnOnce() -> u64) -> Handover {
        let mut handover = Handover::Continues;
        self.change(|state| {
            state.handed += events;
            let inherited = state.inherited.min(events);
            state.inherited -= inherited;
            let lane = &mut state.lanes[shard];
            lane.waiting = lane.waiting.saturating_sub(events - inherited);
            if lane.failed.take().is_some() {
                handover = Handover::Resumed;
            }
            lane.is_closing = lane.waiting + state.inherited <= FEW;
            if state.appending == 0 && left() == 0 {
                state.inherited = 0;
                state.lanes.fill(Lane::default());
                handover = Handover::Complete(std::mem::take(&mut state.handed));
            }
        });
        handover
    }

    fn change(&self, change: impl FnOnce(&mut LaneStates)) {
        let mut state = self.state.lock();
        change(&mut state);
        let is_used = |lane: &Lane| lane.failed.is_some() || lane.waiting > 0;
        let detour = state.inherited > 0 || state.appending > 0 || state.lanes.iter().any(is_used);
        self.detour.store(detour, Ordering::Release);
        drop(state);
        self.changed.send_replace(());
    }
}

/// An append to the log in progress.
///
/// The relay asks the broker whether it answers again, with what the log holds of each lane. If the log refuses, and holds
/// nothing of a lane, or its disk hands nothing on, or the relay has not asked for [`ASK_AGAIN`], the next publish asks the
/// broker itself. Dropped without a result, the events count as being in the log, whose disk may hang.
#[derive(Debug)]
pub(super) struct Append<'a> {
    lanes: &'a Lanes,
    shards: &'a [usize],
    has_result: bool,
}

impl Append<'_> {
    /// Returns whether the broker is known not to answer.
    pub(super) fn is_failing(&self) -> bool {
        let state = self.lanes.state.lock();
        self.shards.iter().any(|shard| state.lanes[*shard].failed.is_some())
    }

    /// Notes that the log has the events.
    pub(super) fn kept(mut self) {
        self.has_result = true;
    }

    /// Takes the counts back, since the log refused; `is_broken`: not because it is full. Returns whether the broker is
    /// known not to answer.
    pub(super) fn refused(mut self, is_broken: bool) -> bool {
        self.has_result = true;
        let is_failing = self.is_failing();
        self.lanes.change(|state| {
            for shard in self.shards {
                let lane = &mut state.lanes[*shard];
                lane.waiting = lane.waiting.saturating_sub(1);
                let is_asked =
                    |failed: &Instant| !is_broken && lane.waiting + state.inherited > 0 && failed.elapsed() < ASK_AGAIN;
                lane.failed = lane.failed.filter(is_asked);
            }
        });
        is_failing
    }
}

impl Drop for Append<'_> {
    fn drop(&mut self) {
        self.lanes.change(|state| {
            state.appending -= 1;
            if !self.has_result {
                self.shards.iter().for_each(|shard| state.lanes[*shard].failed = None);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(lanes: &Lanes, shards: &[usize]) {
        lanes.append(shards).kept();
    }

    #[test]
    fn a_failure_and_older_events_detour_their_own_shard_only() {
        let lanes = Lanes::new(2, 0);
        assert!(lanes.are_open());
        assert!(lanes.failed(&[0]));
        assert!(!lanes.failed(&[0]) && !lanes.are_open());
        assert_eq!(
            (lanes.route(&[0]), lanes.route(&[1]), lanes.route(&[1, 0])),
            (Route::Log, Route::Broker, Route::Log)
        );
        keep(&lanes, &[0]);
        assert_eq!(lanes.handed_on(0, 1, || 0), Handover::Complete(1));
        assert!(lanes.are_open());
        assert_eq!(lanes.route(&[0, 1]), Route::Broker);
    }

    #[test]
    fn newer_events_wait_for_the_last_older_ones_and_then_go_directly() {
        let lanes = Lanes::new(1, 0);
        lanes.failed(&[0]);
        for _ in 0..FEW + 2 {
            keep(&lanes, &[0]);
        }
        assert_eq!(lanes.handed_on(0, 1, || FEW + 1), Handover::Resumed);
        assert_eq!(lanes.route(&[0]), Route::Log);
        assert_eq!(lanes.handed_on(0, 1, || FEW), Handover::Continues);
        assert_eq!(lanes.route(&[0]), Route::Wait);
        // A failure opens the log again at once.
        lanes.failed(&[0]);
        assert_eq!(lanes.route(&[0]), Route::Log);
        assert_eq!(lanes.handed_on(0, FEW, || 0), Handover::Complete(FEW + 2));
    }

    #[test]
    fn events_of_an_earlier_process_detour_every_shard() {
        let lanes = Lanes::new(2, 1_000);
        assert_eq!((lanes.route(&[0]), lanes.route(&[1])), (Route::Log, Route::Log));
        assert_eq!(lanes.handed_on(0, 900, || 100), Handover::Continues);
        assert_eq!((lanes.route(&[0]), lanes.route(&[1])), (Route::Wait, Route::Log));
        assert_eq!(lanes.handed_on(1, 100, || 0), Handover::Complete(1_000));
        assert!(lanes.are_open());
    }

    #[test]
    fn wrong_counts_end_with_an_empty_log_but_not_during_an_append() {
        let lanes = Lanes::new(1, 0);
        lanes.failed(&[0]);
        keep(&lanes, &[0, 0, 0]);
        let appending = lanes.append(&[0]);
        assert_eq!(lanes.handed_on(0, 1, || 0), Handover::Resumed);
        assert!(!lanes.are_open());
        appending.kept();
        assert_eq!(lanes.handed_on(0, 1, || 0), Handover::Complete(2));
        assert!(lanes.are_open());
    }

    #[test]
    fn a_full_log_remembers_the_failure_and_a_broken_one_forgets_it() {
        let lanes = Lanes::new(1, 0);
        lanes.failed(&[0]);
        keep(&lanes, &[0]);
        assert!(lanes.append(&[0]).refused(false));
        assert_eq!(lanes.route(&[0]), Route::Log);
        assert!(lanes.append(&[0]).refused(true));
        assert!(!lanes.append(&[0]).refused(true));
        assert_eq!(lanes.handed_on(0, 1, || 0), Handover::Complete(1));
        assert!(lanes.are_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_log_that_is_not_handed_on_lets_a_lane_ask_the_broker() {
        let lanes = Lanes::new(1, 1);
        lanes.failed(&[0]);
        assert!(lanes.append(&[0]).refused(false) && lanes.append(&[0]).is_failing());
        tokio::time::advance(ASK_AGAIN).await;
        lanes.append(&[0]).refused(false);
        assert!(!lanes.append(&[0]).is_failing());
    }

    #[test]
    fn a_full_log_without_events_of_a_lane_lets_it_ask_the_broker() {
        let lanes = Lanes::new(2, 0);
        lanes.failed(&[0, 1]);
        keep(&lanes, &[0]);
        assert!(lanes.append(&[0]).refused(false) && lanes.append(&[1]).refused(false));
        assert_eq!((lanes.route(&[0]), lanes.route(&[1])), (Route::Log, Route::Broker));
    }

    #[test]
    fn after_an_append_without_a_result_the_lane_asks_the_broker() {
        let lanes = Lanes::new(1, 0);
        lanes.failed(&[0]);
        drop(lanes.append(&[0]));
        // Behind the event that may be in the log.
        assert_eq!(lanes.route(&[0]), Route::Log);
        assert!(!lanes.append(&[0]).is_failing());
    }
}
