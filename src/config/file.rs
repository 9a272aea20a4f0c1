//! The form of a configuration file, before tenants inherit from `[lookup]` the options that they do not set.

use std::time::Duration;

use serde::Deserialize;

use crate::domain::{PhoneRegion, TenantId};
use crate::http::auth::{agents, callers};
use crate::http::server::config as server;
use crate::ingest::authenticate;
use crate::roles::Roles;
use crate::{audit, consumer, ingest, logging, lookup, queue, sandbox, store, telemetry, upstream};

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

/// One `[[tenant]]` as it is written: it may override options of `[lookup]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantSection {
    id: TenantId,
    #[serde(default, with = "humantime_serde")]
    ttl: Option<Duration>,
    ttl_jitter: Option<f64>,
    #[serde(default, with = "humantime_serde")]
    grace: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    negative_ttl: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    unsettled_ttl: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    identifier_ttl: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    soft_timeout: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    deadline: Option<Duration>,
    #[serde(default)]
    prewarm: bool,
    agents: Option<agents::Config>,
    phone_region: Option<PhoneRegion>,
    upstream: Option<upstream::open::TenantConfig>,
    #[serde(default)]
    webhook: Vec<authenticate::Config>,
}

impl ConfigFile {
    /// Creates the configuration; tenants inherit the options of `[lookup]` that they do not set.
    pub(super) fn into_config(self, is_demo: bool, settings: Settings) -> Config {
        let runs = |role| self.roles.contains(&role);
        let roles = Roles { ingest: runs(Role::Ingest), consumer: runs(Role::Consumer), lookup: runs(Role::Lookup) };
        let tenants = self.tenant.into_iter().map(|tenant| tenant.with_defaults(&self.lookup)).collect();
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
    fn with_defaults(self, common: &lookup::Config) -> Tenant {
        let lookup = lookup::Config {
            ttl: self.ttl.unwrap_or(common.ttl),
            ttl_jitter: self.ttl_jitter.unwrap_or(common.ttl_jitter),
            grace: self.grace.unwrap_or(common.grace),
            negative_ttl: self.negative_ttl.unwrap_or(common.negative_ttl),
            unsettled_ttl: self.unsettled_ttl.unwrap_or(common.unsettled_ttl),
            identifier_ttl: self.identifier_ttl.unwrap_or(common.identifier_ttl),
            lease_ttl: common.lease_ttl,
            soft_timeout: self.soft_timeout.unwrap_or(common.soft_timeout),
            deadline: self.deadline.unwrap_or(common.deadline),
            phone_region: self.phone_region,
        };
        let Self { id, prewarm, agents, upstream, webhook: webhooks, .. } = self;
        Tenant { id, lookup, prewarm, agents, upstream, webhooks }
    }
}
