//! Verifies tokens of agents at Genesys: `GET /api/v2/tokens/me`, asked with the token itself.
//!
//! An agent belongs to a tenant if Genesys takes its token for one of the tenant's organisation. Which one that is, the same
//! document says about the token of the tenant's own client, once in the life of the process.
//!
//! Anybody can present a text as a token, so what a wrong one may cost is bounded: verifications have a share of the tenant's
//! budget, of which tokens that were never valid get a half (`Budget`), and permits and a breaker of their own. So they
//! neither delay nor suspend fetches of profiles, and a rate limit of one agent at Genesys stops no other. Nothing is cached
//! here, and nothing of the document is kept but the organisation.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use url::Url;

use crate::domain::{Secret, TenantId};
use crate::metrics::{AgentOutcome, Metrics};

use super::Error;
use super::breaker::{Breaker, RequestOutcome};
use super::budget::Budget;
use super::exchange::GenesysResponse;
use super::http_client::HttpClient;
use super::tokens::TokenCache;

/// The time limit of a verification. A lookup of an agent waits for it.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The most verifications in flight for each tenant, of tokens that were valid before, and of others.
const IN_FLIGHT: usize = 16;

/// The largest document about a token, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// What Genesys says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentStanding {
    /// It is valid, and of the tenant's organisation.
    Member,
    /// It is not valid, or of another organisation.
    Refused,
}

/// Verifies the tokens of all tenants' agents. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct AgentVerifiers(pub(super) Arc<HashMap<TenantId, AgentVerifier>>);

/// Verifies the tokens of one tenant's agents.
pub(super) struct AgentVerifier {
    client: HttpClient,
    url: Url,
    /// Those of the tenant's own client.
    tokens: TokenCache,
    organisation: OnceCell<Box<str>>,
    budget: Arc<Mutex<Budget>>,
    breaker: Mutex<Breaker>,
    known: Semaphore,
    strangers: Semaphore,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// The part of the document that is used.
#[derive(Deserialize)]
struct TokenOwner {
    organization: Organization,
}

#[derive(Deserialize)]
struct Organization {
    id: Box<str>,
}

impl AgentVerifiers {
    /// Verifies a token for a tenant. `is_known`: it was valid before.
    ///
    /// # Errors
    ///
    /// Genesys does not say; it is not known whether the token is valid.
    pub async fn verify(&self, tenant: &TenantId, token: &Secret, is_known: bool) -> Result<AgentStanding, Error> {
        // Only tokens for configured tenants get here, so the error does not occur.
        let verifier = self.0.get(tenant).ok_or(Error::Unreachable(None))?;
        let standing = verifier.verify(token, is_known).await;
        verifier.metrics.agent_verifications.with(label(&standing)).increment(1);
        standing
    }
}

impl AgentVerifier {
    /// Creates a verifier. It sends nothing before the first token.
    pub(super) fn new(
        client: HttpClient,
        url: Url,
        tokens: TokenCache,
        budget: Arc<Mutex<Budget>>,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let permits = || Semaphore::new(IN_FLIGHT);
        Self {
            client,
            url,
            tokens,
            organisation: OnceCell::new(),
            budget,
            breaker: Mutex::new(Breaker::new(Instant::now())),
            known: permits(),
            strangers: permits(),
            timeout: timeout.min(TIMEOUT),
            metrics,
        }
    }

    async fn verify(&self, token: &Secret, is_known: bool) -> Result<AgentStanding, Error> {
        let deadline = Instant::now() + self.timeout;
        let Ok(mut credential) = HeaderValue::try_from(format!("Bearer {}", token.expose())) else {
            return Ok(AgentStanding::Refused);
        };
        credential.set_sensitive(true);
        let open = |retry_after| Error::BreakerOpen { retry_after };
        self.breaker.lock().check(Instant::now()).map_err(open)?;
        let spent = self.budget.lock().verify(is_known, Instant::now());
        spent.map_err(|retry_after| Error::BudgetSpent { retry_after })?;
        let permits = if is_known { &self.known } else { &self.strangers };
        let permit = tokio::time::timeout_at(deadline, permits.acquire()).await;
        // The semaphore is never closed, so an error means that the deadline has passed.
        let _permit = permit.ok().and_then(Result::ok).ok_or(Error::Timeout(None))?;
        let pass = self.breaker.lock().admit(Instant::now()).map_err(open)?;
        let allowed = deadline.duration_since(Instant::now());
        let asked = self.ask(credential, deadline).await;
        // As for fetches: a timeout shows nothing if most of the time was spent waiting for a permit.
        let outcome = outcome(&asked, allowed >= self.timeout / 4);
        self.breaker.lock().record(pass, outcome, Instant::now());
        let Some(organisation) = asked? else { return Ok(AgentStanding::Refused) };
        let own = self.organisation.get_or_try_init(|| self.own_organisation(deadline)).await?;
        Ok(if *own == organisation { AgentStanding::Member } else { AgentStanding::Refused })
    }

    /// Returns the organisation of a token; `None` if Genesys refuses it.
    async fn ask(&self, credential: HeaderValue, deadline: Instant) -> Result<Option<Box<str>>, Error> {
        let send = || {
            let request = self.client.get(self.url.clone()).header(header::AUTHORIZATION, credential.clone());
            GenesysResponse::receive(request.header(header::ACCEPT, "application/json"), MAX_DOCUMENT, deadline)
        };
        let mut response = send().await;
        if response.as_ref().is_err_and(Error::is_lost_connection) {
            response = send().await;
        }
        let response = response?;
        match response.status {
            StatusCode::OK => {
                let owner: Result<TokenOwner, _> = serde_json::from_slice(&response.body);
                let owner = owner.map_err(|_| Error::Unusable { reason: "not a description of a token" })?;
                Ok(Some(owner.organization.id))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(None),
            _ => Err(response.error()),
        }
    }

    /// Returns the organisation of the tenant's own client.
    async fn own_organisation(&self, deadline: Instant) -> Result<Box<str>, Error> {
        let token = self.tokens.get(deadline).await?;
        let organisation = self.ask(token.header(), deadline).await?;
        organisation.ok_or(Error::Denied { status: StatusCode::UNAUTHORIZED.as_u16() })
    }
}

impl fmt::Debug for AgentVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentVerifier")
    }
}

/// Returns what an answer shows about Genesys, which had `enough` time or not. A rate limit is that of one agent.
fn outcome<T>(asked: &Result<T, Error>, enough: bool) -> RequestOutcome {
    match asked {
        Ok(_)
        | Err(Error::Unusable { .. } | Error::Denied { .. } | Error::Privileges { .. } | Error::Throttled { .. }) => {
            RequestOutcome::Answers
        }
        Err(Error::Timeout(_)) if !enough => RequestOutcome::Unknown,
        Err(Error::Failed { .. } | Error::Unreachable(_) | Error::Timeout(_)) => RequestOutcome::Fails,
        Err(Error::BudgetSpent { .. } | Error::BreakerOpen { .. }) => RequestOutcome::Unknown,
    }
}

fn label(standing: &Result<AgentStanding, Error>) -> AgentOutcome {
    match standing {
        Ok(AgentStanding::Member) => AgentOutcome::Valid,
        Ok(AgentStanding::Refused) => AgentOutcome::Refused,
        Err(Error::BudgetSpent { .. } | Error::BreakerOpen { .. } | Error::Throttled { .. }) => AgentOutcome::Limited,
        Err(
            Error::Unusable { .. }
            | Error::Denied { .. }
            | Error::Privileges { .. }
            | Error::Failed { .. }
            | Error::Unreachable(_)
            | Error::Timeout(_),
        ) => AgentOutcome::Failed,
    }
}
