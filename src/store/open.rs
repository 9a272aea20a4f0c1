//! Opens the store that the configuration selects.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::reload::Reloadable;
use crate::roles::Roles;
use crate::shutdown::Shutdown;

use super::changes::ChangeFeed;
use super::embedded::{self, Embedded};
use super::memcached::Memcached;
use super::memcached::config::Config as MemcachedConfig;
use super::metered::Metered;
use super::redis::config::Config as RedisConfig;
use super::redis::{Redis, change_listener};
use super::sealed::Sealed;
use super::sealed::keyring::{self, Keyring};
use super::sealed::macs::Macs;
use super::{Error, Inspect, Lifetimes, Store};

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The adapter.
    pub kind: StoreKind,
    /// The longest time of one operation.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `[store.embedded]`.
    pub embedded: embedded::Config,
    /// `[store.redis]`.
    pub redis: RedisConfig,
    /// `[store.memcached]`.
    pub memcached: MemcachedConfig,
    /// `[store.sealing]`; without it records are stored in clear.
    pub sealing: Option<keyring::Config>,
}

/// The store adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// The memory of this process.
    Embedded,
    /// Redis: one server, a cluster, or a master that sentinels name.
    Redis,
    /// Memcached 1.6: one server, or several that share the customers.
    Memcached,
}

/// An open store, for the flows and for operators.
#[derive(Clone, Debug)]
pub struct OpenStore {
    /// For the flows.
    pub store: Arc<dyn Store>,
    /// For operators and probes.
    pub inspect: Arc<dyn Inspect>,
    /// What was applied, by any process.
    pub changes: ChangeFeed,
}

/// Opens the configured store. With Redis and Memcached, and if the process uses it, it waits for the first connection; the
/// caller limits the time. Only a process that looks up hears what others applied.
///
/// # Errors
///
/// The configuration of the adapter is invalid; that of the embedded store never is.
pub async fn open(
    config: &Config,
    keyring: &Reloadable<Keyring>,
    lifetimes: Lifetimes,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
    roles: Roles,
) -> Result<OpenStore, Error> {
    let clock = Arc::clone(clock);
    match config.kind {
        StoreKind::Embedded => {
            let embedded = Embedded::new(&config.embedded, lifetimes, clock);
            let changes = embedded.changes.clone();
            Ok(decorated(embedded, changes, keyring, metrics))
        }
        StoreKind::Redis => {
            let macs = Macs::new(keyring.clone(), Arc::clone(metrics));
            let redis = Redis::open(&config.redis, config.timeout, lifetimes, clock, shutdown)?.with_macs(macs);
            if roles.use_the_store() {
                redis.connected().await;
            }
            let changes = ChangeFeed::new(false);
            if roles.lookup {
                change_listener::listen(&config.redis, &changes, shutdown)?;
            }
            Ok(decorated(redis, changes, keyring, metrics))
        }
        StoreKind::Memcached => {
            let macs = Macs::new(keyring.clone(), Arc::clone(metrics));
            let memcached =
                Memcached::open(&config.memcached, config.timeout, lifetimes, clock, shutdown)?.with_macs(macs);
            if roles.use_the_store() {
                memcached.connected().await;
            }
            let changes = ChangeFeed::new(false);
            if roles.lookup {
                memcached.follow_changes(&changes, shutdown);
            }
            Ok(decorated(memcached, changes, keyring, metrics))
        }
    }
}

fn decorated<S>(store: S, changes: ChangeFeed, keyring: &Reloadable<Keyring>, metrics: &Arc<Metrics>) -> OpenStore
where
    S: Store + Inspect + 'static,
{
    let sealed = Sealed::new(store, keyring.clone(), Arc::clone(metrics));
    let store = Arc::new(Metered::new(sealed, Arc::clone(metrics)));
    OpenStore { store: Arc::clone(&store) as Arc<dyn Store>, inspect: store, changes }
}
