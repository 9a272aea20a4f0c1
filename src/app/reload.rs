//! What a running process takes on from another configuration: who may come in, by which certificate we are known, and
//! which keys seal and open records.
//!
//! # How
//!
//! Everything is made of the new configuration first; only when all of it is usable is it put in the place of what is
//! there, and that cannot fail. A request or handshake uses what stood there when it began. What else differs stays as
//! it was at the start, and is named.

use std::sync::Arc;

use rustls::ServerConfig;

use crate::audit::{Operation, Record};
use crate::config::{Config, Errors};
use crate::domain::TenantId;
use crate::http::auth::callers::Callers;
use crate::ingest::Sources;
use crate::metrics::Outcome;
use crate::reload::Reloadable;
use crate::store::sealed::keyring::Keyring;

use super::{App, Error};

/// The doors of a process: what can be changed while it runs.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    pub(super) callers: Reloadable<Callers>,
    pub(super) sources: Reloadable<Sources>,
    pub(super) admin_key: Reloadable<Option<[u8; 32]>>,
    /// The keys of `[store.sealing]`, for the tenants that are served.
    pub(super) keyring: Reloadable<Keyring>,
    /// `None` where the listener is plain; that cannot be changed.
    pub(super) public_tls: Option<Reloadable<ServerConfig>>,
    pub(super) admin_tls: Option<Reloadable<ServerConfig>>,
}

/// What the doors are to be, made and checked.
struct Made {
    callers: Callers,
    sources: Sources,
    keyring: Keyring,
    admin_key: Option<[u8; 32]>,
    public_tls: Option<Arc<ServerConfig>>,
    admin_tls: Option<Arc<ServerConfig>>,
}

impl App {
    /// Takes on what another configuration says of callers, webhook secrets, certificates, sealing keys and the admin
    /// key: all of it, or nothing if any of it is unusable. Returns whether it was taken on.
    pub fn reload(&self, next: Result<Config, Errors>) -> bool {
        let changed = next.map_err(|errors| errors.to_string());
        let changed =
            changed.and_then(|next| self.doors.change(&self.config, &next).map_err(|error| error.to_string()));
        let outcome = if changed.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.metrics.config_reloads.with(outcome).increment(1);
        let outcome = if changed.is_ok() { "ok" } else { "error" };
        let operation = Operation::new(None, "reload", outcome);
        self.audit.record(Record::Operator(operation));
        match &changed {
            Ok(left) if left.is_empty() => tracing::info!("the configuration was read again"),
            Ok(left) => {
                let settings = left.join(", ");
                tracing::warn!(settings, "the configuration was read again, but for settings that need a restart");
            }
            Err(error) => tracing::error!(error, "the configuration cannot be used, the running one stays"),
        }
        changed.is_ok()
    }
}

impl Made {
    /// Makes everything of a configuration; of its tenants' sources and keys, those of the tenants that are served.
    fn of(config: &Config, callers: Callers, is_served: impl Fn(&TenantId) -> bool) -> Result<Self, Error> {
        let served = config.tenants.iter().filter(|tenant| is_served(&tenant.id));
        let tenants: Vec<TenantId> = served.clone().map(|tenant| tenant.id.clone()).collect();
        Ok(Self {
            callers,
            sources: Sources::new(served.map(|tenant| (tenant.id.clone(), tenant.webhooks.as_slice())))?,
            keyring: keyring(config, &tenants)?,
            admin_key: config.admin.key_digest(),
            public_tls: config.http.tls.load("http.tls").map_err(|error| error.within("http.tls"))?,
            admin_tls: config.admin.tls.load("admin.tls").map_err(|error| error.within("admin.tls"))?,
        })
    }
}

impl Doors {
    /// Makes the doors of the configuration that a process starts with.
    pub(super) fn of(config: &Config) -> Result<Self, Error> {
        let made = Made::of(config, Callers::new(&config.callers)?, |_| true)?;
        Ok(Self {
            callers: Reloadable::new(made.callers),
            sources: Reloadable::new(made.sources),
            keyring: Reloadable::new(made.keyring),
            admin_key: Reloadable::new(made.admin_key.filter(|_| config.admin.needs_key())),
            public_tls: made.public_tls.map(Reloadable::new),
            admin_tls: made.admin_tls.map(Reloadable::new),
        })
    }

    /// Changes the doors of a process that runs by one configuration to those of another; all of them, or none.
    ///
    /// Returns the settings that differ and are not taken on.
    pub(super) fn change(&self, running: &Config, next: &Config) -> Result<Vec<String>, Error> {
        let callers = self.callers.load().renewed(&next.callers)?;
        let made = Made::of(next, callers, |id| running.tenants.iter().any(|tenant| tenant.id == *id))?;
        self.callers.replace(made.callers);
        self.sources.replace(made.sources);
        self.keyring.replace(made.keyring);
        // The listener stays where it is, so whether it needs a key is not for the new configuration to say.
        if made.admin_key.is_some() && running.admin.needs_key() {
            self.admin_key.replace(made.admin_key);
        }
        for (door, made) in [(&self.public_tls, made.public_tls), (&self.admin_tls, made.admin_tls)] {
            if let (Some(door), Some(made)) = (door, made) {
                door.replace(made);
            }
        }
        let left = running.settings.differences(&next.settings);
        Ok(left.into_iter().filter(|path| !is_taken_on(path, running, next)).map(str::to_owned).collect())
    }
}

/// Makes the keyring of a configuration; an empty one where records are kept in clear.
fn keyring(config: &Config, tenants: &[TenantId]) -> Result<Keyring, Error> {
    Ok(match &config.store.sealing {
        Some(sealing) => Keyring::new(sealing, tenants).map_err(|error| error.within("store.sealing"))?,
        None => Keyring::default(),
    })
}

/// Tells whether a setting takes effect without a restart.
fn is_taken_on(path: &str, running: &Config, next: &Config) -> bool {
    if path.starts_with("http.tls.") {
        return running.http.tls.is_on() == next.http.tls.is_on();
    }
    if path.starts_with("admin.tls.") {
        return running.admin.tls.is_on() == next.admin.tls.is_on();
    }
    let is_webhook = path.strip_prefix("tenant[").and_then(|rest| rest.split_once("].")).is_some_and(|(_, option)| {
        // With another order of tenants the number says nothing, but then their ids are named.
        option == "webhook" || option.starts_with("webhook[")
    });
    if path == "admin.key_sha256" {
        return next.admin.key_sha256.is_some() || !running.admin.needs_key();
    }
    is_webhook || path.starts_with("store.sealing.") || path == "caller" || path.starts_with("caller[")
}
