//! A caller's rate: so many requests per second, in this process.
//!
//! The quota is a bucket of one second's worth (GCRA, the `governor` crate): a burst of that size after a
//! quiet second, a steady flow otherwise. What is left is told to the caller in the `RateLimit` and
//! `RateLimit-Policy` fields (draft-ietf-httpapi-ratelimit-headers, the form with named policies), so that it
//! can slow down before it is refused.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The rate of one caller.
#[derive(Debug)]
pub struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, MonotonicClock, StateInformationMiddleware>,
    clock: MonotonicClock,
    quota: u32,
}

/// What a caller has left of its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    quota: u32,
    left: u32,
}

/// A request is over its caller's rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// When the next one fits.
    pub retry_after: Duration,
    /// What is left: nothing.
    pub allowance: Allowance,
}

impl Rate {
    /// Makes a rate of so many requests per second.
    #[must_use]
    pub fn per_second(requests: NonZeroU32) -> Self {
        let clock = MonotonicClock;
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(requests), clock.clone()).with_middleware();
        Self { limiter, clock, quota: requests.get() }
    }

    /// Returns how many requests fit into a second.
    #[must_use]
    pub const fn quota(&self) -> u32 {
        self.quota
    }

    /// Spends one request.
    ///
    /// # Errors
    ///
    /// The rate is spent; nothing was taken from it.
    pub fn spend(&self) -> Result<Allowance, Spent> {
        let allowance = |left| Allowance { quota: self.quota, left };
        match self.limiter.check() {
            Ok(state) => Ok(allowance(state.remaining_burst_capacity())),
            Err(until) => Err(Spent { retry_after: until.wait_time_from(self.clock.now()), allowance: allowance(0) }),
        }
    }
}

impl Allowance {
    /// Tells a caller what it has left; within a second it is all there again.
    pub fn show(self, headers: &mut HeaderMap) {
        // Digits, letters and quotes are a valid header value.
        let value =
            |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"caller\""));
        headers.insert(RATE_LIMIT, value(format!("\"caller\";r={};t=1", self.left)));
        headers.insert(RATE_LIMIT_POLICY, value(format!("\"caller\";q={};w=1", self.quota)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_its_quota_and_says_what_is_left() {
        let rate = Rate::per_second(NonZeroU32::new(3).unwrap());
        let mut left: Vec<u32> = (0..3).map(|_| rate.spend().unwrap().left).collect();
        left.sort_unstable();
        // A slow machine may have got some of it back meanwhile.
        assert!(left.first().is_some_and(|least| *least < 3), "{left:?}");
        let spent = std::iter::repeat_with(|| rate.spend()).take(10_000).find_map(Result::err).unwrap();
        assert!(spent.retry_after <= Duration::from_secs(1) && spent.allowance.left == 0);
    }

    #[test]
    fn what_is_left_is_told_in_named_policies() {
        let rate = Rate::per_second(NonZeroU32::new(7).unwrap());
        let mut headers = HeaderMap::new();
        rate.spend().unwrap().show(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"caller\";q=7;w=1");
        assert_eq!(headers["ratelimit"], "\"caller\";r=6;t=1");
    }
}
