//! Reload: a running process applies callers, webhook secrets, certificates, sealing keys and the admin key of another
//! configuration.
//!
//! # Steps
//!
//! Everything is created from the new configuration first. Only if all of it can be used does it replace the current
//! state, and that step cannot fail. A request or a handshake uses the state of the moment when it began. All other
//! settings stay as they were at the start; those that differ are logged.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::audit::{AuditRecord, OperatorRecord};
use crate::config::{Config, LoadErrors};
use crate::domain::TenantId;
use crate::http::auth::callers::Callers;
use crate::ingest::WebhookSources;
use crate::metrics::Outcome;
use crate::reload::Reloadable;
use crate::store::sealed::keyring::Keyring;

use super::{App, Error};

/// What decides about access, and can be replaced while the process runs.
#[derive(Clone, Debug)]
pub(super) struct AccessControl {
    pub(super) callers: Reloadable<Callers>,
    pub(super) sources: Reloadable<WebhookSources>,
    pub(super) admin_key: Reloadable<Option<[u8; 32]>>,
    /// The keys of `[store.sealing]`, for the tenants of this process.
    pub(super) keyring: Reloadable<Keyring>,
    /// `None` if the listener is plain; a reload cannot change that.
    pub(super) public_tls: Option<Reloadable<ServerConfig>>,
    pub(super) admin_tls: Option<Reloadable<ServerConfig>>,
}

/// The next access control, created and checked.
struct NextAccess {
    callers: Callers,
    sources: WebhookSources,
    keyring: Keyring,
    admin_key: Option<[u8; 32]>,
    public_tls: Option<Arc<ServerConfig>>,
    admin_tls: Option<Arc<ServerConfig>>,
}

/// How long reading the configuration and its files again may take.
const DEADLINE: Duration = Duration::from_secs(10);

impl App {
    /// Applies callers, webhook secrets, certificates, sealing keys and the admin key of the configuration that `read`
    /// returns: all of them, or nothing if one cannot be used or cannot be read within ten seconds. Returns whether they
    /// were applied. Files are read by a thread that may block.
    pub async fn reload(&self, read: impl FnOnce() -> Result<Config, LoadErrors> + Send + 'static) -> bool {
        let (access, running) = (self.access.clone(), Arc::clone(&self.config));
        let prepare = move || -> Result<(NextAccess, Vec<String>), String> {
            let next = read().map_err(|errors| errors.to_string())?;
            access.prepare(&running, &next).map_err(|error| error.to_string())
        };
        let prepared = match timeout(DEADLINE, spawn_blocking(prepare)).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(_)) | Err(_) => Err("could not be read in time".to_owned()),
        };
        let changed = prepared.map(|(next, left)| {
            self.access.replace(&self.config, next);
            left
        });
        let outcome = if changed.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.metrics.config_reloads.with(outcome).increment(1);
        let outcome = if changed.is_ok() { "ok" } else { "error" };
        let operation = OperatorRecord::new(None, "reload", outcome);
        self.audit.record(AuditRecord::Operator(operation));
        match &changed {
            Ok(left) if left.is_empty() => tracing::info!("the configuration was read again"),
            Ok(left) => {
                let settings = left.join(", ");
                tracing::warn!(settings, "the configuration was read again, except for settings that need a restart");
            }
            Err(error) => tracing::error!(error, "the configuration cannot be used, keeping the running one"),
        }
        changed.is_ok()
    }
}

impl NextAccess {
    /// Creates everything from a configuration; sources and sealing keys only for the tenants of this process.
    fn of(config: &Config, callers: Callers, is_served: impl Fn(&TenantId) -> bool) -> Result<Self, Error> {
        let served = config.tenants.iter().filter(|tenant| is_served(&tenant.id));
        let tenants: Vec<TenantId> = served.clone().map(|tenant| tenant.id.clone()).collect();
        Ok(Self {
            callers,
            sources: WebhookSources::new(served.map(|tenant| (tenant.id.clone(), tenant.webhooks.as_slice())))?,
            keyring: keyring(config, &tenants)?,
            admin_key: config.admin.key_digest(),
            public_tls: config.http.tls.load("http.tls").map_err(|error| error.within("http.tls"))?,
            admin_tls: config.admin.tls.load("admin.tls").map_err(|error| error.within("admin.tls"))?,
        })
    }
}

impl AccessControl {
    /// Creates the access control of the configuration that the process starts with.
    pub(super) fn of(config: &Config) -> Result<Self, Error> {
        let next = NextAccess::of(config, Callers::new(&config.callers)?, |_| true)?;
        Ok(Self {
            callers: Reloadable::new(next.callers),
            sources: Reloadable::new(next.sources),
            keyring: Reloadable::new(next.keyring),
            admin_key: Reloadable::new(next.admin_key),
            public_tls: next.public_tls.map(Reloadable::new),
            admin_tls: next.admin_tls.map(Reloadable::new),
        })
    }

    /// Creates the access control of another configuration, and returns it with the settings that differ and need a
    /// restart.
    fn prepare(&self, running: &Config, next: &Config) -> Result<(NextAccess, Vec<String>), Error> {
        let callers = self.callers.load().renewed(&next.callers)?;
        let access = NextAccess::of(next, callers, |id| running.tenants.iter().any(|tenant| tenant.id == *id))?;
        let left = running.settings.differences(&next.settings);
        let left = left.into_iter().filter(|path| !is_reloadable(path, running, next)).map(str::to_owned).collect();
        Ok((access, left))
    }

    /// Replaces all of it.
    fn replace(&self, running: &Config, next: NextAccess) {
        self.callers.replace(next.callers);
        self.sources.replace(next.sources);
        self.keyring.replace(next.keyring);
        // The listener keeps its address, and beyond loopback it needs a key.
        if next.admin_key.is_some() || !running.admin.needs_key() {
            self.admin_key.replace(next.admin_key);
        }
        for (current, next) in [(&self.public_tls, next.public_tls), (&self.admin_tls, next.admin_tls)] {
            if let (Some(current), Some(next)) = (current, next) {
                current.replace(next);
            }
        }
    }
}

/// Creates the keyring of a configuration; an empty one if records are stored in clear.
fn keyring(config: &Config, tenants: &[TenantId]) -> Result<Keyring, Error> {
    Ok(match &config.store.sealing {
        Some(sealing) => Keyring::new(sealing, tenants).map_err(|error| error.within("store.sealing"))?,
        None => Keyring::default(),
    })
}

/// Returns whether a setting takes effect without a restart.
fn is_reloadable(path: &str, running: &Config, next: &Config) -> bool {
    if path.starts_with("http.tls.") {
        return running.http.tls.is_on() == next.http.tls.is_on();
    }
    if path.starts_with("admin.tls.") {
        return running.admin.tls.is_on() == next.admin.tls.is_on();
    }
    let is_webhook = path.strip_prefix("tenant[").and_then(|rest| rest.split_once("].")).is_some_and(|(_, option)| {
        // In another order of tenants the index is of another tenant, but then the changed ids are reported.
        option == "webhook" || option.starts_with("webhook[")
    });
    if path == "admin.key_sha256" {
        return next.admin.key_sha256.is_some() || !running.admin.needs_key();
    }
    is_webhook || path.starts_with("store.sealing.") || path == "caller" || path.starts_with("caller[")
}
