//! The rate limit of a caller, in requests per second and process.
//!
//! The limit is a bucket of one second's worth (GCRA, the `governor` crate): a burst of that size after an idle second,
//! a steady flow otherwise.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::http::response::rate_limit_headers::Allowance;

/// The rate limit of one caller.
#[derive(Debug)]
pub struct CallerRate {
    limiter: RateLimiter<NotKeyed, InMemoryState, MonotonicClock, StateInformationMiddleware>,
    clock: MonotonicClock,
    quota: u32,
}

/// A request exceeds its caller's rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateExceeded {
    /// The time until the request is accepted; `None`: it never is, because it has more lookups than the limit.
    pub retry_after: Option<Duration>,
    /// What is left: nothing.
    pub allowance: Allowance,
}

impl CallerRate {
    /// Creates a limit of `requests` per second.
    #[must_use]
    pub fn per_second(requests: NonZeroU32) -> Self {
        let clock = MonotonicClock;
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(requests), clock.clone()).with_middleware();
        Self { limiter, clock, quota: requests.get() }
    }

    /// Returns the limit, in requests per second.
    #[must_use]
    pub const fn quota(&self) -> u32 {
        self.quota
    }

    /// Counts this many lookups and returns what is left.
    ///
    /// # Errors
    ///
    /// The limit is reached, or is smaller than the number; nothing is counted.
    pub fn count(&self, lookups: NonZeroU32) -> Result<Allowance, RateExceeded> {
        let allowance = |left| Allowance { quota: self.quota, left };
        let exceeded = |retry_after| RateExceeded { retry_after, allowance: allowance(0) };
        match self.limiter.check_n(lookups) {
            Ok(Ok(state)) => Ok(allowance(state.remaining_burst_capacity())),
            Ok(Err(until)) => Err(exceeded(Some(until.wait_time_from(self.clock.now())))),
            Err(_) => Err(exceeded(None)),
        }
    }

    /// Counts the lookups of a request beyond its first, which is counted already.
    ///
    /// # Errors
    ///
    /// As of [`count`](Self::count).
    pub fn count_further(&self, lookups: NonZeroU32) -> Result<Allowance, RateExceeded> {
        if lookups.get() >= self.quota {
            return Err(RateExceeded { retry_after: None, allowance: Allowance { quota: self.quota, left: 0 } });
        }
        self.count(lookups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_allows_the_quota_and_reports_what_is_left() {
        let rate = CallerRate::per_second(NonZeroU32::new(3).unwrap());
        let mut left: Vec<u32> = (0..3).map(|_| rate.count(NonZeroU32::MIN).unwrap().left).collect();
        left.sort_unstable();
        // On a slow machine some of the quota may be available again.
        assert!(left.first().is_some_and(|least| *least < 3), "{left:?}");
        let exceeded =
            std::iter::repeat_with(|| rate.count(NonZeroU32::MIN)).take(10_000).find_map(Result::err).unwrap();
        assert!(exceeded.retry_after.unwrap() <= Duration::from_secs(1) && exceeded.allowance.left == 0);
        // With the one that is counted already, three more are four.
        assert_eq!(rate.count_further(NonZeroU32::new(3).unwrap()).unwrap_err().retry_after, None);
    }
}
