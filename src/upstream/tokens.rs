//! The OAuth token of one tenant: client credentials (RFC 6749 section 4.4), kept in memory.
//!
//! # Protocol
//!
//! 1. A fetch takes the token that is there: one atomic load, no lock.
//! 2. When less than 60 s of it remain, or less than half of its lifetime if that is shorter, the
//!    next fetch starts a renewal and goes on with the old token, which is still good.
//! 3. Where there is no good token (at start, after it ran out, after a 401) fetches wait for the
//!    renewal, each until its own deadline.
//! 4. There is one renewal at a time, in a task of its own: a fetch that gives up does not end it,
//!    and however many wait, Genesys sees one request. A fetch whose token was rejected starts one
//!    only if that token is still the one in use; else it takes the newer one.
//! 5. A renewal ends with the judgement of what the new token may do ([`privileges`](super::privileges));
//!    before it there is no new token.
//!
//! # What a failure leaves behind
//!
//! The old token stays in use while it is good. After a failed renewal there is a pause, short at
//! first and at most a second, during which whoever needs a new token is told at once what the last
//! renewal was told. A new token that Genesys rejects as the old one counts as a failed renewal:
//! tokens are not the cure then. A token that could not be judged, because Genesys did not tell, is kept and
//! judged next time, for tokens are given out sparingly. One that may do too little or too much is kept like
//! that too, and takes the old token out of use: privileges belong to the client, so the old one has them too.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use parking_lot::Mutex;
use reqwest::Client;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::{Metrics, Outcome, PrivilegeOutcome};
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::Error;
use super::privileges::Privileges;
use super::token::{Credentials, Token};

/// The first pause after a failed renewal: over before a fetch is retried, whose first wait is at
/// least 25 ms, so that one hiccup of the token endpoint fails no fetch.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// The longest pause after a failed renewal.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause after a refusal: someone has to change roles at Genesys first, and two requests about the token
/// in each pause are no burden.
const REFUSAL_PAUSE: Duration = Duration::from_secs(5);

/// The token of one tenant, always the same to all fetches. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    credentials: Credentials,
    privileges: Privileges,
    /// The longest that one renewal may take, and as long again its judgement.
    timeout: Duration,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Read by every fetch, so it is not under the lock; written under it.
    current: ArcSwapOption<Token>,
    /// Why the last token that was judged is refused, if it is. Written under the lock, too.
    refusal: ArcSwapOption<Arc<str>>,
    renewal: Mutex<Renewal>,
}

/// What a renewal answers; `None` while it is under way.
type Flight = watch::Receiver<Option<Result<Arc<Token>, Error>>>;

#[derive(Debug)]
struct Renewal {
    /// The last renewal; it is under way for as long as the other end of its channel exists, so that
    /// even a panic ends it.
    flight: Option<Flight>,
    /// Until when there is no other, and what the last one was told.
    pause: Option<(Instant, Error)>,
    /// How long the next pause will be.
    pauses: Backoff,
    /// A token that was given out and is not in use: it could not be judged, or is refused.
    kept: Option<Arc<Token>>,
}

enum Joined {
    Ready(Arc<Token>),
    Waiting(Flight),
}

impl Tokens {
    /// Makes a holder of no token yet; the first fetch gets one.
    pub(super) fn new(
        client: Client,
        credentials: Credentials,
        privileges: Privileges,
        timeout: Duration,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let renewal = Mutex::new(Renewal { flight: None, pause: None, pauses, kept: None });
        let (current, refusal) = (ArcSwapOption::empty(), ArcSwapOption::empty());
        let shared = Shared { client, credentials, privileges, timeout, metrics, shutdown, current, refusal, renewal };
        Self(Arc::new(shared))
    }

    /// Returns why the last token that was judged is refused, if it is.
    pub(super) fn refusal(&self) -> Option<Arc<str>> {
        self.0.refusal.load().as_deref().cloned()
    }

    /// Has a refused token judged again, in the background, unless there is a pause.
    pub(super) fn reconsider(&self) {
        let _ = self.join(None);
    }

    /// Returns a good token, waiting for one until `deadline` where there is none.
    pub(super) async fn get(&self, deadline: Instant) -> Result<Arc<Token>, Error> {
        let now = Instant::now();
        match self.0.current.load_full() {
            Some(token) if now < token.renew_at => Ok(token),
            Some(token) if now < token.expires_at => {
                // A failed or paused renewal costs this fetch nothing: its token is still good.
                let _ = self.join(Some(&token));
                Ok(token)
            }
            Some(_) | None => self.wait(self.join(None)?, deadline).await,
        }
    }

    /// Returns another token than `rejected`, which Genesys answered with 401.
    pub(super) async fn replace(&self, rejected: &Arc<Token>, deadline: Instant) -> Result<Arc<Token>, Error> {
        self.wait(self.join(Some(rejected))?, deadline).await
    }

    /// Notes that Genesys rejects a token that has just been renewed: the next renewal has to wait.
    pub(super) fn distrust(&self, rejected: &Arc<Token>) {
        let mut renewal = self.0.renewal.lock();
        if self.0.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, rejected)) {
            let denied = Error::Denied { status: StatusCode::UNAUTHORIZED.as_u16() };
            renewal.pause = Some((Instant::now() + LONGEST_PAUSE, denied));
        }
    }

    /// Returns the token in use if it is good and not `stale`, else joins the renewal under way, else
    /// starts one, unless there is a pause.
    fn join(&self, stale: Option<&Arc<Token>>) -> Result<Joined, Error> {
        let mut renewal = self.0.renewal.lock();
        let now = Instant::now();
        if let Some(current) = self.0.current.load_full()
            && now < current.expires_at
            && !stale.is_some_and(|stale| Arc::ptr_eq(stale, &current))
        {
            return Ok(Joined::Ready(current));
        }
        if let Some(flight) = renewal.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return Ok(Joined::Waiting(flight.clone()));
        }
        if let Some((until, error)) = &renewal.pause
            && now < *until
        {
            return Err(error.clone());
        }
        let (answer, flight) = watch::channel(None);
        renewal.flight = Some(flight.clone());
        let tokens = self.clone();
        self.0.shutdown.spawn(async move {
            let outcome = tokens.renew().await;
            answer.send_replace(Some(outcome));
        });
        Ok(Joined::Waiting(flight))
    }

    async fn wait(&self, joined: Joined, deadline: Instant) -> Result<Arc<Token>, Error> {
        let mut flight = match joined {
            Joined::Ready(token) => return Ok(token),
            Joined::Waiting(flight) => flight,
        };
        let outcome = tokio::time::timeout_at(deadline, flight.wait_for(Option::is_some)).await;
        match outcome {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(Error::Unreachable)),
            // The task is gone without an answer: it panicked, or its runtime is shutting down.
            Ok(Err(_)) => Err(Error::Unreachable),
            Err(_) => Err(Error::Timeout),
        }
    }

    async fn renew(&self) -> Result<Arc<Token>, Error> {
        let outcome = self.obtain().await;
        let mut renewal = self.0.renewal.lock();
        match &outcome {
            Ok(token) => {
                self.0.current.store(Some(Arc::clone(token)));
                renewal.kept = None;
                renewal.pause = None;
                renewal.pauses.reset();
                if self.0.refusal.swap(None).is_some() {
                    tracing::info!(tenant = %self.0.credentials.tenant, "the token's privileges are right again");
                }
            }
            Err(Error::Privileges { reason }) => {
                self.0.current.store(None);
                renewal.pause =
                    Some((Instant::now() + REFUSAL_PAUSE, Error::Privileges { reason: Arc::clone(reason) }));
                let before = self.0.refusal.swap(Some(Arc::new(Arc::clone(reason))));
                if before.as_deref() != Some(reason) {
                    tracing::error!(tenant = %self.0.credentials.tenant, %reason, "no profile is fetched for this tenant");
                }
            }
            Err(error) => {
                tracing::warn!(tenant = %self.0.credentials.tenant, %error, "token could not be renewed");
                let pause = error.retry_after().unwrap_or_else(|| renewal.pauses.next_delay());
                renewal.pause = Some((Instant::now() + pause, error.clone()));
            }
        }
        outcome
    }

    /// Takes the token that was kept, or else asks for one, and has it judged.
    async fn obtain(&self) -> Result<Arc<Token>, Error> {
        let kept = self.0.renewal.lock().kept.take().filter(|kept| Instant::now() < kept.renew_at);
        if let Some(kept) = kept {
            match self.judge(&kept).await {
                // Genesys no longer takes it, so another is needed.
                Err(Error::Denied { .. }) => {}
                judgement => return judgement.map(|()| kept),
            }
        }
        let outcome = self.0.credentials.ask(&self.0.client, Instant::now() + self.0.timeout).await;
        let counted = if outcome.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.0.metrics.token_renewals.with(counted).increment(1);
        let token = Arc::new(outcome?);
        self.judge(&token).await.map(|()| token)
    }

    /// Judges a token; one that is not fit and that Genesys takes all the same is kept.
    async fn judge(&self, token: &Arc<Token>) -> Result<(), Error> {
        let judgement = self.0.privileges.verify(token, Instant::now() + self.0.timeout).await;
        let (counted, keep) = match &judgement {
            Ok(()) => (PrivilegeOutcome::Ok, false),
            Err(Error::Privileges { .. }) => (PrivilegeOutcome::Refused, true),
            Err(Error::Denied { .. }) => (PrivilegeOutcome::Error, false),
            Err(
                Error::Unusable { .. }
                | Error::Throttled { .. }
                | Error::BudgetSpent { .. }
                | Error::BreakerOpen { .. }
                | Error::Failed { .. }
                | Error::Unreachable
                | Error::Timeout,
            ) => (PrivilegeOutcome::Error, true),
        };
        self.0.metrics.token_privileges.with(counted).increment(1);
        if keep {
            self.0.renewal.lock().kept = Some(Arc::clone(token));
        }
        judgement
    }
}
