//! Opens the upstream of each tenant.
//!
//! Every tenant has its own adapter, wrapped by its own guard and its own check of the token's privileges. All share the
//! connections of at most two HTTP clients, one for `https` and one for plain `http`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Semaphore;
use url::Url;

use crate::domain::{Secret, TenantId};
use crate::invalid::InvalidSetting;
use crate::max_age::MaxAge;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::Upstream;
use super::agents::{AgentVerifier, AgentVerifiers};
use super::audit_reader::AuditReader;
use super::breaker_gauge::BreakerGauge;
use super::endpoints::ProfileUrl;
use super::genesys::Genesys;
use super::guard::{Guard, UpstreamLimits};
use super::http_client::HttpClients;
use super::notifications::Notifications;
use super::privilege_gate::PrivilegeGate;
use super::privileges::{IntrospectionUrls, Permission, PrivilegePolicy, PrivilegeVerifier, Scope};
use super::search::SearchUrls;
use super::tenants::{TenantHealth, TenantUpstreams};
use super::token::ClientCredentials;
use super::tokens::TokenCache;
use super::traced::TracedUpstream;

pub use super::endpoints::BaseUrls;

/// `[upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The time limit of one fetch, retries included; below `lookup.lease_ttl`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The most requests in flight, per tenant.
    pub max_in_flight: usize,
    /// The age at which the connections are replaced, where a tenant's URLs contain a name.
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Duration,
}

/// `[tenant.upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// A Genesys region such as `us_east_1`. It replaces the two URLs.
    #[serde(default)]
    pub region: Option<String>,
    /// The base URL of the API.
    #[serde(default)]
    pub api_url: Option<Url>,
    /// The base URL of the token endpoint.
    #[serde(default)]
    pub login_url: Option<Url>,
    /// The id of the OAuth client.
    pub client_id: String,
    /// The secret of the OAuth client.
    pub client_secret: Secret,
    /// The path of a profile; `{customer_id}` is replaced by the percent-encoded id.
    pub profile_path: String,
    /// The most requests per minute and process.
    pub requests_per_minute: u32,
    /// The permissions that the client must hold at Genesys.
    pub required_permissions: Vec<Permission>,
    /// The permissions that it must not hold.
    pub forbidden_permissions: Vec<Permission>,
    /// The scopes that its token must hold.
    pub required_scopes: Vec<Scope>,
    /// The scopes that its token must not hold.
    pub forbidden_scopes: Vec<Scope>,
}

/// The path of a profile at Genesys, which its other requests about contacts belong to.
const PROFILE_PATH: &str = "/api/v2/externalcontacts/contacts/{customer_id}";

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// Returns the first invalid option.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(InvalidSetting::new("timeout", "must be above 0s and at most 60s"));
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.max_in_flight) {
            return Err(InvalidSetting::new("max_in_flight", "must be at least 1"));
        }
        if self.max_connection_age < Duration::from_secs(1) {
            return Err(InvalidSetting::new("max_connection_age", "must be 1s or longer"));
        }
        Ok(())
    }
}

impl TenantConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// Returns the first invalid option.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        TenantSettings::parse(self).map(drop)
    }

    pub(super) fn privilege_policy(&self) -> PrivilegePolicy {
        PrivilegePolicy {
            required_permissions: self.required_permissions.clone(),
            forbidden_permissions: self.forbidden_permissions.clone(),
            required_scopes: self.required_scopes.clone(),
            forbidden_scopes: self.forbidden_scopes.clone(),
        }
    }

    /// Returns the base URLs of the API and of the token endpoint.
    ///
    /// # Errors
    ///
    /// Neither or both of a region and URLs are given, or one of them is invalid.
    pub fn base_urls(&self) -> Result<BaseUrls, InvalidSetting> {
        BaseUrls::find(self.region.as_deref(), self.api_url.as_ref(), self.login_url.as_ref())
    }
}

/// The parsed configuration of a tenant.
pub(super) struct TenantSettings {
    pub(super) needs_tls: bool,
    pub(super) token_url: Url,
    pub(super) profile_url: ProfileUrl,
    bulk_url: Url,
    audits_url: Url,
    channels_url: Url,
    search_urls: SearchUrls,
    pub(super) introspection: IntrospectionUrls,
    per_minute: u32,
}

impl TenantSettings {
    pub(super) fn parse(config: &TenantConfig) -> Result<Self, InvalidSetting> {
        let urls = config.base_urls()?;
        let profile_url = ProfileUrl::new(&urls.api, &config.profile_path)?;
        if config.client_id.is_empty() {
            return Err(InvalidSetting::new("client_id", "must not be empty"));
        }
        if config.client_secret.is_empty() {
            return Err(InvalidSetting::new("client_secret", "must not be empty"));
        }
        let per_minute = config.requests_per_minute;
        if per_minute == 0 {
            let reason = "must be at least 1: Genesys always limits requests";
            return Err(InvalidSetting::new("requests_per_minute", reason));
        }
        Ok(Self {
            needs_tls: urls.need_tls(),
            token_url: urls.token()?,
            profile_url,
            bulk_url: urls.bulk()?,
            audits_url: urls.audits()?,
            channels_url: urls.channels()?,
            search_urls: urls.searches()?,
            introspection: urls.introspection()?,
            per_minute,
        })
    }
}

/// What [`open`] returns.
#[derive(Debug)]
pub struct OpenedUpstream {
    /// Fetches profiles.
    pub upstream: Arc<dyn Upstream>,
    /// Reports the tenants whose Genesys gives no answers.
    pub tenant_health: TenantHealth,
    /// Reads audits of Genesys.
    pub audits: AuditReader,
    /// Verifies the tokens of agents.
    pub agents: AgentVerifiers,
}

impl OpenedUpstream {
    /// Returns the notifications of a tenant's Genesys.
    #[must_use]
    pub fn notifications(&self, tenant: &TenantId) -> Notifications {
        Notifications::new(Arc::clone(&self.tenant_health.0), tenant.clone())
    }
}

/// Creates the upstream of all tenants. It sends nothing before the first fetch.
///
/// # Errors
///
/// An option is invalid, or a tenant needs TLS and this machine has no certificate authorities.
pub fn open<'a>(
    config: &Config,
    tenants: impl IntoIterator<Item = (TenantId, &'a TenantConfig)>,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> Result<OpenedUpstream, InvalidSetting> {
    config.validate().map_err(|error| error.within("upstream"))?;
    let tenants: HashMap<_, _> = tenants.into_iter().collect();
    let gauges: Vec<_> = BreakerGauge::for_tenants(tenants.len(), &metrics.upstream_breaker_state).collect();
    let urls = tenants.values().filter_map(|options| options.base_urls().ok());
    let hosts: Vec<String> = urls.flat_map(BaseUrls::hosts).collect();
    let max_age = MaxAge::new(config.max_connection_age, hosts.iter().map(String::as_str));
    let mut clients = HttpClients::new(max_age, shutdown.clone());
    let mut agents = HashMap::new();
    let guarded = tenants.into_iter().zip(gauges).map(|((tenant, options), gauge)| {
        let settings = TenantSettings::parse(options).map_err(|error| error.within("tenant.upstream"))?;
        let client = clients.get(settings.needs_tls)?;
        let credentials = ClientCredentials {
            tenant: tenant.clone(),
            url: settings.token_url,
            client_id: options.client_id.clone(),
            client_secret: options.client_secret.clone(),
        };
        let limits = UpstreamLimits {
            timeout: config.timeout,
            max_in_flight: config.max_in_flight,
            per_minute: settings.per_minute,
            is_default_path: options.profile_path == PROFILE_PATH,
        };
        let (token_info, introspection) = (settings.introspection.token.clone(), settings.introspection);
        let privileges = PrivilegeVerifier::new(client.clone(), options.privilege_policy(), introspection);
        let metrics = || Arc::clone(metrics);
        let tokens =
            TokenCache::new(client.clone(), credentials, privileges, config.timeout, metrics(), shutdown.clone());
        let genesys = Genesys {
            client: client.clone(),
            profile_url: settings.profile_url,
            bulk_url: settings.bulk_url,
            audits_url: settings.audits_url,
            channels_url: settings.channels_url,
            search_urls: settings.search_urls,
            tokens: tokens.clone(),
        };
        let guard = Guard::new(genesys, tenant.clone(), limits, gauge, metrics());
        let budget = Arc::clone(guard.budget());
        let verifier = AgentVerifier::new(client, token_info, tokens.clone(), budget, config.timeout, metrics());
        agents.insert(tenant.clone(), verifier);
        Ok((tenant, PrivilegeGate::new(guard, tokens, metrics())))
    });
    let tenants = Arc::new(TenantUpstreams(guarded.collect::<Result<_, InvalidSetting>>()?));
    Ok(OpenedUpstream {
        upstream: Arc::new(TracedUpstream::new(Arc::clone(&tenants))),
        tenant_health: TenantHealth(Arc::clone(&tenants)),
        audits: AuditReader::new(tenants),
        agents: AgentVerifiers(Arc::new(agents)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant_config(edit: impl FnOnce(&mut TenantConfig)) -> TenantConfig {
        let mut config = TenantConfig {
            region: Some("us_east_1".to_owned()),
            api_url: None,
            login_url: None,
            client_id: "client".to_owned(),
            client_secret: Secret::new("secret"),
            profile_path: PROFILE_PATH.to_owned(),
            requests_per_minute: 300,
            required_permissions: Vec::new(),
            forbidden_permissions: Vec::new(),
            required_scopes: Vec::new(),
            forbidden_scopes: Vec::new(),
        };
        edit(&mut config);
        config
    }

    #[test]
    fn a_bad_option_is_named() {
        let field = |edit: fn(&mut TenantConfig)| tenant_config(edit).validate().unwrap_err().field;
        assert_eq!(field(|config| config.region = None), "region");
        assert_eq!(field(|config| config.client_id.clear()), "client_id");
        assert_eq!(field(|config| config.client_secret = Secret::new("")), "client_secret");
        assert_eq!(field(|config| config.profile_path.clear()), "profile_path");
        assert_eq!(field(|config| config.requests_per_minute = 0), "requests_per_minute");
        assert_eq!(tenant_config(|_| ()).validate(), Ok(()));
    }

    #[test]
    fn limits_that_block_all_requests_are_refused() {
        let second = Duration::from_secs(1);
        let field = |timeout, max_in_flight, max_connection_age| {
            Config { timeout, max_in_flight, max_connection_age }.validate().unwrap_err().field
        };
        assert_eq!(field(Duration::ZERO, 1, second), "timeout");
        assert_eq!(field(Duration::MAX, 1, second), "timeout");
        assert_eq!(field(second, 0, second), "max_in_flight");
        assert_eq!(field(second, usize::MAX, second), "max_in_flight");
        assert_eq!(field(second, 1, Duration::ZERO), "max_connection_age");
    }
}
