//! The circuit breaker: a pure state machine. Callers pass the time and the outcomes of their requests.
//!
//! - **Closed**: requests pass. The [`Policy`] counts their outcomes and decides when the breaker opens.
//! - **Open**: no request passes for a period, at first [`Policy::FIRST_PERIOD`].
//! - **Half-open**: one request passes, as a probe. An answer closes the breaker. A failure opens it again for twice
//!   as long, up to [`Policy::LONGEST_PERIOD`]. After a probe without a result the next request is the probe.
//!
//! The outcome of a request that started before the breaker opened is ignored afterwards.

use std::time::Duration;

use tokio::time::Instant;

/// Decides when a breaker opens, and for how long.
pub(crate) trait Policy {
    /// How long the breaker stays open at first.
    const FIRST_PERIOD: Duration;
    /// How long the breaker stays open at most.
    const LONGEST_PERIOD: Duration;
    /// Whether a probe that reports nothing is replaced by another one after a period. If not, the caller must
    /// report every probe, at least as [`RequestOutcome::Unknown`].
    const PROBES_EXPIRE: bool;

    /// Starts to count.
    fn starting(now: Instant) -> Self;

    /// Counts a request and returns whether the breaker must open.
    fn count(&mut self, failed: bool, now: Instant) -> bool;
}

/// The state of a breaker; the greater the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BreakerLevel {
    /// Requests pass.
    #[default]
    Closed,
    /// One request passes, as a probe.
    HalfOpen,
    /// No request passes.
    Open,
}

impl BreakerLevel {
    /// Returns the value that the metric shows.
    pub(crate) const fn value(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// What a request shows about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// The server answers.
    Answers,
    /// The server fails.
    Fails,
    /// The request was cancelled before it could show anything.
    Unknown,
}

/// The right to send one request. It is void once the breaker has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct BreakerPermit(u64);

/// A circuit breaker; see the module's head.
#[derive(Debug)]
pub(crate) struct Breaker<P> {
    state: BreakerState<P>,
    /// How long it was open last; zero since it closed.
    period: Duration,
    /// How many times it has opened.
    openings: u64,
}

#[derive(Debug)]
enum BreakerState<P> {
    Closed(P),
    /// No request passes until then; the first one afterwards is the probe.
    Open(Instant),
    /// The probe is under way. Another one may pass at this time, if there is one.
    HalfOpen(Option<Instant>),
}

impl<P: Policy> Breaker<P> {
    /// Creates a closed breaker.
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: BreakerState::Closed(P::starting(now)), period: Duration::ZERO, openings: 0 }
    }

    /// Returns the state.
    pub(crate) const fn level(&self) -> BreakerLevel {
        match self.state {
            BreakerState::Closed(_) => BreakerLevel::Closed,
            BreakerState::Open(_) => BreakerLevel::Open,
            BreakerState::HalfOpen(_) => BreakerLevel::HalfOpen,
        }
    }

    /// Returns whether a request would pass now, or else when it is worth another try.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            BreakerState::Open(until) | BreakerState::HalfOpen(Some(until)) if now < until => {
                Err(until.duration_since(now))
            }
            BreakerState::HalfOpen(None) => Err(P::FIRST_PERIOD),
            BreakerState::Closed(_) | BreakerState::Open(_) | BreakerState::HalfOpen(Some(_)) => Ok(()),
        }
    }

    /// Lets a request pass: as the probe if the breaker has been open long enough.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<BreakerPermit, Duration> {
        self.check(now)?;
        if !matches!(self.state, BreakerState::Closed(_)) {
            self.state = BreakerState::HalfOpen(P::PROBES_EXPIRE.then(|| now + self.period));
        }
        Ok(BreakerPermit(self.openings))
    }

    /// Records what a request showed. Returns whether the breaker opens because of it.
    pub(crate) fn record(&mut self, pass: BreakerPermit, verdict: RequestOutcome, now: Instant) -> bool {
        if pass.0 != self.openings {
            return false;
        }
        let opens = match (&mut self.state, verdict) {
            (BreakerState::Closed(counts), RequestOutcome::Answers | RequestOutcome::Fails) => {
                counts.count(verdict == RequestOutcome::Fails, now)
            }
            (BreakerState::HalfOpen(_), RequestOutcome::Fails) => true,
            (BreakerState::HalfOpen(_), RequestOutcome::Answers) => {
                self.close(now);
                false
            }
            (BreakerState::HalfOpen(_), RequestOutcome::Unknown) => {
                self.state = BreakerState::Open(now);
                false
            }
            (BreakerState::Closed(_), RequestOutcome::Unknown) | (BreakerState::Open(_), _) => false,
        };
        if opens {
            self.period = (self.period * 2).clamp(P::FIRST_PERIOD, P::LONGEST_PERIOD);
            self.state = BreakerState::Open(now + self.period);
            self.openings += 1;
        }
        opens
    }

    /// Closes the breaker and starts to count again.
    pub(crate) fn close(&mut self, now: Instant) {
        self.state = BreakerState::Closed(P::starting(now));
        self.period = Duration::ZERO;
    }

    /// Lets the next request pass as a probe at `now`, unless the breaker is closed.
    pub(crate) fn probe_from(&mut self, now: Instant) {
        if !matches!(self.state, BreakerState::Closed(_)) {
            self.state = BreakerState::Open(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const FIRST_PERIOD: Duration = Duration::from_millis(500);
    const LONGEST_PERIOD: Duration = Duration::from_secs(2);
    const STREAK: u32 = 10;

    /// Opens after so many failures in a row.
    #[derive(Debug)]
    struct Streak(u32);

    impl Policy for Streak {
        const FIRST_PERIOD: Duration = FIRST_PERIOD;
        const LONGEST_PERIOD: Duration = LONGEST_PERIOD;
        const PROBES_EXPIRE: bool = false;

        fn starting(_now: Instant) -> Self {
            Self(0)
        }

        fn count(&mut self, failed: bool, _now: Instant) -> bool {
            self.0 = if failed { self.0 + 1 } else { 0 };
            self.0 >= STREAK
        }
    }

    fn request(breaker: &mut Breaker<Streak>, verdict: RequestOutcome, now: Instant) {
        let pass = breaker.admit(now).unwrap();
        breaker.record(pass, verdict, now);
    }

    fn opened(now: Instant) -> Breaker<Streak> {
        let mut breaker = Breaker::new(now);
        for _ in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        assert_eq!(breaker.level(), BreakerLevel::Open);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_and_its_answer_closes_the_breaker() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + FIRST_PERIOD - MILLISECOND), Err(MILLISECOND));
        let now = now + FIRST_PERIOD;
        let probe = breaker.admit(now).unwrap();
        assert_eq!(breaker.level(), BreakerLevel::HalfOpen);
        assert_eq!(breaker.admit(now), Err(FIRST_PERIOD), "a second one does not pass");
        breaker.record(probe, RequestOutcome::Answers, now);
        assert_eq!(breaker.level(), BreakerLevel::Closed);
        assert!(breaker.check(now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn failed_probes_double_the_period_and_an_answer_resets_it() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut periods = Vec::new();
        for _ in 0..4 {
            let period = breaker.check(now).unwrap_err();
            periods.push(period.as_millis());
            now += period;
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        assert_eq!(periods, [500, 1000, 2000, 2000]);
        now += LONGEST_PERIOD;
        request(&mut breaker, RequestOutcome::Answers, now);
        for _ in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        assert_eq!(breaker.check(now), Err(FIRST_PERIOD));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_cancelled_probe_the_next_request_is_the_probe() {
        let mut breaker = opened(Instant::now());
        let now = Instant::now() + FIRST_PERIOD;
        request(&mut breaker, RequestOutcome::Unknown, now);
        assert!(breaker.admit(now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn outcomes_of_requests_from_before_the_opening_are_ignored() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let late = breaker.admit(now).unwrap();
        for _ in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        breaker.record(late, RequestOutcome::Answers, now);
        assert_eq!(breaker.level(), BreakerLevel::Open);
        let now = now + FIRST_PERIOD;
        let probe = breaker.admit(now).unwrap();
        breaker.record(late, RequestOutcome::Fails, now);
        assert_eq!(breaker.level(), BreakerLevel::HalfOpen);
        breaker.record(probe, RequestOutcome::Answers, now);
        assert_eq!(breaker.level(), BreakerLevel::Closed);
    }

    proptest! {
        #[test]
        fn a_request_always_passes_within_the_longest_period(
            steps in proptest::collection::vec((0u64..3_000, 0u8..3), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::<Streak>::new(now);
            for (wait, verdict) in steps {
                now += Duration::from_millis(wait);
                if let Ok(pass) = breaker.admit(now) {
                    let verdict = [RequestOutcome::Answers, RequestOutcome::Fails, RequestOutcome::Unknown][usize::from(verdict)];
                    breaker.record(pass, verdict, now);
                }
                prop_assert!(breaker.check(now + LONGEST_PERIOD).is_ok());
            }
        }
    }
}
