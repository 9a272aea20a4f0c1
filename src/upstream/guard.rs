//! Protects Genesys from overload: a decorator of the upstream port, one per tenant.
//!
//! Each attempt passes these checks, in this order:
//!
//! 1. **`Retry-After` and breaker**: before `Retry-After` has passed, and while the [`Breaker`] is open, nothing is
//!    sent and the attempt fails at once.
//! 2. **Budget**: the number of attempts per minute is limited; above it an attempt fails at once. A burst of a whole
//!    minute's budget is possible. The repeated request after a 401, and requests for and about tokens, are rare and
//!    not counted.
//! 3. **Permit**: the number of requests in flight is limited. An attempt waits for a permit until its deadline.
//! 4. **`Retry-After` and breaker** again, because Genesys may have failed while the attempt waited.
//!
//! Server errors and broken connections are retried, at most [`RETRIES`] times, with exponential backoff and jitter,
//! and only if enough time remains for the wait and for another attempt as long as the last. Denials, absences and
//! unusable answers are not retried, since a retry would get them again.
//!
//! A cancelled fetch returns its permit and its right to be the breaker's probe.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::metrics::{Metrics, UpstreamOutcome, observe};
use crate::spans;
use crate::supervise::Backoff;

use super::breaker::{Breaker, BreakerLevel, BreakerPermit, RequestOutcome};
use super::breaker_gauge::BreakerGauge;
use super::{Error, Expand, Fetched, Upstream};

/// How many times an attempt is retried.
const RETRIES: usize = 2;

/// The wait before the first retry: 25 to 75 ms with jitter. The next wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// The limits on the requests of one tenant.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamLimits {
    /// The longest that one fetch may take, retries included.
    pub(super) timeout: Duration,
    /// The most requests in flight; at least 1.
    pub(super) max_in_flight: usize,
    /// The most attempts per minute.
    pub(super) per_minute: Quota,
}

/// Limits the requests of one tenant; see the module's head.
#[derive(Debug)]
pub(super) struct Guard<U> {
    inner: U,
    tenant: TenantId,
    timeout: Duration,
    permits: Semaphore,
    budget: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<std::time::Instant>>,
    admission: Mutex<AdmissionState>,
    gauge: BreakerGauge,
    metrics: Arc<Metrics>,
}

/// The arguments of a fetch.
#[derive(Clone, Copy)]
struct FetchRequest<'a> {
    customer: &'a CustomerId,
    expand: Option<&'a Expand>,
}

/// Decides whether a request may be sent.
#[derive(Debug)]
struct AdmissionState {
    breaker: Breaker,
    /// No request may be sent until then: `Retry-After`.
    throttled_until: Option<Instant>,
}

impl AdmissionState {
    fn check(&self, now: Instant) -> Result<(), Error> {
        if let Some(until) = self.throttled_until
            && now < until
        {
            return Err(Error::Throttled { retry_after: until.duration_since(now) });
        }
        self.breaker.check(now).map_err(|retry_after| Error::BreakerOpen { retry_after })
    }
}

/// The right to send one request. If it is dropped without an outcome (a cancelled fetch), it is returned.
#[must_use]
struct Admission<'a, U> {
    guard: &'a Guard<U>,
    pass: BreakerPermit,
    verdict: RequestOutcome,
}

impl<U> Drop for Admission<'_, U> {
    fn drop(&mut self) {
        self.guard.with_admission(|state, now| state.breaker.record(self.pass, self.verdict, now));
    }
}

impl<U> Guard<U> {
    /// Wraps `inner`.
    pub(super) fn new(
        inner: U,
        tenant: TenantId,
        limits: UpstreamLimits,
        gauge: BreakerGauge,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            inner,
            tenant,
            timeout: limits.timeout,
            permits: Semaphore::new(limits.max_in_flight),
            budget: RateLimiter::direct_with_clock(limits.per_minute, TokioClock),
            admission: Mutex::new(AdmissionState { breaker: Breaker::new(Instant::now()), throttled_until: None }),
            gauge,
            metrics,
        }
    }

    /// Runs `act` under the lock. Logs and shows a change of the breaker.
    fn with_admission<T>(&self, act: impl FnOnce(&mut AdmissionState, Instant) -> T) -> T {
        let mut state = self.admission.lock();
        let before = state.breaker.level();
        let answer = act(&mut state, Instant::now());
        let after = state.breaker.level();
        if before != after {
            self.gauge.show(after);
            match after {
                BreakerLevel::Open => {
                    tracing::warn!(tenant = %self.tenant, "upstream breaker is open: genesys keeps failing")
                }
                BreakerLevel::HalfOpen => {
                    tracing::debug!(tenant = %self.tenant, "upstream breaker is half-open: one request passes as a probe")
                }
                BreakerLevel::Closed => {
                    tracing::info!(tenant = %self.tenant, "upstream breaker is closed: genesys answers")
                }
            }
        }
        answer
    }

    fn spend(&self) -> Result<(), Error> {
        self.budget.check().map_err(|spent| Error::BudgetSpent { retry_after: spent.wait_time_from(TokioClock.now()) })
    }

    fn admit(&self) -> Result<Admission<'_, U>, Error> {
        let pass = self.with_admission(|state, now| {
            state.check(now)?;
            state.breaker.admit(now).map_err(|retry_after| Error::BreakerOpen { retry_after })
        })?;
        Ok(Admission { guard: self, pass, verdict: RequestOutcome::Unknown })
    }

    /// Returns what an outcome shows about Genesys. A timeout counts as a failure only if Genesys had at least a quarter
    /// of `timeout` to answer: a fetch that started just before its deadline must not open the breaker.
    fn verdict(&self, outcome: &Result<Fetched, Error>, allowed: Duration) -> RequestOutcome {
        match outcome {
            Ok(_)
            | Err(Error::Unusable { .. } | Error::Denied { .. } | Error::Privileges { .. } | Error::Throttled { .. }) => {
                RequestOutcome::Answers
            }
            Err(Error::Failed { .. } | Error::Unreachable(_)) => RequestOutcome::Fails,
            Err(Error::Timeout(_)) if allowed >= self.timeout / 4 => RequestOutcome::Fails,
            Err(Error::Timeout(_) | Error::BudgetSpent { .. } | Error::BreakerOpen { .. }) => RequestOutcome::Unknown,
        }
    }
}

impl<U: Upstream> Guard<U> {
    async fn attempt(&self, request: FetchRequest<'_>, deadline: Instant) -> Result<Fetched, Error> {
        self.with_admission(|state, now| state.check(now))?;
        if Instant::now() >= deadline {
            return Err(Error::Timeout(None));
        }
        self.spend()?;
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire()).await;
        // The semaphore is never closed, so an error means that the deadline has passed.
        let _permit = permit.ok().and_then(Result::ok).ok_or(Error::Timeout(None))?;
        let mut admission = self.admit()?;

        let began = Instant::now();
        let fetch = match request.expand {
            None => self.inner.fetch(&self.tenant, request.customer, deadline),
            Some(expand) => self.inner.fetch_expanded(&self.tenant, request.customer, expand, deadline),
        };
        let outcome = tokio::time::timeout_at(deadline, fetch).await.unwrap_or(Err(Error::Timeout(None)));
        observe(&self.metrics.upstream_duration, began.elapsed());
        admission.verdict = self.verdict(&outcome, deadline.duration_since(began));
        if let Err(Error::Throttled { retry_after }) = &outcome {
            self.with_admission(|state, now| {
                state.throttled_until = state.throttled_until.max(Some(now + *retry_after))
            });
        }
        outcome
    }

    /// Makes one attempt, and retries if that makes sense.
    async fn run(&self, request: FetchRequest<'_>, deadline: Instant) -> Result<Fetched, Error> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        let mut backoff = Backoff::new(FIRST_WAIT, self.timeout);
        let mut retries_left = RETRIES;
        loop {
            let began = Instant::now();
            let outcome = self.attempt(request, deadline).await;
            self.metrics.upstream_requests.with(label(&outcome)).increment(1);
            let is_temporary = outcome.as_ref().is_err_and(Error::is_temporary);
            let wait = backoff.next_delay();
            if !is_temporary || retries_left == 0 || Instant::now() + wait + began.elapsed() >= deadline {
                spans::attempted(1 + RETRIES - retries_left);
                return outcome;
            }
            retries_left -= 1;
            tokio::time::sleep(wait).await;
        }
    }
}

#[async_trait]
impl<U: Upstream> Upstream for Guard<U> {
    async fn fetch(&self, _tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error> {
        self.run(FetchRequest { customer, expand: None }, deadline).await
    }

    async fn fetch_expanded(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.run(FetchRequest { customer, expand: Some(expand) }, deadline).await
    }
}

/// Returns the metric label of an outcome.
pub(super) const fn label(outcome: &Result<Fetched, Error>) -> UpstreamOutcome {
    match outcome {
        Ok(Fetched::Found(_)) => UpstreamOutcome::Found,
        Ok(Fetched::Absent) => UpstreamOutcome::Absent,
        Err(Error::Unusable { .. }) => UpstreamOutcome::Unusable,
        Err(Error::Denied { .. }) => UpstreamOutcome::Denied,
        Err(Error::Privileges { .. }) => UpstreamOutcome::Privileges,
        Err(Error::Throttled { .. }) => UpstreamOutcome::Throttled,
        Err(Error::BudgetSpent { .. }) => UpstreamOutcome::BudgetSpent,
        Err(Error::BreakerOpen { .. }) => UpstreamOutcome::BreakerOpen,
        Err(Error::Failed { .. }) => UpstreamOutcome::Failed,
        Err(Error::Unreachable(_)) => UpstreamOutcome::Unreachable,
        Err(Error::Timeout(_)) => UpstreamOutcome::Timeout,
    }
}

/// The clock of tokio for the rate limiter. Tests can pause it.
#[derive(Clone, Copy, Debug)]
struct TokioClock;

impl Clock for TokioClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

#[cfg(test)]
mod tests;
