//! The circuit breaker: a pure state machine that is told the time.
//!
//! It answers one question: does Genesys answer at all? Any answer says yes, be it an absence, a
//! refusal or nonsense; a server error, a broken connection or a fair wait without an answer says no.
//!
//! - **Closed**: requests pass. It opens on [`STREAK`] failures in a row (a total outage, seen at any
//!   rate of traffic), or when at least half of at least [`VOLUME`] requests within [`WINDOW`] failed
//!   (a partial one): the two rules of Finagle's failure accrual.
//! - **Open**: nothing passes for [`FIRST_PERIOD`].
//! - **Half-open**: one request passes, as a probe. An answer closes the breaker; a failure opens it
//!   again for twice as long, up to [`LONGEST_PERIOD`]. A probe that is given up returns its right.
//!
//! The periods are short because recovery must be noticed at once, and may be because one request
//! every two seconds is no burden to anyone.

use std::time::Duration;

use tokio::time::Instant;

/// How many failures in a row open it.
pub(super) const STREAK: u32 = 10;

/// How many requests a window must have before its share of failures counts.
const VOLUME: u32 = 20;

/// How long requests are counted together.
const WINDOW: Duration = Duration::from_secs(10);

/// How long it stays open at first.
pub(super) const FIRST_PERIOD: Duration = Duration::from_millis(500);

/// How long it stays open at most.
const LONGEST_PERIOD: Duration = Duration::from_secs(2);

/// How bad it is; the greater the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Requests pass.
    #[default]
    Closed,
    /// One request passes, as a probe.
    HalfOpen,
    /// Nothing passes.
    Open,
}

impl Level {
    /// Returns the value that the metric shows.
    pub(super) const fn value(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// What a request said about Genesys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answers.
    Answers,
    /// It fails.
    Fails,
    /// The request was given up before it could tell.
    Unknown,
}

/// The right to make one request; it is worth nothing once the breaker has changed its state, so that
/// what was under way before an outage has no say after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Pass(u64);

/// The breaker of one tenant.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// How long it will stay open when it opens next.
    period: Duration,
    /// How many times the state has changed.
    changes: u64,
}

#[derive(Debug)]
enum State {
    Closed(Window),
    /// Nothing passes until then; whoever comes afterwards is the probe.
    Open(Instant),
    /// The probe is out.
    HalfOpen,
}

/// Requests that are counted together.
#[derive(Debug)]
struct Window {
    since: Instant,
    total: u32,
    failed: u32,
    /// Failures since the last answer, also across windows.
    streak: u32,
}

impl Window {
    const fn starting(now: Instant) -> Self {
        Self { since: now, total: 0, failed: 0, streak: 0 }
    }

    /// Counts a request and tells whether it is the one too many.
    fn count(&mut self, failed: bool, now: Instant) -> bool {
        if now.duration_since(self.since) >= WINDOW {
            *self = Self { streak: self.streak, ..Self::starting(now) };
        }
        self.total += 1;
        self.failed += u32::from(failed);
        self.streak = if failed { self.streak + 1 } else { 0 };
        failed && (self.streak >= STREAK || (self.total >= VOLUME && self.failed * 2 >= self.total))
    }
}

impl Breaker {
    /// Makes a closed breaker.
    pub(super) const fn new(now: Instant) -> Self {
        Self { state: State::Closed(Window::starting(now)), period: FIRST_PERIOD, changes: 0 }
    }

    /// Returns how bad it is.
    pub(super) const fn level(&self) -> Level {
        match self.state {
            State::Closed(_) => Level::Closed,
            State::Open(_) => Level::Open,
            State::HalfOpen => Level::HalfOpen,
        }
    }

    /// Tells whether a request would pass now, or else when it is worth trying again.
    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Open(until) if now < until => Err(until.duration_since(now)),
            State::HalfOpen => Err(FIRST_PERIOD),
            State::Closed(_) | State::Open(_) => Ok(()),
        }
    }

    /// Lets a request pass, as the probe if the breaker has been open long enough.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        self.check(now)?;
        if matches!(self.state, State::Open(_)) {
            self.become_state(State::HalfOpen);
        }
        Ok(Pass(self.changes))
    }

    /// Takes back a pass, with what its request said.
    pub(super) fn settle(&mut self, pass: Pass, verdict: Verdict, now: Instant) {
        if pass.0 != self.changes {
            return;
        }
        match (&mut self.state, verdict) {
            (State::Closed(window), Verdict::Answers | Verdict::Fails) => {
                if window.count(verdict == Verdict::Fails, now) {
                    self.open(now);
                }
            }
            (State::HalfOpen, Verdict::Answers) => {
                self.period = FIRST_PERIOD;
                self.become_state(State::Closed(Window::starting(now)));
            }
            (State::HalfOpen, Verdict::Fails) => self.open(now),
            (State::HalfOpen, Verdict::Unknown) => self.become_state(State::Open(now)),
            (State::Closed(_), Verdict::Unknown) | (State::Open(_), _) => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.become_state(State::Open(now + self.period));
        self.period = (self.period * 2).min(LONGEST_PERIOD);
    }

    fn become_state(&mut self, state: State) {
        self.state = state;
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn request(breaker: &mut Breaker, verdict: Verdict, now: Instant) {
        let pass = breaker.admit(now).unwrap();
        breaker.settle(pass, verdict, now);
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        for _ in 0..STREAK {
            request(&mut breaker, Verdict::Fails, now);
        }
        assert_eq!(breaker.level(), Level::Open);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_an_answer_between_them_does_not_let_them_add_up() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for round in 0..2 {
            for _ in 1..STREAK {
                request(&mut breaker, Verdict::Fails, now + WINDOW * round);
            }
            request(&mut breaker, Verdict::Answers, now + WINDOW * round);
        }
        assert_eq!(breaker.level(), Level::Closed);
        assert_eq!(opened(now).check(now), Err(FIRST_PERIOD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_streak_counts_across_windows() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for i in 0..STREAK {
            request(&mut breaker, Verdict::Fails, now + WINDOW * i);
        }
        assert_eq!(breaker.level(), Level::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_enough_requests_failing_opens_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for _ in 0..VOLUME / 2 {
            assert_eq!(breaker.level(), Level::Closed);
            request(&mut breaker, Verdict::Answers, now);
            request(&mut breaker, Verdict::Fails, now);
        }
        assert_eq!(breaker.level(), Level::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_a_past_window_are_forgotten() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for i in 0..4 {
            for _ in 0..VOLUME / 2 - 1 {
                request(&mut breaker, Verdict::Fails, now + WINDOW * i);
                request(&mut breaker, Verdict::Answers, now + WINDOW * i);
            }
        }
        assert_eq!(breaker.level(), Level::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_and_its_answer_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + FIRST_PERIOD - MILLISECOND), Err(MILLISECOND));
        let now = now + FIRST_PERIOD;
        let probe = breaker.admit(now).unwrap();
        assert_eq!(breaker.level(), Level::HalfOpen);
        assert_eq!(breaker.admit(now), Err(FIRST_PERIOD), "a second one does not pass");
        breaker.settle(probe, Verdict::Answers, now);
        assert_eq!(breaker.level(), Level::Closed);
        assert!(breaker.check(now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn failed_probes_double_the_period_up_to_the_longest_and_an_answer_resets_it() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut periods = Vec::new();
        for _ in 0..4 {
            let period = breaker.check(now).unwrap_err();
            periods.push(period.as_millis());
            now += period;
            request(&mut breaker, Verdict::Fails, now);
        }
        assert_eq!(periods, [500, 1000, 2000, 2000]);
        now += LONGEST_PERIOD;
        request(&mut breaker, Verdict::Answers, now);
        for _ in 0..STREAK {
            request(&mut breaker, Verdict::Fails, now);
        }
        assert_eq!(breaker.check(now), Err(FIRST_PERIOD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_returns_its_right() {
        let mut breaker = opened(Instant::now());
        let now = Instant::now() + FIRST_PERIOD;
        request(&mut breaker, Verdict::Unknown, now);
        assert!(breaker.admit(now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_before_it_opened_has_no_say() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let late = breaker.admit(now).unwrap();
        for _ in 0..STREAK {
            request(&mut breaker, Verdict::Fails, now);
        }
        breaker.settle(late, Verdict::Answers, now);
        assert_eq!(breaker.level(), Level::Open);
        let now = now + FIRST_PERIOD;
        let probe = breaker.admit(now).unwrap();
        breaker.settle(late, Verdict::Fails, now);
        assert_eq!(breaker.level(), Level::HalfOpen);
        breaker.settle(probe, Verdict::Answers, now);
        assert_eq!(breaker.level(), Level::Closed);
    }

    proptest! {
        #[test]
        fn it_always_lets_something_through_within_the_longest_period(
            steps in proptest::collection::vec((0u64..3_000, 0u8..3), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now);
            for (wait, verdict) in steps {
                now += Duration::from_millis(wait);
                if let Ok(pass) = breaker.admit(now) {
                    let verdict = [Verdict::Answers, Verdict::Fails, Verdict::Unknown][usize::from(verdict)];
                    breaker.settle(pass, verdict, now);
                }
                prop_assert!(breaker.check(now + LONGEST_PERIOD).is_ok());
            }
        }
    }
}
