//! Stops sending commands to Redis servers that do not answer.
//!
//! A server that is gone refuses connections at once. A server that is stopped, or behind a stalled network, costs
//! each command the whole timeout. So after [`SUSPICIOUS`] commands in a row without an answer the
//! [breaker](crate::breaker) opens: for a period that doubles from 250 ms to 2 s nothing is sent to that server.
//! Then one command passes, as a probe. Its answer lets all commands pass again; without an answer the next period
//! begins. A late answer of any command closes the breaker too: the server does answer.
//!
//! Each server has its own breaker, also each node of a cluster. A new connection to the server does not close it, because a
//! server may connect and answer nothing else: the next command is a probe.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerPermit, Policy, RequestOutcome};

/// How many commands in a row without an answer open the breaker.
const SUSPICIOUS: u32 = 3;

/// Opens on silence in a row.
#[derive(Debug)]
struct Silence {
    /// Commands since the last answer.
    unanswered: u32,
}

impl Policy for Silence {
    const FIRST_PERIOD: Duration = Duration::from_millis(250);
    const LONGEST_PERIOD: Duration = Duration::from_secs(2);
    /// A cancelled command reports nothing.
    const PROBES_EXPIRE: bool = true;

    fn starting(_now: Instant) -> Self {
        Self { unanswered: 0 }
    }

    fn count(&mut self, failed: bool, _now: Instant) -> bool {
        self.unanswered = if failed { self.unanswered.saturating_add(1) } else { 0 };
        self.unanswered >= SUSPICIOUS
    }
}

/// The breaker of one server.
#[derive(Debug)]
pub(super) struct ServerBreaker(Mutex<Breaker<Silence>>);

impl ServerBreaker {
    /// Creates a breaker that lets every command pass.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Breaker::new(Instant::now())))
    }

    /// Lets a command pass, or not.
    pub(super) fn admit(&self, now: Instant) -> Option<BreakerPermit> {
        self.0.lock().admit(now).ok()
    }

    /// Records an answer, which may be an error.
    pub(super) fn answered(&self, now: Instant) {
        self.0.lock().close(now);
    }

    /// Records that a command was not answered in time. Returns whether the breaker opens.
    pub(super) fn timed_out(&self, permit: BreakerPermit, now: Instant) -> bool {
        self.0.lock().record(permit, RequestOutcome::Fails, now)
    }

    /// Records a new connection to the server: the next command is a probe, if the breaker is open.
    pub(super) fn connected(&self, now: Instant) {
        self.0.lock().probe_from(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const FIRST_PERIOD: Duration = Silence::FIRST_PERIOD;

    fn silent(breaker: &ServerBreaker, now: Instant) -> bool {
        let permit = breaker.admit(now).unwrap();
        breaker.timed_out(permit, now)
    }

    fn open(breaker: &ServerBreaker, now: Instant) {
        let opens: Vec<bool> = (0..SUSPICIOUS).map(|_| silent(breaker, now)).collect();
        assert_eq!(opens, [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_in_a_row_opens_the_breaker() {
        let (breaker, now) = (ServerBreaker::new(), Instant::now());
        for _ in 0..10 {
            assert!(!silent(&breaker, now));
            assert!(!silent(&breaker, now));
            breaker.answered(now);
        }
        open(&breaker, now);
        assert!(breaker.admit(now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn many_commands_in_flight_open_the_breaker_once() {
        let (breaker, now) = (ServerBreaker::new(), Instant::now());
        let permits: Vec<BreakerPermit> = (0..100).map(|_| breaker.admit(now).unwrap()).collect();
        let openings = permits.into_iter().filter(|permit| breaker.timed_out(*permit, now)).count();
        assert_eq!(openings, 1);
        assert!(breaker.admit(now + FIRST_PERIOD - MILLISECOND).is_none());
        assert!(breaker.admit(now + FIRST_PERIOD).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_in_each_period_and_its_answer_closes_the_breaker() {
        let (breaker, mut now) = (ServerBreaker::new(), Instant::now());
        open(&breaker, now);
        let mut periods = Vec::new();
        for _ in 0..5 {
            let began = now;
            let probe = loop {
                match breaker.admit(now) {
                    Some(probe) => break probe,
                    None => now += MILLISECOND,
                }
            };
            periods.push((now - began).as_millis());
            assert!(breaker.admit(now).is_none(), "a second one does not pass");
            assert!(breaker.timed_out(probe, now));
        }
        assert_eq!(periods, [250, 500, 1000, 2000, 2000]);
        let _probe = breaker.admit(now + Silence::LONGEST_PERIOD).unwrap();
        breaker.answered(now);
        assert!((0..100).all(|_| breaker.admit(now).is_some()));
        open(&breaker, now);
        assert!(breaker.admit(now + FIRST_PERIOD).is_some(), "the first period again");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_cancelled_probe_another_one_passes() {
        let (breaker, now) = (ServerBreaker::new(), Instant::now());
        open(&breaker, now);
        let _cancelled = breaker.admit(now + FIRST_PERIOD).unwrap();
        assert!(breaker.admit(now + FIRST_PERIOD * 2).is_some());
    }

    /// A server may connect and answer nothing else, so only one command waits for it.
    #[tokio::test(start_paused = true)]
    async fn after_a_new_connection_one_command_is_the_probe() {
        let (breaker, now) = (ServerBreaker::new(), Instant::now());
        breaker.connected(now);
        assert!((0..100).all(|_| breaker.admit(now).is_some()), "nothing was silent");
        open(&breaker, now);
        breaker.connected(now);
        let probe = breaker.admit(now).unwrap();
        assert!(breaker.admit(now).is_none());
        assert!(breaker.timed_out(probe, now));
        assert!(breaker.admit(now + FIRST_PERIOD).is_none(), "the period is the second");
    }
}
