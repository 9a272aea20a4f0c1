//! The form of a configuration file, in which tenants and callers have what they did not set.

use std::time::Duration;

use serde::Deserialize;

use crate::domain::{PhoneRegion, TenantId};
use crate::http::auth::{agents, callers};
use crate::http::server::config as server;
use crate::ingest::authenticate;
use crate::roles::Roles;
use crate::{audit, consumer, ingest, logging, lookup, queue, sandbox, sources, store, telemetry, upstream};

use super::{Config, DemoConfig, KeysConfig, SecurityConfig, Settings, ShutdownConfig, Tenant};

/// A member of `roles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Ingest,
    Consumer,
    Lookup,
}

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    roles: Vec<Role>,
    #[serde(with = "humantime_serde")]
    startup_timeout: Duration,
    shutdown: ShutdownConfig,
    log: logging::Config,
    http: server::Config,
    admin: server::AdminConfig,
    security: SecurityConfig,
    keys: KeysConfig,
    store: store::open::Config,
    queue: queue::open::Config,
    upstream: upstream::open::Config,
    lookup: lookup::Config,
    ingest: ingest::Config,
    consumer: consumer::Config,
    audit: audit::Config,
    sandbox: sandbox::Config,
    telemetry: telemetry::Config,
    demo: DemoConfig,
    #[serde(default)]
    tenant: Vec<TenantSection>,
    #[serde(default)]
    caller: Vec<callers::Config>,
}

/// One `[[tenant]]`, with the options of `[lookup]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantSection {
    id: TenantId,
    #[serde(with = "humantime_serde")]
    ttl: Duration,
    ttl_jitter: f64,
    #[serde(with = "humantime_serde")]
    grace: Duration,
    #[serde(with = "humantime_serde")]
    negative_ttl: Duration,
    #[serde(with = "humantime_serde")]
    unsettled_ttl: Duration,
    #[serde(with = "humantime_serde")]
    unwatched_ttl: Duration,
    #[serde(with = "humantime_serde")]
    identifier_ttl: Duration,
    #[serde(with = "humantime_serde")]
    soft_timeout: Duration,
    #[serde(with = "humantime_serde")]
    deadline: Duration,
    prewarm: bool,
    agents: Option<agents::Config>,
    phone_region: Option<PhoneRegion>,
    upstream: Option<upstream::open::TenantConfig>,
    #[serde(default)]
    webhook: Vec<authenticate::Config>,
    #[serde(default)]
    source: Vec<sources::Config>,
}

impl ConfigFile {
    /// Creates the configuration.
    pub(super) fn into_config(self, is_demo: bool, settings: Settings) -> Config {
        let runs = |role| self.roles.contains(&role);
        let roles = Roles { ingest: runs(Role::Ingest), consumer: runs(Role::Consumer), lookup: runs(Role::Lookup) };
        let tenants = self.tenant.into_iter().map(|tenant| tenant.into_tenant(&self.lookup)).collect();
        Config {
            roles,
            startup_timeout: self.startup_timeout,
            shutdown: self.shutdown,
            log: self.log,
            http: self.http,
            admin: self.admin,
            security: self.security,
            keys: KeysConfig { is_demo, ..self.keys },
            store: self.store,
            queue: self.queue,
            upstream: self.upstream,
            lookup: self.lookup,
            ingest: self.ingest,
            consumer: self.consumer,
            audit: self.audit,
            sandbox: self.sandbox,
            telemetry: self.telemetry,
            demo: self.demo,
            tenants,
            callers: self.caller,
            is_demo,
            settings,
        }
    }
}

impl TenantSection {
    fn into_tenant(self, common: &lookup::Config) -> Tenant {
        let lookup = lookup::Config {
            ttl: self.ttl,
            ttl_jitter: self.ttl_jitter,
            grace: self.grace,
            negative_ttl: self.negative_ttl,
            unsettled_ttl: self.unsettled_ttl,
            unwatched_ttl: self.unwatched_ttl,
            identifier_ttl: self.identifier_ttl,
            lease_ttl: common.lease_ttl,
            soft_timeout: self.soft_timeout,
            deadline: self.deadline,
            phone_region: self.phone_region,
        };
        let Self { id, prewarm, agents, upstream, webhook: webhooks, source: sources, .. } = self;
        Tenant { id, lookup, prewarm, agents, upstream, webhooks, sources }
    }
}
