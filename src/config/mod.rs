//! Configuration: compiled-in defaults, which a file overrides, which the environment overrides.
//!
//! Every module owns its `Config`; this module only composes them, and no module below imports it. Each option is
//! explained once, in `conf/default.toml`. Lists of tables replace each other and are never merged. If no `[[tenant]]`
//! is configured, `conf/demo.toml` provides one.

mod contact;
mod de;
mod error;
mod file;
mod load;
mod nearest;
mod report;
mod settings;
mod tree;
mod validate;
mod warnings;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use crate::domain::{IdentifierHasher, KeyHasher, Secret, TenantId};
use crate::http::auth::{agents, callers};
use crate::http::server::config as server;
use crate::ingest::authenticate;
use crate::roles::Roles;
use crate::{audit, consumer, ingest, logging, lookup, queue, sandbox, sources, store, telemetry, upstream};

pub use error::{LoadErrors, SettingError};
pub use load::{Loaded, from_toml, load};
pub use report::SettingsReport;
pub use settings::Settings;
pub use tree::Origin;
pub use warnings::UNPREFIXED;

/// The defaults, with every option explained.
pub const DEFAULTS: &str = include_str!("../../conf/default.toml");

/// The defaults of settings in lists of tables.
const TABLE_DEFAULTS: &str = include_str!("table_defaults.toml");

/// The settings that are added if no tenant is configured.
pub const DEMO: &str = include_str!("../../conf/demo.toml");

/// The prefix of environment variables that are settings.
const ENV_PREFIX: &str = "PROFILE_EDGE__";

/// A complete and valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The flows that this process runs.
    pub roles: Roles,
    /// How long the start waits for a dependency.
    pub startup_timeout: Duration,
    /// `[shutdown]`.
    pub shutdown: ShutdownConfig,
    /// `[log]`.
    pub log: logging::Config,
    /// `[http]`.
    pub http: server::Config,
    /// `[admin]`.
    pub admin: server::AdminConfig,
    /// `[security]`.
    pub security: SecurityConfig,
    /// `[keys]`.
    pub keys: KeysConfig,
    /// `[store]`.
    pub store: store::open::Config,
    /// `[queue]`.
    pub queue: queue::open::Config,
    /// `[upstream]`.
    pub upstream: upstream::open::Config,
    /// `[lookup]`.
    pub lookup: lookup::Config,
    /// `[ingest]`.
    pub ingest: ingest::Config,
    /// `[consumer]`.
    pub consumer: consumer::Config,
    /// `[audit]`.
    pub audit: audit::Config,
    /// `[sandbox]`.
    pub sandbox: sandbox::Config,
    /// `[telemetry]`.
    pub telemetry: telemetry::Config,
    /// `[demo]`.
    pub demo: DemoConfig,
    /// `[[tenant]]`, or that of the demo.
    pub tenants: Vec<Tenant>,
    /// `[[caller]]`, or that of the demo.
    pub callers: Vec<callers::Config>,
    /// Whether this is the demo, because no tenant is configured.
    pub is_demo: bool,
    /// The effective settings, to compare with another configuration.
    pub settings: Settings,
}

/// One `[[tenant]]`.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The id.
    pub id: TenantId,
    /// `[lookup]`, with the options that the tenant overrides.
    pub lookup: lookup::Config,
    /// Whether conversation events prefetch their customers.
    pub prewarm: bool,
    /// `[tenant.agents]`.
    pub agents: Option<agents::Config>,
    /// `[tenant.upstream]`.
    pub upstream: Option<upstream::open::TenantConfig>,
    /// `[[tenant.webhook]]`: how the senders of events authenticate.
    pub webhooks: Vec<authenticate::Config>,
    /// `[[tenant.source]]`: what this service receives events from by itself.
    pub sources: Vec<sources::Config>,
}

/// `[shutdown]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long `/readyz` reports `draining` while new connections are still accepted; see [`Self::delay`].
    #[serde(default, with = "humantime_serde")]
    delay: Option<Duration>,
    /// How long work in progress may take to finish.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

impl ShutdownConfig {
    /// Returns how long new connections are accepted after a stop was requested, so that load balancers have noticed
    /// it. Unless it is configured: 3 s, and nothing on a terminal, where no load balancer watches.
    #[must_use]
    pub fn delay(&self) -> Duration {
        let default = || if std::io::stderr().is_terminal() { Duration::ZERO } else { Duration::from_secs(3) };
        self.delay.unwrap_or_else(default)
    }
}

/// `[security]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityConfig {
    /// Whether connections to other hosts must be encrypted.
    pub require_tls: bool,
}

/// `[demo]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoConfig {
    /// Whether a listener outside loopback may accept the credentials of the demo.
    pub allow_remote: bool,
}

/// `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    scheme: KeyScheme,
    secret: Option<Secret>,
    previous: Option<Secret>,
    /// Whether identifiers have the key of the demo where no other is configured.
    #[serde(skip)]
    is_demo: bool,
}

/// The key of identifiers in the demo, which everybody knows.
const DEMO_KEY: &[u8] = b"profile-edge demo key: everybody knows it";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyScheme {
    #[serde(rename = "sha256")]
    Sha256,
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

impl Config {
    /// Returns whether the sandbox runs in this process.
    #[must_use]
    pub fn runs_sandbox(&self) -> bool {
        self.sandbox.enabled.unwrap_or(self.is_demo)
    }

    /// Returns where the sandbox posts its events: to the first webhook whose scheme it supports.
    #[must_use]
    pub fn sandbox_webhook(&self, public: SocketAddr) -> Option<sandbox::Webhook> {
        if !self.roles.ingest {
            return None;
        }
        let (tenant, webhook) = self.tenants.iter().find_map(|tenant| {
            let is_supported = |webhook: &&authenticate::Config| {
                webhook.scheme == authenticate::Scheme::ApiKey && webhook.header.is_none()
            };
            tenant.webhooks.iter().find(is_supported).map(|webhook| (tenant, webhook))
        })?;
        let mut host = public;
        if public.ip().is_unspecified() {
            host.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let url = Url::parse(&format!("http://{host}/webhooks/{}", tenant.id)).ok()?;
        Some(sandbox::Webhook { url, key: webhook.secrets.first()?.clone() })
    }

    /// Sets the address of the sandbox as the upstream of the demo's tenant, and allows its page to call.
    pub fn point_demo_at(&mut self, sandbox: SocketAddr) {
        if !self.is_demo {
            return;
        }
        let url = Url::parse(&format!("http://{sandbox}")).ok();
        for upstream in self.tenants.iter_mut().filter_map(|tenant| tenant.upstream.as_mut()) {
            upstream.api_url.clone_from(&url);
            upstream.login_url.clone_from(&url);
        }
        // The example page of the sandbox calls the public listener.
        let localhost = format!("http://localhost:{}", sandbox.port());
        self.http.cors_origins.extend([format!("http://{sandbox}"), localhost]);
    }
}

impl KeysConfig {
    /// Returns the key of identifiers, if there is one: `secret`, whatever the scheme of customer ids is. The demo has one
    /// without it.
    #[must_use]
    pub fn identifier_hasher(&self) -> Option<IdentifierHasher> {
        let demo = || self.is_demo.then(|| Zeroizing::new(DEMO_KEY.to_vec()));
        self.secret.as_ref().map_or_else(demo, Secret::key_material).map(IdentifierHasher::new)
    }

    /// Returns the keys of identifiers in events: the current one first, then the previous one during a change.
    #[must_use]
    pub fn identifier_hashers(&self) -> Vec<IdentifierHasher> {
        let current = self.identifier_hasher();
        let previous = self.previous.as_ref().and_then(Secret::key_material).map(IdentifierHasher::new);
        let previous = previous.filter(|previous| current.as_ref() != Some(previous));
        current.into_iter().chain(previous).collect()
    }

    /// Returns the key schemes in use: the current one first, then the previous one during a change.
    #[must_use]
    pub fn hashers(&self) -> Vec<KeyHasher> {
        let keyed = |secret: &Secret| secret.key_material().map_or(KeyHasher::Sha256, KeyHasher::HmacSha256);
        let current = match self.scheme {
            KeyScheme::Sha256 => KeyHasher::Sha256,
            KeyScheme::HmacSha256 => self.secret.as_ref().map_or(KeyHasher::Sha256, keyed),
        };
        // Both options may name the same key.
        let other = self.previous.as_ref().map(keyed).filter(|other| *other != current);
        std::iter::once(current).chain(other).collect()
    }
}
