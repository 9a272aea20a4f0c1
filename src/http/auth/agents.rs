//! Agents: people who look customers up with their own Genesys token, where their tenant allows it.
//!
//! The token comes as `Authorization: Bearer`. It is asked about at Genesys only if it is neither a token nor a key of a caller,
//! and for one tenant only: the one that `X-Tenant-Id` or `tenantId` in the query names, or else the only one that allows
//! agents. So no organisation sees the tokens of another one.
//!
//! A valid token is taken without asking again for at most a minute (`recheck`); a refused one is refused for a minute without
//! asking again. Both are remembered by their hash, in two bounded caches, so that refused tokens displace no valid ones.
//! Requests with the same token wait for one verification. If Genesys does not answer, nobody knows whether a token is valid:
//! the request fails with 503, and not with 401.
//!
//! All agents of a tenant are one caller, [`AGENTS`]: they share fields, rate, budget, and the handles of customers. The audit
//! tells them apart by an HMAC of their token.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::{LookupBy, Secret, TenantId};
use crate::invalid::InvalidSetting;
use crate::shutdown::Shutdown;
use crate::upstream;
use crate::upstream::agents::{AgentStanding, AgentVerifiers};

use crate::http::auth::agent_request::{is_token, named_tenant};
use crate::http::auth::callers::{Caller, KeyDigest};
use crate::http::auth::field_set::FieldSet;
use crate::http::auth::rate_limit::CallerRate;

/// The name of the caller that all agents are.
pub const AGENTS: &str = "agents";

/// The longest time for which a valid token is taken without asking again, and the time for which a refused one is refused.
const MINUTE: Duration = Duration::from_secs(60);

/// How long it is remembered that a token was valid: a working day.
const KNOWN: Duration = Duration::from_secs(12 * 3600);

/// The most remembered tokens, of those that were valid and of those that were refused.
const MAX_REMEMBERED: u64 = 20_000;

/// The most verifications in progress.
const MAX_IN_PROGRESS: usize = 256;

/// `[tenant.agents]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether agents may look up with their own Genesys tokens.
    pub allow: bool,
    /// The fields that they may read.
    #[serde(default)]
    pub fields: Vec<String>,
    /// What they may look customers up by.
    pub lookup_by: Vec<LookupBy>,
    /// The rate limit of all agents together, in requests per second and process; 0: no limit.
    pub requests_per_second: u32,
    /// How long a token is taken without asking Genesys again.
    #[serde(with = "humantime_serde")]
    pub recheck: Duration,
}

/// Authenticates agents.
#[derive(Debug)]
pub struct Agents {
    tenants: HashMap<TenantId, AgentRights>,
    verifiers: AgentVerifiers,
    handles: Hmac<Sha256>,
    shutdown: Shutdown,
    valid: Cache<AgentKey, ValidToken>,
    refused: Cache<AgentKey, ()>,
    in_progress: Mutex<HashMap<AgentKey, watch::Receiver<Option<Verdict>>>>,
}

/// What agents of a tenant may do.
#[derive(Debug)]
struct AgentRights {
    fields: FieldSet,
    lookup_by: Vec<LookupBy>,
    rate: Option<Arc<CallerRate>>,
    recheck: Duration,
}

/// A token that a request presents for a tenant.
#[derive(Debug)]
pub(super) struct AgentToken {
    tenant: TenantId,
    token: Secret,
}

/// An agent with a valid token.
#[derive(Clone, Debug)]
pub(super) struct AdmittedAgent {
    /// The caller that the agent is.
    pub(super) caller: Arc<Caller>,
    /// The time until the token must be verified again.
    pub(super) valid_for: Duration,
}

/// The tenant and the hash of a token.
type AgentKey = (TenantId, KeyDigest);

/// The result of a verification; `None`: the token is refused.
type Verdict = Result<Option<AdmittedAgent>, upstream::Error>;

/// A token that was valid when it was verified.
#[derive(Clone, Debug)]
struct ValidToken {
    caller: Arc<Caller>,
    until: Instant,
}

/// Ends a verification, also one that panics: removes it from those in progress.
struct Progress {
    agents: Arc<Agents>,
    key: AgentKey,
}

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// The first invalid option.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.rights().map(drop)
    }

    fn rights(&self) -> Result<AgentRights, InvalidSetting> {
        let fields = FieldSet::parse(self.fields.iter().map(String::as_str))
            .map_err(|error| InvalidSetting::new("fields", error.to_string()))?;
        if self.allow && self.fields.is_empty() {
            return Err(InvalidSetting::new("fields", "is missing: agents would see nothing"));
        }
        if self.recheck.is_zero() || self.recheck > MINUTE {
            return Err(InvalidSetting::new("recheck", "must be above 0s and at most 60s"));
        }
        let rate = NonZeroU32::new(self.requests_per_second).map(CallerRate::per_second).map(Arc::new);
        Ok(AgentRights { fields, lookup_by: self.lookup_by.clone(), rate, recheck: self.recheck })
    }
}

impl Agents {
    /// Creates the authentication of the agents of tenants that allow it; `key` is that of the handles of tokens.
    ///
    /// # Errors
    ///
    /// An option is invalid.
    ///
    /// # Panics
    ///
    /// Never: HMAC takes keys of any length.
    pub fn new<'a>(
        tenants: impl IntoIterator<Item = (&'a TenantId, &'a Config)>,
        verifiers: AgentVerifiers,
        key: &[u8; 32],
        shutdown: Shutdown,
    ) -> Result<Arc<Self>, InvalidSetting> {
        let tenants = tenants.into_iter().filter(|(_, config)| config.allow);
        let tenants = tenants.map(|(tenant, config)| Ok((tenant.clone(), config.rights()?)));
        Ok(Arc::new(Self {
            tenants: tenants.collect::<Result<_, InvalidSetting>>()?,
            verifiers,
            // RFC 2104 section 2.
            handles: Hmac::new_from_slice(key).expect("hmac takes keys of any length"),
            shutdown,
            valid: Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(KNOWN).build(),
            refused: Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(MINUTE).build(),
            in_progress: Mutex::default(),
        }))
    }

    /// Returns the token of a request, if it may be that of an agent of a tenant that allows it.
    pub(super) fn presented(&self, token: &[u8], headers: &HeaderMap, query: Option<&str>) -> Option<AgentToken> {
        if self.tenants.is_empty() || !is_token(token) {
            return None;
        }
        let tenant = match named_tenant(headers, query) {
            Some(named) => self.tenants.get_key_value(&named?)?.0,
            None => Some(self.tenants.keys()).filter(|tenants| tenants.len() == 1)?.next()?,
        };
        let token = Secret::new(std::str::from_utf8(token).ok()?);
        Some(AgentToken { tenant: tenant.clone(), token })
    }

    /// Returns the agent of a token; `None` if it is refused.
    ///
    /// # Errors
    ///
    /// Genesys does not say whether the token is valid.
    pub(super) async fn admit(self: &Arc<Self>, presented: AgentToken) -> Verdict {
        let key = (presented.tenant.clone(), KeyDigest::of(presented.token.expose().as_bytes()));
        let mut verdict = {
            let mut in_progress = self.in_progress.lock();
            let before = self.valid.get(&key);
            let left = before.as_ref().map(|valid| valid.until.saturating_duration_since(Instant::now()));
            if let (Some(valid), Some(valid_for)) = (&before, left.filter(|left| !left.is_zero())) {
                return Ok(Some(AdmittedAgent { caller: Arc::clone(&valid.caller), valid_for }));
            }
            if self.refused.contains_key(&key) {
                return Ok(None);
            }
            match in_progress.get(&key) {
                Some(verdict) => verdict.clone(),
                None if in_progress.len() >= MAX_IN_PROGRESS => {
                    return Err(upstream::Error::BudgetSpent { retry_after: Duration::from_secs(1) });
                }
                None => {
                    let (sender, verdict) = watch::channel(None);
                    in_progress.insert(key.clone(), verdict.clone());
                    let progress = Progress { agents: Arc::clone(self), key };
                    self.shutdown.spawn(progress.verify(presented, before.is_some(), sender));
                    verdict
                }
            }
        };
        // The sender is dropped without a verdict only if the task panicked.
        let verdict = verdict.wait_for(Option::is_some).await.ok().and_then(|verdict| verdict.clone());
        verdict.unwrap_or(Err(upstream::Error::Timeout(None)))
    }

    /// Returns the caller that an agent with this token is.
    fn caller(&self, tenant: &TenantId, rights: &AgentRights, key: KeyDigest) -> Arc<Caller> {
        let handle = self.handles.clone().chain_update(tenant.as_str()).chain_update([0]);
        let handle = handle.chain_update(key.as_bytes()).finalize().into_bytes();
        Arc::new(Caller {
            name: AGENTS.into(),
            fields: rights.fields.clone(),
            rate: rights.rate.clone(),
            may_refresh: false,
            timing: false,
            scope: None,
            agent: Some(URL_SAFE_NO_PAD.encode(&handle[..16]).into()),
            key,
            tenants: vec![tenant.clone()],
            lookup_by: rights.lookup_by.clone(),
        })
    }
}

impl Progress {
    /// Verifies a token, remembers the result and reports it.
    async fn verify(self, presented: AgentToken, is_known: bool, sender: watch::Sender<Option<Verdict>>) {
        let AgentToken { tenant, token } = presented;
        let (agents, began) = (&self.agents, Instant::now());
        let verdict = match (agents.verifiers.verify(&tenant, &token, is_known).await, agents.tenants.get(&tenant)) {
            (Ok(AgentStanding::Member), Some(rights)) => {
                let (caller, until) = (agents.caller(&tenant, rights, self.key.1), began + rights.recheck);
                agents.valid.insert(self.key.clone(), ValidToken { caller: Arc::clone(&caller), until });
                Ok(Some(AdmittedAgent { caller, valid_for: until.saturating_duration_since(Instant::now()) }))
            }
            (Ok(AgentStanding::Member | AgentStanding::Refused), _) => {
                agents.valid.invalidate(&self.key);
                agents.refused.insert(self.key.clone(), ());
                Ok(None)
            }
            (Err(error), _) => {
                let cause = std::error::Error::source(&error).map(tracing::field::display);
                tracing::debug!(%tenant, %error, cause, "cannot verify the token of an agent");
                Err(error)
            }
        };
        drop(self);
        sender.send_replace(Some(verdict));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.agents.in_progress.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_need_fields_and_are_verified_each_minute() {
        let config = |fields: &[&str], recheck| Config {
            allow: true,
            fields: fields.iter().map(ToString::to_string).collect(),
            lookup_by: vec![LookupBy::CustomerId],
            requests_per_second: 0,
            recheck,
        };
        assert!(config(&["id"], MINUTE).validate().is_ok());
        let field = |config: Config| config.validate().unwrap_err().field;
        assert_eq!(field(config(&[], MINUTE)), "fields");
        assert_eq!(field(config(&["a..b"], MINUTE)), "fields");
        assert_eq!(field(config(&["id"], Duration::ZERO)), "recheck");
        assert_eq!(field(config(&["id"], MINUTE + MINUTE)), "recheck");
    }
}
