//! What keeps Genesys safe from us: a decorator of the upstream port, one per tenant.
//!
//! Each attempt goes through, in this order:
//!
//! 1. **Silence and breaker**: while Genesys' `Retry-After` has not passed, or the [`Breaker`] is
//!    open, nothing is sent and the answer is immediate.
//! 2. **Budget**: at most so many attempts per minute, refused at once when it is spent. It holds a
//!    minute's worth, so a burst after a quiet minute is possible. The second request that a 401
//!    costs and the requests for and about tokens are rare, and not counted.
//! 3. **Permit**: at most so many requests in flight; waiting for one is bounded by the deadline.
//! 4. **Silence and breaker** again, now for good: what waited at 3 while Genesys began to fail must
//!    not fall upon it.
//!
//! Server errors and broken connections are retried, at most [`RETRIES`] times, with exponential
//! backoff and jitter, and only if the time that remains holds the wait and another attempt as long
//! as the last. Refusals, absences and nonsense are not: they would come again.
//!
//! A fetch that is cancelled gives back whatever it held: its permit, and its right to probe.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::metrics::{Metrics, UpstreamOutcome, observe};
use crate::spans;
use crate::supervise::Backoff;

use super::breaker::{Breaker, Level, Pass, Verdict};
use super::{Error, Expand, Fetched, Upstream};

/// How many times an attempt is repeated.
const RETRIES: usize = 2;

/// The wait before the first retry; jitter makes it 25 to 75 ms, and each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// What one tenant may ask of its Genesys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest that one fetch may take, retries included.
    pub(super) timeout: Duration,
    /// How many requests may be under way at once; at least 1.
    pub(super) max_in_flight: usize,
    /// How many attempts may be made per minute.
    pub(super) per_minute: Quota,
}

/// Guards the Genesys of one tenant.
#[derive(Debug)]
pub(super) struct Guard<U> {
    inner: U,
    tenant: TenantId,
    timeout: Duration,
    permits: Semaphore,
    budget: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<std::time::Instant>>,
    gate: Mutex<Gate>,
    lamp: BreakerGauge,
    metrics: Arc<Metrics>,
}

/// What a fetch asks for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    customer: &'a CustomerId,
    expand: Option<&'a Expand>,
}

/// What decides whether anything may be sent at all.
#[derive(Debug)]
struct Gate {
    breaker: Breaker,
    /// Genesys asked for silence until then.
    silent_until: Option<Instant>,
}

impl Gate {
    fn check(&self, now: Instant) -> Result<(), Error> {
        if let Some(until) = self.silent_until
            && now < until
        {
            return Err(Error::Throttled { retry_after: until.duration_since(now) });
        }
        self.breaker.check(now).map_err(|retry_after| Error::BreakerOpen { retry_after })
    }
}

/// The right to make one request. Dropped without an outcome (a cancelled fetch) it is given back.
#[must_use]
struct Admission<'a, U> {
    guard: &'a Guard<U>,
    pass: Pass,
    verdict: Verdict,
}

impl<U> Drop for Admission<'_, U> {
    fn drop(&mut self) {
        self.guard.at_gate(|gate, now| gate.breaker.settle(self.pass, self.verdict, now));
    }
}

impl<U> Guard<U> {
    /// Puts a guard in front of `inner`.
    pub(super) fn new(inner: U, tenant: TenantId, limits: Limits, lamp: BreakerGauge, metrics: Arc<Metrics>) -> Self {
        Self {
            inner,
            tenant,
            timeout: limits.timeout,
            permits: Semaphore::new(limits.max_in_flight),
            budget: RateLimiter::direct_with_clock(limits.per_minute, TokioClock),
            gate: Mutex::new(Gate { breaker: Breaker::new(Instant::now()), silent_until: None }),
            lamp,
            metrics,
        }
    }

    /// Does something at the gate and shows what became of the breaker.
    fn at_gate<T>(&self, act: impl FnOnce(&mut Gate, Instant) -> T) -> T {
        let mut gate = self.gate.lock();
        let before = gate.breaker.level();
        let answer = act(&mut gate, Instant::now());
        let after = gate.breaker.level();
        if before != after {
            self.lamp.show(after);
            match after {
                Level::Open => tracing::warn!(tenant = %self.tenant, "upstream breaker is open: genesys keeps failing"),
                Level::HalfOpen => tracing::debug!(tenant = %self.tenant, "upstream breaker lets a probe through"),
                Level::Closed => tracing::info!(tenant = %self.tenant, "upstream breaker is closed: genesys answers"),
            }
        }
        answer
    }

    fn spend(&self) -> Result<(), Error> {
        self.budget.check().map_err(|spent| Error::BudgetSpent { retry_after: spent.wait_time_from(TokioClock.now()) })
    }

    fn admit(&self) -> Result<Admission<'_, U>, Error> {
        let pass = self.at_gate(|gate, now| {
            gate.check(now)?;
            gate.breaker.admit(now).map_err(|retry_after| Error::BreakerOpen { retry_after })
        })?;
        Ok(Admission { guard: self, pass, verdict: Verdict::Unknown })
    }

    /// Says what an outcome tells about Genesys. Silence tells something only if Genesys was given a
    /// fair time, a quarter of the longest: a fetch that came with its deadline almost over must not
    /// open the breaker of a healthy Genesys.
    fn verdict(&self, outcome: &Result<Fetched, Error>, patience: Duration) -> Verdict {
        match outcome {
            Ok(_)
            | Err(Error::Unusable { .. } | Error::Denied { .. } | Error::Privileges { .. } | Error::Throttled { .. }) => {
                Verdict::Answers
            }
            Err(Error::Failed { .. } | Error::Unreachable) => Verdict::Fails,
            Err(Error::Timeout) if patience >= self.timeout / 4 => Verdict::Fails,
            Err(Error::Timeout | Error::BudgetSpent { .. } | Error::BreakerOpen { .. }) => Verdict::Unknown,
        }
    }
}

impl<U: Upstream> Guard<U> {
    async fn attempt(&self, asked: Asked<'_>, deadline: Instant) -> Result<Fetched, Error> {
        self.at_gate(|gate, now| gate.check(now))?;
        if Instant::now() >= deadline {
            return Err(Error::Timeout);
        }
        self.spend()?;
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire()).await;
        // The semaphore is never closed, so what fails is the waiting.
        let _permit = permit.ok().and_then(Result::ok).ok_or(Error::Timeout)?;
        let mut admission = self.admit()?;

        let began = Instant::now();
        let fetch = match asked.expand {
            None => self.inner.fetch(&self.tenant, asked.customer, deadline),
            Some(expand) => self.inner.fetch_expanded(&self.tenant, asked.customer, expand, deadline),
        };
        let outcome = tokio::time::timeout_at(deadline, fetch).await.unwrap_or(Err(Error::Timeout));
        observe(&self.metrics.upstream_duration, began.elapsed());
        admission.verdict = self.verdict(&outcome, deadline.duration_since(began));
        if let Err(Error::Throttled { retry_after }) = &outcome {
            self.at_gate(|gate, now| gate.silent_until = gate.silent_until.max(Some(now + *retry_after)));
        }
        outcome
    }

    /// Makes one attempt, and more where that is worth it.
    async fn run(&self, asked: Asked<'_>, deadline: Instant) -> Result<Fetched, Error> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        let mut backoff = Backoff::new(FIRST_WAIT, self.timeout);
        let mut retries_left = RETRIES;
        loop {
            let began = Instant::now();
            let outcome = self.attempt(asked, deadline).await;
            self.metrics.upstream_requests.with(label(&outcome)).increment(1);
            let may_pass = outcome.as_ref().is_err_and(may_pass);
            let wait = backoff.next_delay();
            if !may_pass || retries_left == 0 || Instant::now() + wait + began.elapsed() >= deadline {
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
        self.run(Asked { customer, expand: None }, deadline).await
    }

    async fn fetch_expanded(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.run(Asked { customer, expand: Some(expand) }, deadline).await
    }
}

/// Tells whether a failure may have passed a moment later.
const fn may_pass(error: &Error) -> bool {
    match error {
        Error::Failed { .. } | Error::Unreachable => true,
        Error::Unusable { .. }
        | Error::Denied { .. }
        | Error::Privileges { .. }
        | Error::Throttled { .. }
        | Error::BudgetSpent { .. }
        | Error::BreakerOpen { .. }
        | Error::Timeout => false,
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
        Err(Error::Unreachable) => UpstreamOutcome::Unreachable,
        Err(Error::Timeout) => UpstreamOutcome::Timeout,
    }
}

/// Tokio's clock, for the rate limiter: tests can pause it.
#[derive(Clone, Copy, Debug)]
struct TokioClock;

impl Clock for TokioClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

/// One tenant's lamp on the board of all breakers, whose gauge shows the worst of them.
#[derive(Clone, Debug)]
pub(super) struct BreakerGauge {
    board: Arc<Mutex<Vec<Level>>>,
    place: usize,
    gauge: Gauge,
}

impl BreakerGauge {
    /// Makes a board of this many lamps, all closed.
    pub(super) fn board(lamps: usize, gauge: &Gauge) -> impl Iterator<Item = Self> {
        let board = Arc::new(Mutex::new(vec![Level::Closed; lamps]));
        let gauge = gauge.clone();
        (0..lamps).map(move |place| Self { board: Arc::clone(&board), place, gauge: gauge.clone() })
    }

    /// Shows a level. The gauge is set under the lock, so that the last to set it saw all lamps.
    fn show(&self, level: Level) {
        let mut board = self.board.lock();
        board[self.place] = level;
        self.gauge.set(board.iter().max().copied().unwrap_or_default().value());
    }
}

#[cfg(test)]
mod tests;
