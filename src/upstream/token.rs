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
//!
//! # What a failure leaves behind
//!
//! The old token stays in use while it is good. After a failed renewal there is a pause, short at
//! first and at most a second, during which whoever needs a new token is told at once what the last
//! renewal was told. A new token that Genesys rejects as the old one counts as a failed renewal:
//! tokens are not the cure then.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use crate::domain::{Secret, TenantId};
use crate::metrics::{Metrics, Outcome};
use crate::shutdown::Shutdown;

use super::Error;
use super::exchange::Answer;

/// A token is renewed when less than this remains of it.
const AHEAD: Duration = Duration::from_secs(60);

/// The lifetime of a token whose answer tells none (it should, RFC 6749 section 5.1): the shortest
/// that Genesys can be configured to give.
const DEFAULT_LIFETIME: u64 = 300;

/// The longest lifetime that is believed: above Genesys' longest, two days.
const MAX_LIFETIME: u64 = 7 * 24 * 60 * 60;

/// The first pause after a failed renewal: over before a fetch is retried, whose first wait is at
/// least 25 ms, so that one hiccup of the token endpoint fails no fetch.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// The longest pause after a failed renewal.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The largest answer of a token endpoint, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// A bearer token (RFC 6750). It cannot be printed.
pub(super) struct Token {
    header: HeaderValue,
    renew_at: Instant,
    expires_at: Instant,
}

impl Token {
    /// Returns the value of an `Authorization` header, marked as sensitive.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// Who asks for tokens, and where.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The tenant that the client belongs to; for the log.
    pub(super) tenant: TenantId,
    /// The token endpoint.
    pub(super) url: Url,
    /// The OAuth client.
    pub(super) client_id: String,
    /// Its secret.
    pub(super) client_secret: Secret,
}

/// The token of one tenant, always the same to all fetches. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    credentials: Credentials,
    /// The longest that one renewal may take.
    timeout: Duration,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Read by every fetch, so it is not under the lock; written under it.
    current: ArcSwapOption<Token>,
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
    pauses: ExponentialBackoff,
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
        timeout: Duration,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(FIRST_PAUSE)
            .with_max_interval(LONGEST_PAUSE)
            .with_multiplier(2.0)
            .with_max_elapsed_time(None)
            .build();
        let renewal = Mutex::new(Renewal { flight: None, pause: None, pauses });
        let current = ArcSwapOption::empty();
        Self(Arc::new(Shared { client, credentials, timeout, metrics, shutdown, current, renewal }))
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
        let outcome = self.request(Instant::now() + self.0.timeout).await.map(Arc::new);
        let mut renewal = self.0.renewal.lock();
        match &outcome {
            Ok(token) => {
                self.0.metrics.token_renewals.with(Outcome::Ok).increment(1);
                self.0.current.store(Some(Arc::clone(token)));
                renewal.pause = None;
                renewal.pauses.reset();
            }
            Err(error) => {
                self.0.metrics.token_renewals.with(Outcome::Error).increment(1);
                tracing::warn!(tenant = %self.0.credentials.tenant, %error, "token could not be renewed");
                let pause = error.retry_after().or_else(|| renewal.pauses.next_backoff()).unwrap_or(LONGEST_PAUSE);
                renewal.pause = Some((Instant::now() + pause, error.clone()));
            }
        }
        outcome
    }

    async fn request(&self, deadline: Instant) -> Result<Token, Error> {
        let Credentials { url, client_id, client_secret, .. } = &self.0.credentials;
        // Genesys' own clients encode id and secret as they are, not form-encoded first as RFC 6749
        // section 2.3.1 has it; for the characters that Genesys issues both are the same.
        let request = self
            .0
            .client
            .post(url.clone())
            .basic_auth(client_id, Some(client_secret.expose()))
            .form(&[("grant_type", "client_credentials")]);
        let asked_at = Instant::now();
        let answer = Answer::to(request, MAX_ANSWER, deadline).await?;
        match answer.status {
            StatusCode::OK => read_token(&answer.body, asked_at),
            StatusCode::BAD_REQUEST => Err(Error::Denied { status: answer.status.as_u16() }),
            _ => Err(answer.refusal()),
        }
    }
}

/// An access token answer (RFC 6749 section 5.1).
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<u64>,
}

/// Reads an access token answer. Its lifetime counts from when it was asked for, the earliest moment
/// at which it can have begun.
fn read_token(body: &[u8], asked_at: Instant) -> Result<Token, Error> {
    const UNUSABLE: Error = Error::Unusable { reason: "no token where one was asked for" };
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| UNUSABLE)?;
    let is_bearer = answer.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    if !is_bearer || answer.access_token.is_empty() {
        return Err(UNUSABLE);
    }
    let mut header = HeaderValue::try_from(format!("Bearer {}", answer.access_token)).map_err(|_| UNUSABLE)?;
    header.set_sensitive(true);
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFETIME).clamp(1, MAX_LIFETIME));
    let expires_at = asked_at + lifetime;
    Ok(Token { header, renew_at: expires_at - AHEAD.min(lifetime / 2), expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Token, Error> {
        read_token(body.as_bytes(), Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_a_minute_ahead_or_at_half_its_lifetime() {
        let renewed_after = |expires_in: &str| {
            let token = read(&format!(r#"{{"access_token":"t"{expires_in}}}"#)).unwrap();
            (token.renew_at - Instant::now()).as_secs()
        };
        assert_eq!(renewed_after(r#","expires_in":86399"#), 86399 - 60);
        assert_eq!(renewed_after(r#","expires_in":90"#), 45);
        assert_eq!(renewed_after(r#","expires_in":2"#), 1);
        assert_eq!(renewed_after(""), 240);
        assert_eq!(renewed_after(&format!(r#","expires_in":{}"#, u64::MAX)), MAX_LIFETIME - 60);
    }

    #[test]
    fn an_answer_that_is_no_bearer_token_is_unusable() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
            r#"{"access_token":"t","expires_in":-1}"#,
        ] {
            assert!(matches!(read(body), Err(Error::Unusable { .. })), "{body}");
        }
    }

    #[test]
    fn a_token_cannot_be_printed() {
        let token = read(r#"{"access_token":"planted","token_type":"Bearer"}"#).unwrap();
        assert_eq!(token.header(), "Bearer planted");
        assert!(!format!("{token:?} {:?}", token.header()).contains("planted"));
    }
}
