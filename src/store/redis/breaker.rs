//! Breaker: which parts of Redis are left alone for a while because they do not answer.
//!
//! A server that is gone refuses at once. One that is stopped, or behind a stalled link, costs whoever asks it
//! the whole timeout, so after [`SUSPICIOUS`] commands in a row without an answer nothing is sent there for a period
//! that doubles from [`FIRST_PERIOD`] to [`LONGEST_PERIOD`]. Then one command passes, as a probe; its answer lets all
//! pass again, its silence begins the next period.
//!
//! # Parts
//!
//! Of a cluster, one node may be silent while the others answer. Which node has a slot is the client's secret, but
//! nodes have slots in ranges; so each of [`PARTS`] ranges of slots is judged by itself, and a range that two nodes
//! share is at worst let through. Where there is but one server there is one part, 0.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many commands in a row may go unanswered before a part is left alone.
const SUSPICIOUS: u32 = 3;

/// How long it is left alone at first.
const FIRST_PERIOD: Duration = Duration::from_millis(250);

/// How long it is left alone at most.
const LONGEST_PERIOD: Duration = Duration::from_secs(2);

/// How many parts there are.
const PARTS: usize = 64;

/// How many hash slots a cluster has.
const SLOTS: usize = 16_384;

/// A part of Redis that is judged by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartOf(usize);

impl PartOf {
    /// All of it.
    pub(super) const WHOLE: Self = Self(0);

    /// The part of a cluster that has a customer's keys, by the first of them: K, which has no braces.
    pub(super) fn of(key: &[u8]) -> Self {
        Self::slot(usize::from(crc16(key)) % SLOTS)
    }

    const fn slot(slot: usize) -> Self {
        Self(slot * PARTS / SLOTS)
    }
}

/// CRC-16/XMODEM, by which a cluster's keys are spread over its slots (the library keeps its own to itself).
fn crc16(bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let carry = crc & 0x8000 != 0;
            (crc << 1) ^ if carry { POLYNOMIAL } else { 0 }
        })
    })
}

/// Judges every part.
#[derive(Debug)]
pub(super) struct Breaker(Vec<Mutex<Part>>);

/// The right to send one command. What was sent before the part was left alone has no say against it afterwards.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Pass {
    part: PartOf,
    period: u64,
}

/// What is known of one part.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Commands since the last answer.
    unanswered: u32,
    /// Left alone until then; afterwards one command passes in each further period.
    until: Option<Instant>,
    /// The length of the present period.
    length: Duration,
    /// How many periods have begun.
    period: u64,
}

impl Part {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        match self.until {
            Some(until) if now < until => return None,
            // The probe: were it given up without a verdict, the next would pass a period later.
            Some(_) => self.until = Some(now + self.length),
            None => {}
        }
        Some(self.period)
    }

    fn answered(&mut self) {
        *self = Self { period: self.period, ..Self::default() };
    }

    /// Returns whether a period begins.
    fn was_silent(&mut self, period: u64, now: Instant) -> bool {
        if period != self.period {
            return false;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let begins = self.unanswered >= SUSPICIOUS;
        if begins {
            self.length = (self.length * 2).clamp(FIRST_PERIOD, LONGEST_PERIOD);
            self.until = Some(now + self.length);
            self.period += 1;
        }
        begins
    }
}

impl Breaker {
    /// Makes a breaker that lets everything pass.
    pub(super) fn new() -> Self {
        Self((0..PARTS).map(|_| Mutex::default()).collect())
    }

    /// Lets a command pass, or not.
    pub(super) fn admit(&self, part: PartOf, now: Instant) -> Option<Pass> {
        let period = self.part(part).lock().admit(now)?;
        Some(Pass { part, period })
    }

    /// Notes that a command was answered, be it with an error.
    pub(super) fn answered(&self, pass: Pass) {
        self.part(pass.part).lock().answered();
    }

    /// Notes that a command was not answered in time; returns whether its part is left alone from now on.
    pub(super) fn was_silent(&self, pass: Pass, now: Instant) -> bool {
        self.part(pass.part).lock().was_silent(pass.period, now)
    }

    /// Forgets what was said of a server that is connected to anew.
    pub(super) fn forget(&self, part: PartOf) {
        self.part(part).lock().answered();
    }

    fn part(&self, part: PartOf) -> &Mutex<Part> {
        // A part is made of a slot, which is below SLOTS; were it not, it would share another's judgement.
        &self.0[part.0 % PARTS]
    }
}

#[cfg(test)]
mod tests {
    use redis::cluster_routing::Slot;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_key_has_the_slot_that_the_client_gives_it() {
        for n in 0..1_000 {
            let key = format!("cust:profile:10001:{n:032x}");
            let slot = crc16(key.as_bytes()) % 16_384;
            assert_eq!(Slot::new(slot), Some(Slot::for_key(&key)), "{key}");
        }
    }

    fn silent(breaker: &Breaker, part: PartOf, now: Instant) -> bool {
        let pass = breaker.admit(part, now).unwrap();
        breaker.was_silent(pass, now)
    }

    fn left_alone(breaker: &Breaker, part: PartOf, now: Instant) {
        let begins: Vec<bool> = (0..SUSPICIOUS).map(|_| silent(breaker, part, now)).collect();
        assert_eq!(begins, [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_in_a_row_opens_it_and_an_answer_between_does_not_let_it_add_up() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..10 {
            assert!(!silent(&breaker, PartOf::WHOLE, now));
            assert!(!silent(&breaker, PartOf::WHOLE, now));
            let pass = breaker.admit(PartOf::WHOLE, now).unwrap();
            breaker.answered(pass);
        }
        left_alone(&breaker, PartOf::WHOLE, now);
        assert!(breaker.admit(PartOf::WHOLE, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_were_under_way_together_count_as_one_period() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let passes: Vec<Pass> = (0..100).map(|_| breaker.admit(PartOf::WHOLE, now).unwrap()).collect();
        let periods = passes.into_iter().filter(|pass| breaker.was_silent(*pass, now)).count();
        assert_eq!(periods, 1);
        assert!(breaker.admit(PartOf::WHOLE, now + FIRST_PERIOD - MILLISECOND).is_none());
        assert!(breaker.admit(PartOf::WHOLE, now + FIRST_PERIOD).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_in_each_period_which_doubles_and_its_answer_lets_all_pass() {
        let (breaker, mut now) = (Breaker::new(), Instant::now());
        left_alone(&breaker, PartOf::WHOLE, now);
        let mut periods = Vec::new();
        for _ in 0..5 {
            let began = now;
            while breaker.admit(PartOf::WHOLE, now).is_none() {
                now += MILLISECOND;
            }
            periods.push((now - began).as_millis());
            assert!(breaker.admit(PartOf::WHOLE, now).is_none(), "a second one does not pass");
            let probe = Pass { part: PartOf::WHOLE, period: breaker.0[0].lock().period };
            assert!(breaker.was_silent(probe, now));
        }
        assert_eq!(periods, [250, 500, 1000, 2000, 2000]);
        let probe = breaker.admit(PartOf::WHOLE, now + LONGEST_PERIOD).unwrap();
        breaker.answered(probe);
        assert!((0..100).all(|_| breaker.admit(PartOf::WHOLE, now).is_some()));
        left_alone(&breaker, PartOf::WHOLE, now);
        assert!(breaker.admit(PartOf::WHOLE, now + FIRST_PERIOD).is_some(), "the first period again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_is_followed_by_another() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        left_alone(&breaker, PartOf::WHOLE, now);
        let _given_up = breaker.admit(PartOf::WHOLE, now + FIRST_PERIOD).unwrap();
        assert!(breaker.admit(PartOf::WHOLE, now + FIRST_PERIOD * 2).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn ranges_of_slots_are_judged_apart() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        left_alone(&breaker, PartOf::slot(0), now);
        assert!(breaker.admit(PartOf::slot(255), now).is_none(), "the same range");
        assert!(breaker.admit(PartOf::slot(256), now).is_some());
        assert!(breaker.admit(PartOf::slot(16_383), now).is_some());
        assert_eq!(PartOf::slot(16_383), PartOf(PARTS - 1));
    }
}
