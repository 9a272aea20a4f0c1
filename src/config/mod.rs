//! Configuration: the compiled-in defaults, a file over them, the environment over that.
//!
//! Every module owns its own `Config`; this one only composes them, and nobody below imports it. Each
//! option is explained once, in `conf/default.toml`. Arrays of tables replace, never merge; while no
//! `[[tenant]]` is configured, `conf/demo.toml` provides one.

mod de;
mod file;
mod report;
mod settings;
mod tree;
mod validate;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::domain::{KeyHasher, Secret, TenantId};
use crate::http::auth::callers;
use crate::http::server::config as server;
use crate::ingest::authenticate;
use crate::roles::Roles;
use crate::{audit, consumer, logging, lookup, queue, sandbox, store, telemetry, upstream};

pub use de::Problem;
pub use report::Report;
pub use settings::Settings;
pub use tree::Origin;

use de::{Context, Reader};
use file::File;
use settings::Secrets;
use tree::Node;

/// The defaults, with every option explained.
pub const DEFAULTS: &str = include_str!("../../conf/default.toml");

/// What runs while no tenant is configured.
pub const DEMO: &str = include_str!("../../conf/demo.toml");

/// The prefix of environment variables that are settings.
const ENV_PREFIX: &str = "PROFILE_EDGE__";

/// A whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// The flows that run.
    pub roles: Roles,
    /// How long a needed dependency may take at start.
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
    /// `[[tenant]]`, or the demo's.
    pub tenants: Vec<Tenant>,
    /// `[[caller]]`, or the demo's.
    pub callers: Vec<callers::Config>,
    /// No tenant is configured, so that this is the demo.
    pub is_demo: bool,
    /// All of it once more, setting by setting.
    pub settings: Settings,
}

/// One `[[tenant]]`.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its times: `[lookup]`, with what it sets anew.
    pub lookup: lookup::Config,
    /// Its Genesys.
    pub upstream: Option<upstream::open::TenantConfig>,
    /// How its sources prove themselves.
    pub webhooks: Vec<authenticate::Config>,
}

/// `[shutdown]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long what is under way may take to finish.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

/// `[security]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityConfig {
    /// Whether links that leave this machine must be encrypted.
    pub require_tls: bool,
}

/// `[demo]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoConfig {
    /// Whether the demo's credentials may stand behind a listener that is not on loopback.
    pub allow_remote: bool,
}

/// `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    scheme: KeyScheme,
    secret: Option<Secret>,
    previous: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyScheme {
    #[serde(rename = "sha256")]
    Sha256,
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

/// A configuration, and where each of its values came from.
#[derive(Debug)]
pub struct Loaded {
    /// What runs.
    pub config: Config,
    /// The effective settings, for `check-config`.
    pub report: Report,
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Loads the configuration of a file, if one is given, and of an environment.
///
/// # Errors
///
/// The file cannot be read or parsed, or a setting is unknown, missing or unusable; each problem names the
/// setting, where it came from, and what was expected.
pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, Errors> {
    let env: HashMap<String, String> = env.into_iter().collect();
    let layer = match file {
        None => None,
        Some(path) => {
            let origin = Origin::File(path.display().to_string().into());
            let refuse = |reason| Errors(vec![Problem { path: String::new(), origin: Some(origin.clone()), reason }]);
            let text = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
            Some(Node::parse(&text, &origin).map_err(refuse)?)
        }
    };
    compose(layer, &env)
}

/// Loads a configuration from a text that takes a file's place, without any environment.
///
/// # Errors
///
/// As [`load`].
pub fn from_toml(text: &str) -> Result<Loaded, Errors> {
    let origin = Origin::File("text".into());
    let layer = Node::parse(text, &origin)
        .map_err(|reason| Errors(vec![Problem { path: String::new(), origin: Some(origin), reason }]))?;
    compose(Some(layer), &HashMap::new())
}

fn compose(file: Option<Node>, env: &HashMap<String, String>) -> Result<Loaded, Errors> {
    let built_in = |text, origin| Node::parse(text, &origin).map_err(|reason| Errors(vec![Problem::new("", reason)]));
    let mut tree = built_in(DEFAULTS, Origin::Default)?;
    let is_demo = file.as_ref().and_then(|file| file.get("tenant")).is_none();
    if is_demo {
        tree.overlay(built_in(DEMO, Origin::Demo)?);
    }
    if let Some(file) = file {
        tree.overlay(file);
    }
    for (name, value) in env {
        if let Some(path) = name.strip_prefix(ENV_PREFIX) {
            let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
            tree.set(&path, value, &Origin::Env(name.as_str().into()));
        }
    }
    let context = Context { env, secrets: RefCell::new(Secrets::new()) };
    let reader = Reader { node: &tree, path: String::new(), context: &context };
    let file = File::deserialize(reader).map_err(|problem| Errors(vec![problem]))?;
    let secrets = context.secrets.into_inner();
    let config = file.into_config(is_demo, Settings::of(&tree, &secrets));
    let mut problems = validate::problems(&config);
    if !problems.is_empty() {
        for problem in &mut problems {
            problem.origin = tree.find(&problem.path).and_then(Node::origin).cloned();
        }
        return Err(Errors(problems));
    }
    Ok(Loaded { config, report: Report::of(&tree, &secrets) })
}

impl Config {
    /// Tells whether the sandbox runs inside this process.
    #[must_use]
    pub fn runs_sandbox(&self) -> bool {
        self.sandbox.enabled.unwrap_or(self.is_demo)
    }

    /// Returns what is usable and better otherwise.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.keys.scheme == KeyScheme::Sha256 {
            found.push(
                "keys.scheme is \"sha256\": whoever can read the store or the queue can find out by trying whether \
                 somebody is a customer; \"hmac-sha256\" with a keys.secret prevents it (PCI DSS 3.5.1.1)"
                    .to_owned(),
            );
        }
        found
    }

    /// Returns where the sandbox posts its events: the first tenant with a webhook that it can speak.
    #[must_use]
    pub fn sandbox_webhook(&self, public: SocketAddr) -> Option<sandbox::Webhook> {
        if !self.roles.ingest {
            return None;
        }
        let (tenant, webhook) = self.tenants.iter().find_map(|tenant| {
            let speaks = |webhook: &&authenticate::Config| {
                webhook.scheme == authenticate::Scheme::ApiKey && webhook.header.is_none()
            };
            tenant.webhooks.iter().find(speaks).map(|webhook| (tenant, webhook))
        })?;
        let mut host = public;
        if public.ip().is_unspecified() {
            host.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let url = Url::parse(&format!("http://{host}/webhooks/{}", tenant.id)).ok()?;
        Some(sandbox::Webhook { url, key: webhook.secrets.first()?.clone() })
    }

    /// Points the demo's tenant at where the sandbox really listens.
    pub fn point_demo_at(&mut self, sandbox: SocketAddr) {
        if !self.is_demo {
            return;
        }
        let url = Url::parse(&format!("http://{sandbox}")).ok();
        for upstream in self.tenants.iter_mut().filter_map(|tenant| tenant.upstream.as_mut()) {
            upstream.api_url.clone_from(&url);
            upstream.login_url.clone_from(&url);
        }
    }
}

impl KeysConfig {
    /// Returns the schemes in use: the present one first, then the other one while they are changed.
    #[must_use]
    pub fn hashers(&self) -> Vec<KeyHasher> {
        let keyed = |secret: &Secret| secret.key_material().map_or(KeyHasher::Sha256, KeyHasher::HmacSha256);
        let present = match self.scheme {
            KeyScheme::Sha256 => KeyHasher::Sha256,
            KeyScheme::HmacSha256 => self.secret.as_ref().map_or(KeyHasher::Sha256, keyed),
        };
        // The one in use may stand there too; once is enough.
        let other = self.previous.as_ref().map(keyed).filter(|other| *other != present);
        std::iter::once(present).chain(other).collect()
    }
}
