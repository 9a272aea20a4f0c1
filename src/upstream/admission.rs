//! Whether a request may be sent to Genesys now: the pause that Genesys asked for, and the [`Breaker`]. Callers pass the
//! time, so that all of it is a pure state machine.
//!
//! - **Pause**: 429, and 503 with `Retry-After`, stop all requests for that time. In a pause longer than [`PROBE_EVERY`]
//!   one request in that time passes as a probe: a pause of a day must not outlast its cause. An answer ends the pause.
//! - **Lost connections**: many requests share one connection. A request that began before the last counted loss was
//!   possibly on that connection, so its loss shows nothing new and is not counted.
//! - **Trouble**: why no answer of this tenant's Genesys can be expected, for `/readyz`.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::breaker::{Breaker, BreakerLevel, BreakerPermit, RequestOutcome};
use super::{Error, TransportPhase};

/// How often one request passes during a long pause.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(60);

/// Decides whether a request may be sent; see the module's head.
#[derive(Debug)]
pub(super) struct AdmissionState {
    pub(super) breaker: Breaker,
    pause: Option<Pause>,
    /// When a lost connection was counted last.
    lost_at: Option<Instant>,
    fault: Option<Fault>,
}

/// A pause that Genesys asked for.
#[derive(Clone, Copy, Debug)]
struct Pause {
    since: Instant,
    until: Instant,
    /// When the next request passes.
    probe_at: Instant,
    /// Whether the status was 429; otherwise it was 503.
    is_throttling: bool,
}

/// What the last request showed, if it was a failure.
#[derive(Debug)]
struct Fault {
    reason: Arc<str>,
    /// Whether the next request would fail for the same reason: refused credentials, or no connection.
    lasts: bool,
}

impl Pause {
    fn error(&self, retry_after: Duration) -> Error {
        if self.is_throttling {
            Error::Throttled { retry_after }
        } else {
            Error::Failed { status: StatusCode::SERVICE_UNAVAILABLE.as_u16(), retry_after: Some(retry_after) }
        }
    }
}

impl AdmissionState {
    /// Creates the state that lets requests pass.
    pub(super) fn new(now: Instant) -> Self {
        Self { breaker: Breaker::new(now), pause: None, lost_at: None, fault: None }
    }

    /// Returns whether a request would pass now.
    pub(super) fn check(&self, now: Instant) -> Result<(), Error> {
        if let Some(pause) = self.pause
            && now < pause.probe_at
        {
            return Err(pause.error(pause.probe_at.duration_since(now)));
        }
        self.breaker.check(now).map_err(|retry_after| Error::BreakerOpen { retry_after })
    }

    /// Lets a request pass; during a long pause as its probe.
    pub(super) fn admit(&mut self, now: Instant) -> Result<BreakerPermit, Error> {
        self.check(now)?;
        let pass = self.breaker.admit(now).map_err(|retry_after| Error::BreakerOpen { retry_after })?;
        if let Some(pause) = &mut self.pause
            && now < pause.until
        {
            pause.probe_at = pause.until.min(now + PROBE_EVERY);
        }
        Ok(pass)
    }

    /// Takes note of the outcome of a request that began at `began`, and returns what the breaker counts.
    pub(super) fn note<T>(
        &mut self,
        outcome: &Result<T, Error>,
        verdict: RequestOutcome,
        began: Instant,
        now: Instant,
    ) -> RequestOutcome {
        self.fault = match outcome {
            Err(error) => {
                Fault::of(error, verdict).or(self.fault.take().filter(|_| verdict == RequestOutcome::Unknown))
            }
            Ok(_) => None,
        };
        match outcome {
            Err(Error::Throttled { retry_after }) => self.pause(*retry_after, true, began, now),
            Err(Error::Failed { retry_after: Some(retry_after), .. }) => self.pause(*retry_after, false, began, now),
            _ if verdict == RequestOutcome::Answers && self.pause.is_some_and(|pause| pause.since <= began) => {
                self.pause = None;
            }
            _ => {}
        }
        if outcome.as_ref().is_err_and(Error::is_lost_connection) {
            if self.lost_at.is_some_and(|lost_at| began <= lost_at) {
                return RequestOutcome::Unknown;
            }
            self.lost_at = Some(now);
        }
        verdict
    }

    fn pause(&mut self, retry_after: Duration, is_throttling: bool, began: Instant, now: Instant) {
        // The answer to a probe replaces the pause. That of a request from before it can only extend it.
        let earlier = self.pause.filter(|pause| began < pause.since);
        let until = earlier.map_or(now, |pause| pause.until).max(now + retry_after);
        self.pause = Some(Pause { since: now, until, probe_at: until.min(now + PROBE_EVERY), is_throttling });
    }

    /// Returns why no answer can be expected now, if that is so. It holds no customer data and no secret.
    pub(super) fn trouble(&self, now: Instant) -> Option<Arc<str>> {
        if let Some(pause) = self.pause
            && now < pause.until
        {
            let (status, left) =
                (if pause.is_throttling { 429 } else { 503 }, pause.until.duration_since(now).as_secs());
            return Some(format!("genesys asked for a pause with status {status}: {left}s are left").into());
        }
        let fault = self.fault.as_ref();
        let is_open = self.breaker.level() != BreakerLevel::Closed;
        let fallback = || is_open.then(|| "genesys keeps failing, requests are suspended".into());
        fault.filter(|fault| fault.lasts || is_open).map(|fault| Arc::clone(&fault.reason)).or_else(fallback)
    }
}

impl Fault {
    fn of(error: &Error, verdict: RequestOutcome) -> Option<Self> {
        let lasts = match error {
            // The token endpoint answers 400 or 401. A 403 may concern one contact only.
            Error::Denied { status } => *status != StatusCode::FORBIDDEN.as_u16(),
            Error::Unreachable(Some(failure)) => failure.phase != TransportPhase::Response,
            Error::Unreachable(None)
            | Error::Failed { .. }
            | Error::Timeout(_)
            | Error::Unusable { .. }
            | Error::Privileges { .. }
            | Error::Throttled { .. }
            | Error::BudgetSpent { .. }
            | Error::BreakerOpen { .. } => false,
        };
        if !lasts && verdict != RequestOutcome::Fails {
            return None;
        }
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Some(Self { reason: format!("{error}{cause}").into(), lasts })
    }
}
