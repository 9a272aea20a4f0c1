//! The OAuth token of one tenant, kept in memory: client credentials (RFC 6749 section 4.4).
//!
//! # Renewal
//!
//! 1. A fetch takes the current token with one atomic load and no lock.
//! 2. When less than 60 s of its lifetime remain (or less than half of a shorter lifetime), the next fetch starts a
//!    renewal and uses the current token, which is still valid.
//! 3. Without a valid token (at start, after expiry, after a 401) fetches wait for the renewal, each until its own
//!    deadline.
//! 4. One renewal runs at a time, in its own task: a cancelled fetch does not cancel it, and however many fetches wait,
//!    Genesys gets one request. A fetch with a rejected token starts a renewal only if that token is still the current
//!    one; otherwise it takes the newer one.
//! 5. A renewal includes the check of the new token's [`privileges`](super::privileges). The token becomes the current
//!    one only after it.
//!
//! # Failures
//!
//! - After a failed renewal the current token remains in use while it is valid. During a pause, at most a second, no
//!   renewal starts, and a fetch that needs a new token gets the last error at once.
//! - A new token that Genesys rejects counts as a failed renewal: another token would not help.
//! - A token whose privileges could not be checked is kept and checked at the next renewal, because Genesys limits how
//!   many tokens it issues.
//! - A token with wrong privileges is kept in the same way, and the current token is no longer used: privileges belong
//!   to the client, so the current token has them too.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::{Metrics, Outcome, PrivilegeOutcome};
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::admission::PROBE_EVERY;
use super::http_client::HttpClient;
use super::privileges::PrivilegeVerifier;
use super::token::{ClientCredentials, Token};
use super::{Error, times};

/// The first pause after a failed renewal. It is shorter than the first retry of a fetch (at least 25 ms), so that a
/// single failure of the token endpoint fails no fetch.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// The longest pause after a failed renewal.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause after a refusal. An administrator has to change roles at Genesys first, and two requests in each pause
/// are a low load.
const REFUSAL_PAUSE: Duration = Duration::from_secs(5);

/// The token of one tenant, shared by all its fetches. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct TokenCache(Arc<TokenCacheInner>);

#[derive(Debug)]
struct TokenCacheInner {
    client: HttpClient,
    credentials: ClientCredentials,
    privileges: PrivilegeVerifier,
    /// The time limit of a token request, and of the check of its privileges.
    timeout: Duration,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Every fetch reads it, so reads need no lock. It is written under the lock of `renewal`.
    current: ArcSwapOption<Token>,
    /// Why the last checked token is refused, if it is. It is written under the lock of `renewal`.
    refusal: ArcSwapOption<Arc<str>>,
    renewal: Mutex<RenewalState>,
}

/// Receives the result of a renewal; `None` while it is under way.
type RenewalReceiver = watch::Receiver<Option<Result<Arc<Token>, Error>>>;

#[derive(Debug)]
struct RenewalState {
    /// The last renewal. It is under way while the sender of its channel exists, so that a panic ends it too.
    last: Option<RenewalReceiver>,
    /// No renewal starts until then, and fetches get this error.
    pause: Option<(Instant, Error)>,
    backoff: Backoff,
    /// A token that is not in use, because it could not be checked or is refused.
    kept: Option<Arc<Token>>,
}

enum TokenWait {
    Ready(Arc<Token>),
    Renewing(RenewalReceiver),
}

impl TokenCache {
    /// Creates an empty cache. The first fetch requests a token.
    pub(super) fn new(
        client: HttpClient,
        credentials: ClientCredentials,
        privileges: PrivilegeVerifier,
        timeout: Duration,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let renewal = Mutex::new(RenewalState { last: None, pause: None, backoff, kept: None });
        let (current, refusal) = (ArcSwapOption::empty(), ArcSwapOption::empty());
        let inner =
            TokenCacheInner { client, credentials, privileges, timeout, metrics, shutdown, current, refusal, renewal };
        Self(Arc::new(inner))
    }

    /// Returns why the last checked token is refused, if it is.
    pub(super) fn refusal(&self) -> Option<Arc<str>> {
        self.0.refusal.load().as_deref().cloned()
    }

    /// Checks a refused token again in the background, unless there is a pause.
    pub(super) fn recheck(&self) {
        let _ = self.join_or_renew(None);
    }

    /// Returns a valid token. Without one it waits for a renewal until `deadline`.
    pub(super) async fn get(&self, deadline: Instant) -> Result<Arc<Token>, Error> {
        let now = Instant::now();
        match self.0.current.load_full() {
            Some(token) if now < token.renew_at => Ok(token),
            Some(token) if now < token.expires_at => {
                // The token is still valid, so the result of the renewal does not matter to this fetch.
                let _ = self.join_or_renew(Some(&token));
                Ok(token)
            }
            Some(_) | None => self.wait(self.join_or_renew(None)?, deadline).await,
        }
    }

    /// Returns a newer token than `rejected`, which got a 401 from Genesys.
    pub(super) async fn replace(&self, rejected: &Arc<Token>, deadline: Instant) -> Result<Arc<Token>, Error> {
        self.wait(self.join_or_renew(Some(rejected))?, deadline).await
    }

    /// Records that Genesys rejects a token that has just been renewed. The next renewal waits for a pause.
    pub(super) fn reject(&self, rejected: &Arc<Token>) {
        let mut renewal = self.0.renewal.lock();
        if self.0.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, rejected)) {
            let denied = Error::Denied { status: StatusCode::UNAUTHORIZED.as_u16() };
            renewal.pause = Some((Instant::now() + LONGEST_PAUSE, denied));
        }
    }

    /// Returns the current token if it is valid and not `stale`. Otherwise joins the renewal under way, or starts one
    /// unless there is a pause.
    fn join_or_renew(&self, stale: Option<&Arc<Token>>) -> Result<TokenWait, Error> {
        let mut renewal = self.0.renewal.lock();
        let now = Instant::now();
        if let Some(current) = self.0.current.load_full()
            && now < current.expires_at
            && !stale.is_some_and(|stale| Arc::ptr_eq(stale, &current))
        {
            return Ok(TokenWait::Ready(current));
        }
        if let Some(running) = renewal.last.as_ref().filter(|last| last.has_changed().is_ok()) {
            return Ok(TokenWait::Renewing(running.clone()));
        }
        if let Some((until, error)) = &renewal.pause
            && now < *until
        {
            return Err(error.clone());
        }
        let (sender, receiver) = watch::channel(None);
        renewal.last = Some(receiver.clone());
        let cache = self.clone();
        self.0.shutdown.spawn(async move {
            let outcome = cache.renew().await;
            sender.send_replace(Some(outcome));
        });
        Ok(TokenWait::Renewing(receiver))
    }

    async fn wait(&self, wait: TokenWait, deadline: Instant) -> Result<Arc<Token>, Error> {
        let mut receiver = match wait {
            TokenWait::Ready(token) => return Ok(token),
            TokenWait::Renewing(receiver) => receiver,
        };
        let since = Instant::now();
        let outcome = tokio::time::timeout_at(deadline, receiver.wait_for(Option::is_some)).await;
        times::waited_for_token(since);
        match outcome {
            Ok(Ok(result)) => result.clone().unwrap_or(Err(Error::Unreachable(None))),
            // The task ended without a result: it panicked, or its runtime is shutting down.
            Ok(Err(_)) => Err(Error::Unreachable(None)),
            Err(_) => Err(Error::Timeout(None)),
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
                renewal.backoff.reset();
                if self.0.refusal.swap(None).is_some() {
                    tracing::info!(tenant = %self.0.credentials.tenant, "the privileges of the token are correct again");
                }
            }
            Err(Error::Privileges { reason }) => {
                self.0.current.store(None);
                renewal.pause =
                    Some((Instant::now() + REFUSAL_PAUSE, Error::Privileges { reason: Arc::clone(reason) }));
                let before = self.0.refusal.swap(Some(Arc::new(Arc::clone(reason))));
                if before.as_deref() != Some(reason) {
                    tracing::error!(tenant = %self.0.credentials.tenant, %reason, "refusing all fetches of this tenant: the privileges of its token are wrong");
                }
            }
            Err(error) => {
                let cause = error.source().map(tracing::field::display);
                tracing::warn!(tenant = %self.0.credentials.tenant, %error, cause, "cannot renew the token");
                // As during a pause of fetches: a long one is probed.
                let asked = error.retry_after().map(|asked| asked.min(PROBE_EVERY));
                let pause = asked.unwrap_or_else(|| renewal.backoff.next_delay());
                renewal.pause = Some((Instant::now() + pause, error.clone()));
            }
        }
        outcome
    }

    /// Takes the kept token or requests one, and checks its privileges.
    async fn obtain(&self) -> Result<Arc<Token>, Error> {
        let kept = self.0.renewal.lock().kept.take().filter(|kept| Instant::now() < kept.renew_at);
        if let Some(kept) = kept {
            match self.check(&kept).await {
                // Genesys no longer accepts it, so a new one is needed.
                Err(Error::Denied { .. }) => {}
                checked => return checked.map(|()| kept),
            }
        }
        let outcome = self.0.credentials.request_token(&self.0.client, Instant::now() + self.0.timeout).await;
        let counted = if outcome.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.0.metrics.token_renewals.with(counted).increment(1);
        let token = Arc::new(outcome?);
        self.check(&token).await.map(|()| token)
    }

    /// Checks the privileges of a token. Keeps a token that fails the check but that Genesys accepts.
    async fn check(&self, token: &Arc<Token>) -> Result<(), Error> {
        let checked = self.0.privileges.verify(token, Instant::now() + self.0.timeout).await;
        let (counted, keep) = match &checked {
            Ok(()) => (PrivilegeOutcome::Ok, false),
            Err(Error::Privileges { .. }) => (PrivilegeOutcome::Refused, true),
            Err(Error::Denied { .. }) => (PrivilegeOutcome::Error, false),
            Err(
                Error::Unusable { .. }
                | Error::Throttled { .. }
                | Error::BudgetSpent { .. }
                | Error::BreakerOpen { .. }
                | Error::Failed { .. }
                | Error::Unreachable(_)
                | Error::Timeout(_),
            ) => (PrivilegeOutcome::Error, true),
        };
        self.0.metrics.token_privileges.with(counted).increment(1);
        if keep {
            self.0.renewal.lock().kept = Some(Arc::clone(token));
        }
        checked
    }
}
