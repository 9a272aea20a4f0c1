//! Stops sending commands to Redis servers that do not answer.
//!
//! A server that is gone refuses connections at once. A server that is stopped, or behind a stalled network, costs
//! each command the whole timeout. So after [`SUSPICIOUS`] commands in a row without an answer the
//! [breaker](crate::breaker) opens: for a period that doubles from 250 ms to 2 s nothing is sent to that server.
//! Then one command passes, as a probe. Its answer lets all commands pass again; without an answer the next period
//! begins. A late answer of any command closes the breaker too: the server does answer.
//!
//! # Slot ranges
//!
//! In a cluster, one node may be silent while the others answer. The client library does not show which node has
//! a slot, but nodes have slots in ranges. So each of [`RANGES`] ranges of slots has its own breaker. A range that two
//! nodes share may stay closed although one of them is silent. A single server has one range, 0.
//!
//! The other nodes of a cluster answer for a node that is gone: with a redirection to it, or that it is down. Neither
//! is an answer of the server.

use std::time::Duration;

use parking_lot::Mutex;
use redis::RedisError;
use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerPermit, Policy, RequestOutcome};

use super::error::{Redirection, is_absent};

/// How many commands in a row without an answer open the breaker.
const SUSPICIOUS: u32 = 3;

/// How many ranges of slots there are.
pub(super) const RANGES: usize = 64;

/// How many hash slots a cluster has.
const SLOTS: usize = 16_384;

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

/// A range of hash slots with its own breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotRange(usize);

impl SlotRange {
    /// All slots: the range of a single server.
    pub(super) const WHOLE: Self = Self(0);

    /// Returns the range that holds a customer's keys, by the entry key, which has no braces.
    pub(super) fn of(key: &[u8]) -> Self {
        Self::of_slot(usize::from(crc16(key)) % SLOTS)
    }

    /// Returns its number, below [`RANGES`].
    pub(super) const fn index(self) -> usize {
        self.0
    }

    const fn of_slot(slot: usize) -> Self {
        Self(slot * RANGES / SLOTS)
    }
}

/// Computes CRC-16/XMODEM, which maps keys to slots. The library does not export its own.
fn crc16(bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let carry = crc & 0x8000 != 0;
            (crc << 1) ^ if carry { POLYNOMIAL } else { 0 }
        })
    })
}

/// The breakers of all slot ranges.
#[derive(Debug)]
pub(super) struct NodeBreaker(Vec<Mutex<Breaker<Silence>>>);

/// The right to send one command.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct NodePermit {
    range: SlotRange,
    pass: BreakerPermit,
}

impl NodeBreaker {
    /// Creates a breaker that lets every command pass.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self((0..RANGES).map(|_| Mutex::new(Breaker::new(now))).collect())
    }

    /// Lets a command pass, or not.
    pub(super) fn admit(&self, range: SlotRange, now: Instant) -> Option<NodePermit> {
        let pass = self.range(range).lock().admit(now).ok()?;
        Some(NodePermit { range, pass })
    }

    /// Records an answer, which may be an error.
    pub(super) fn answered(&self, permit: NodePermit, now: Instant) {
        self.reset(permit.range, now);
    }

    /// Records an error other than a timeout. A broken connection to a single server is not counted: it is restored.
    pub(super) fn failed(&self, permit: NodePermit, error: &RedisError, in_a_cluster: bool, sent_at: Instant) {
        if in_a_cluster && is_absent(error) {
            self.timed_out(permit, Instant::now());
        } else if !error.is_io_error() && Redirection::of(error).is_none() {
            self.answered(permit, sent_at);
        }
    }

    /// Records that a command was not answered in time. Returns whether the breaker of its range opens.
    pub(super) fn timed_out(&self, permit: NodePermit, now: Instant) -> bool {
        self.range(permit.range).lock().record(permit.pass, RequestOutcome::Fails, now)
    }

    /// Forgets what was recorded about a server, after a new connection to it.
    pub(super) fn reset(&self, range: SlotRange, now: Instant) {
        self.range(range).lock().close(now);
    }

    fn range(&self, range: SlotRange) -> &Mutex<Breaker<Silence>> {
        // A range is computed from a slot below SLOTS, so it is below RANGES.
        &self.0[range.0 % RANGES]
    }
}

#[cfg(test)]
mod tests {
    use redis::cluster_routing::Slot;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const FIRST_PERIOD: Duration = Silence::FIRST_PERIOD;
    const WHOLE: SlotRange = SlotRange::WHOLE;

    #[test]
    fn slots_are_those_of_the_client_library() {
        for n in 0..1_000 {
            let key = format!("cust:profile:10001:{n:032x}");
            let slot = crc16(key.as_bytes()) % 16_384;
            assert_eq!(Slot::new(slot), Some(Slot::for_key(&key)), "{key}");
        }
    }

    fn silent(breaker: &NodeBreaker, range: SlotRange, now: Instant) -> bool {
        let permit = breaker.admit(range, now).unwrap();
        breaker.timed_out(permit, now)
    }

    fn open(breaker: &NodeBreaker, range: SlotRange, now: Instant) {
        let opens: Vec<bool> = (0..SUSPICIOUS).map(|_| silent(breaker, range, now)).collect();
        assert_eq!(opens, [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_in_a_row_opens_the_breaker() {
        let (breaker, now) = (NodeBreaker::new(), Instant::now());
        for _ in 0..10 {
            assert!(!silent(&breaker, WHOLE, now));
            assert!(!silent(&breaker, WHOLE, now));
            let permit = breaker.admit(WHOLE, now).unwrap();
            breaker.answered(permit, now);
        }
        open(&breaker, WHOLE, now);
        assert!(breaker.admit(WHOLE, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_of_other_nodes_of_a_cluster_close_nothing() {
        let (breaker, now) = (NodeBreaker::new(), Instant::now());
        let answer = |line: &str| {
            let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
            parsed.and_then(redis::Value::extract_error).unwrap_err()
        };
        let [moved, down, full] =
            ["MOVED 1 127.0.0.1:1", "CLUSTERDOWN Hash slot not served", "OOM no memory"].map(answer);
        let fail = |error| breaker.failed(breaker.admit(WHOLE, now).unwrap(), error, true, now);
        for error in [&down, &down, &full, &down, &moved, &down, &moved] {
            fail(error);
        }
        fail(&down);
        assert!(breaker.admit(WHOLE, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn many_commands_in_flight_open_the_breaker_once() {
        let (breaker, now) = (NodeBreaker::new(), Instant::now());
        let permits: Vec<NodePermit> = (0..100).map(|_| breaker.admit(WHOLE, now).unwrap()).collect();
        let openings = permits.into_iter().filter(|permit| breaker.timed_out(*permit, now)).count();
        assert_eq!(openings, 1);
        assert!(breaker.admit(WHOLE, now + FIRST_PERIOD - MILLISECOND).is_none());
        assert!(breaker.admit(WHOLE, now + FIRST_PERIOD).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_in_each_period_and_its_answer_closes_the_breaker() {
        let (breaker, mut now) = (NodeBreaker::new(), Instant::now());
        open(&breaker, WHOLE, now);
        let mut periods = Vec::new();
        for _ in 0..5 {
            let began = now;
            let probe = loop {
                match breaker.admit(WHOLE, now) {
                    Some(probe) => break probe,
                    None => now += MILLISECOND,
                }
            };
            periods.push((now - began).as_millis());
            assert!(breaker.admit(WHOLE, now).is_none(), "a second one does not pass");
            assert!(breaker.timed_out(probe, now));
        }
        assert_eq!(periods, [250, 500, 1000, 2000, 2000]);
        let probe = breaker.admit(WHOLE, now + Silence::LONGEST_PERIOD).unwrap();
        breaker.answered(probe, now);
        assert!((0..100).all(|_| breaker.admit(WHOLE, now).is_some()));
        open(&breaker, WHOLE, now);
        assert!(breaker.admit(WHOLE, now + FIRST_PERIOD).is_some(), "the first period again");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_cancelled_probe_another_one_passes() {
        let (breaker, now) = (NodeBreaker::new(), Instant::now());
        open(&breaker, WHOLE, now);
        let _cancelled = breaker.admit(WHOLE, now + FIRST_PERIOD).unwrap();
        assert!(breaker.admit(WHOLE, now + FIRST_PERIOD * 2).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn ranges_of_slots_open_separately() {
        let (breaker, now) = (NodeBreaker::new(), Instant::now());
        open(&breaker, SlotRange::of_slot(0), now);
        assert!(breaker.admit(SlotRange::of_slot(255), now).is_none(), "the same range");
        assert!(breaker.admit(SlotRange::of_slot(256), now).is_some());
        assert!(breaker.admit(SlotRange::of_slot(16_383), now).is_some());
        assert_eq!(SlotRange::of_slot(16_383), SlotRange(RANGES - 1));
    }
}
