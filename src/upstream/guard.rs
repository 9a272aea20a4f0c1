//! Protects Genesys from overload: a decorator of the upstream port, one per tenant.
//!
//! Each attempt passes these checks, in this order:
//!
//! 1. **Pause and breaker** ([`AdmissionState`]): before `Retry-After` has passed, and while the breaker is open, nothing is
//!    sent and the attempt fails at once.
//! 2. **Budget**: the number of attempts per minute is limited and shared by the callers ([`Budget`]); above it an attempt
//!    fails at once. A burst of a whole minute's budget is possible. The repeated request after a 401, and requests for and about tokens, are rare and
//!    not counted.
//! 3. **Permit**: the number of requests in flight is limited. An attempt waits for a permit until its deadline.
//! 4. **Pause and breaker** again, because Genesys may have failed while the attempt waited.
//!
//! A request whose connection broke is sent again at once, but only once. Server errors and failed connects are retried, at
//! most [`RETRIES`] times, with exponential backoff and jitter,
//! and only if enough time remains for the wait and for another attempt as long as the last. Denials, absences and
//! unusable answers are not retried, since a retry would get them again.
//!
//! A bulk request passes the same checks once, for all its customers. What its answer does not hold in a usable form is
//! fetched alone.
//!
//! A cancelled fetch returns its permit and its right to be the breaker's probe.

mod aside;
mod identified;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::metrics::{Metrics, observe};
use crate::spans;
use crate::supervise::Backoff;

use super::admission::AdmissionState;
use super::answer::{Answer, label};
use super::breaker::{BreakerLevel, BreakerPermit, RequestOutcome};
use super::breaker_gauge::BreakerGauge;
use super::budget::Budget;
use super::{Error, Expand, Fetched, FetchedMany, Requester, Search, Upstream};

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
    pub(super) per_minute: u32,
    /// Whether Genesys' bulk requests and searches return the same bodies as the configured path.
    pub(super) is_default_path: bool,
}

/// Limits the requests of one tenant; see the module's head.
#[derive(Debug)]
pub(super) struct Guard<U> {
    inner: U,
    tenant: TenantId,
    timeout: Duration,
    is_default_path: bool,
    permits: Semaphore,
    budget: Arc<Mutex<Budget>>,
    admission: Mutex<AdmissionState>,
    gauge: BreakerGauge,
    metrics: Arc<Metrics>,
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
            is_default_path: limits.is_default_path,
            permits: Semaphore::new(limits.max_in_flight),
            budget: Arc::new(Mutex::new(Budget::new(limits.per_minute, Instant::now()))),
            admission: Mutex::new(AdmissionState::new(Instant::now())),
            gauge,
            metrics,
        }
    }

    /// Returns the budget of the tenant.
    pub(super) const fn budget(&self) -> &Arc<Mutex<Budget>> {
        &self.budget
    }

    /// Returns why no answer of Genesys can be expected now, if that is so.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.admission.lock().trouble(Instant::now())
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

    fn spend(&self, requester: &Requester) -> Result<(), Error> {
        let spent = self.budget.lock().spend(requester, Instant::now());
        spent.map_err(|retry_after| Error::BudgetSpent { retry_after })
    }

    fn admit(&self) -> Result<Admission<'_, U>, Error> {
        let pass = self.with_admission(AdmissionState::admit)?;
        Ok(Admission { guard: self, pass, verdict: RequestOutcome::Unknown })
    }

    /// Returns what an outcome shows about Genesys. A timeout counts as a failure only if Genesys had at least a quarter
    /// of `timeout` to answer: a fetch that started just before its deadline must not open the breaker.
    fn verdict<T>(&self, outcome: &Result<T, Error>, allowed: Duration) -> RequestOutcome {
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
    async fn attempt<'a, T: Answer>(
        &self,
        requester: &Requester,
        deadline: Instant,
        send: &(impl Fn(Instant) -> BoxFuture<'a, Result<T, Error>> + Sync),
    ) -> Result<T, Error> {
        self.with_admission(|state, now| state.check(now))?;
        if Instant::now() >= deadline {
            return Err(Error::Timeout(None));
        }
        self.spend(requester)?;
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire()).await;
        // The semaphore is never closed, so an error means that the deadline has passed.
        let _permit = permit.ok().and_then(Result::ok).ok_or(Error::Timeout(None))?;
        let mut admission = self.admit()?;

        let began = Instant::now();
        let outcome = tokio::time::timeout_at(deadline, send(deadline)).await.unwrap_or(Err(Error::Timeout(None)));
        observe(&self.metrics.upstream_duration, began.elapsed());
        let verdict = self.verdict(&outcome, deadline.duration_since(began));
        admission.verdict = self.with_admission(|state, now| state.note(&outcome, verdict, began, now));
        self.budget.lock().answered(requester, outcome.as_ref().is_ok_and(Answer::is_absent));
        outcome
    }

    /// Makes one attempt, and retries if that makes sense.
    async fn run<'a, T: Answer>(
        &self,
        requester: &Requester,
        deadline: Instant,
        send: impl Fn(Instant) -> BoxFuture<'a, Result<T, Error>> + Send + Sync,
    ) -> Result<T, Error> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        let mut backoff = Backoff::new(FIRST_WAIT, self.timeout);
        let mut retries_left = RETRIES;
        let mut was_lost = false;
        loop {
            let began = Instant::now();
            let outcome = self.attempt(requester, deadline, &send).await;
            self.metrics.upstream_requests.with(label(&outcome)).increment(1);
            // A lost connection says nothing about the next one, which is tried at once, but only once.
            let is_lost = outcome.as_ref().is_err_and(Error::is_lost_connection);
            let is_temporary = outcome.as_ref().is_err_and(Error::is_temporary) && !(is_lost && was_lost);
            let wait = if is_lost { Duration::ZERO } else { backoff.next_delay() };
            let takes = if is_lost { Duration::ZERO } else { began.elapsed() };
            if !is_temporary || retries_left == 0 || Instant::now() + wait + takes >= deadline {
                spans::attempted(1 + RETRIES - retries_left);
                return outcome;
            }
            was_lost |= is_lost;
            retries_left -= 1;
            tokio::time::sleep(wait).await;
        }
    }
}

#[async_trait]
impl<U: Upstream> Upstream for Guard<U> {
    async fn fetch(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let send = |deadline| self.inner.fetch(&self.tenant, customer, requester, deadline);
        self.run(requester, deadline, send).await
    }

    async fn fetch_expanded(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let send = |deadline| self.inner.fetch_expanded(&self.tenant, customer, expand, requester, deadline);
        self.run(requester, deadline, send).await
    }

    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        let send = |deadline| self.inner.fetch_many(&self.tenant, customers, requester, deadline);
        let unusable = || Error::Unusable { reason: "no bulk answer" };
        let many = if self.is_default_path && customers.len() > 1 {
            self.run(requester, deadline, send).await
        } else {
            Err(unusable())
        };
        let many = match many {
            Ok(many) => many,
            // For example a gateway without this route, or an answer that is too large.
            Err(Error::Unusable { .. }) => customers.iter().map(|_| Err(unusable())).collect(),
            Err(error) => return Err(error),
        };
        let each = many.into_iter().zip(customers).map(async |(fetched, customer)| match fetched {
            Err(Error::Unusable { .. }) => self.fetch(tenant, customer, requester, deadline).await,
            fetched => fetched,
        });
        Ok(join_all(each).await)
    }

    async fn search(
        &self,
        _tenant: &TenantId,
        search: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let send = |deadline| self.inner.search(&self.tenant, search, requester, deadline);
        match (search, self.run(requester, deadline, send).await?) {
            (Search::Identifier(_), Fetched::Found(found)) if !self.is_default_path => {
                self.fetch_found(found.canonical, requester, deadline).await
            }
            (_, fetched) => Ok(fetched),
        }
    }
}

#[cfg(test)]
mod tests;
