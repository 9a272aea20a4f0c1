//! When the [breaker](crate::breaker) of a tenant's Genesys opens.
//!
//! It answers one question: does Genesys answer at all? Every answer counts as one: an absence, a refusal, even
//! nonsense. A server error, a broken connection or a fair wait without an answer counts as a failure.
//!
//! The breaker opens on [`STREAK`] failures in a row (a total outage, seen at any rate of traffic), or when at least
//! half of at least [`VOLUME`] requests within [`WINDOW`] failed (a partial one): the two rules of Finagle's failure
//! accrual. The periods are short so that recovery is noticed at once, and one request every two seconds is no burden.

use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Policy;

pub(super) use crate::breaker::{BreakerLevel, BreakerPermit, RequestOutcome};

/// How many failures in a row open the breaker.
pub(super) const STREAK: u32 = 10;

/// How many requests a window must have before its share of failures counts.
const VOLUME: u32 = 20;

/// How long requests are counted together.
const WINDOW: Duration = Duration::from_secs(10);

/// How long the breaker stays open at first.
pub(super) const FIRST_PERIOD: Duration = Duration::from_millis(500);

/// The breaker of one tenant.
pub(super) type Breaker = crate::breaker::Breaker<FailureAccrual>;

/// The requests that are counted together.
#[derive(Debug)]
pub(super) struct FailureAccrual {
    since: Instant,
    total: u32,
    failed: u32,
    /// Failures since the last answer, also across windows.
    streak: u32,
}

impl Policy for FailureAccrual {
    const FIRST_PERIOD: Duration = FIRST_PERIOD;
    const LONGEST_PERIOD: Duration = Duration::from_secs(2);
    const PROBES_EXPIRE: bool = false;

    fn starting(now: Instant) -> Self {
        Self { since: now, total: 0, failed: 0, streak: 0 }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(breaker: &mut Breaker, verdict: RequestOutcome, now: Instant) {
        let pass = breaker.admit(now).unwrap();
        breaker.record(pass, verdict, now);
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_open_the_breaker() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for round in 0..2 {
            for _ in 1..STREAK {
                request(&mut breaker, RequestOutcome::Fails, now + WINDOW * round);
            }
            request(&mut breaker, RequestOutcome::Answers, now + WINDOW * round);
        }
        assert_eq!(breaker.level(), BreakerLevel::Closed);
        for _ in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now + WINDOW);
        }
        assert_eq!(breaker.level(), BreakerLevel::Open);
        assert_eq!(breaker.check(now + WINDOW), Err(FIRST_PERIOD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_streak_counts_across_windows() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for i in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now + WINDOW * i);
        }
        assert_eq!(breaker.level(), BreakerLevel::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_enough_requests_failing_opens_the_breaker() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for _ in 0..VOLUME / 2 {
            assert_eq!(breaker.level(), BreakerLevel::Closed);
            request(&mut breaker, RequestOutcome::Answers, now);
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        assert_eq!(breaker.level(), BreakerLevel::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_a_past_window_are_forgotten() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for i in 0..4 {
            for _ in 0..VOLUME / 2 - 1 {
                request(&mut breaker, RequestOutcome::Fails, now + WINDOW * i);
                request(&mut breaker, RequestOutcome::Answers, now + WINDOW * i);
            }
        }
        assert_eq!(breaker.level(), BreakerLevel::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_probes_double_the_period_up_to_two_seconds() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        for _ in 0..STREAK {
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        let mut periods = Vec::new();
        for _ in 0..4 {
            let period = breaker.check(now).unwrap_err();
            periods.push(period.as_millis());
            now += period;
            request(&mut breaker, RequestOutcome::Fails, now);
        }
        assert_eq!(periods, [500, 1000, 2000, 2000]);
    }
}
