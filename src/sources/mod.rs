//! Sources: what this service receives events from by itself, without inbound HTTP.
//!
//! There is one kind, `notifications`. What arrives takes the way of a webhook's events: shape, publish, consumer.

mod notifications;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::domain::TenantId;
use crate::ingest::Ingest;
use crate::invalid::InvalidSetting;
use crate::lookup::Watch;
use crate::metrics::Metrics;
use crate::operate::replay::Replays;
use crate::shutdown::Shutdown;
use crate::upstream::notifications::Notifications;

use notifications::Watcher;

/// The most channels that a process can use: one of the twenty of an OAuth client is left for replacing the others.
const MAX_CHANNELS: usize = 19;

/// One `[[tenant.source]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What kind it is.
    pub kind: SourceKind,
    /// The most channels of this process, each for a thousand customers.
    pub channels: usize,
}

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The notifications of Genesys over WebSockets.
    Notifications,
}

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// Returns the first invalid option.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if (1..=MAX_CHANNELS).contains(&self.channels) {
            return Ok(());
        }
        let reason =
            "must be from 1 to 19: Genesys allows an OAuth client 20 channels, and one is needed to replace the others";
        Err(InvalidSetting::new("channels", reason))
    }
}

/// The source of one tenant.
#[derive(Debug)]
pub struct TenantSource<'a> {
    /// The tenant.
    pub tenant: TenantId,
    /// Its configuration.
    pub config: &'a Config,
    /// The notifications of its Genesys.
    pub notifications: Notifications,
    /// The most requests to its Genesys per minute.
    pub requests_per_minute: u32,
    /// How long a record of a customer that is not watched is served.
    pub unwatched_ttl: Duration,
}

/// The sources of all tenants.
#[derive(Debug, Default)]
pub struct Sources(HashMap<TenantId, Arc<Watcher>>);

impl Sources {
    /// Creates the sources; their tasks end at shutdown. They send nothing before a customer is to be watched. `replays`
    /// searches what they miss, one search at a time, and `audit` records that.
    #[must_use]
    pub fn start<'a>(
        sources: impl IntoIterator<Item = TenantSource<'a>>,
        ingest: &Arc<Ingest>,
        (replays, audit): (&Arc<Replays>, &Audit),
        clock: &SharedClock,
        metrics: &Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> Self {
        let start = |source: TenantSource<'a>| {
            let (tenant, ingest) = (source.tenant.clone(), Arc::clone(ingest));
            let searches = (Arc::clone(replays), audit.clone());
            (tenant, Watcher::start(source, ingest, searches, Arc::clone(clock), metrics, shutdown))
        };
        Self(sources.into_iter().map(start).collect())
    }

    /// Returns what watches the customers of a tenant.
    #[must_use]
    pub fn watch(&self, tenant: &TenantId) -> Option<Arc<dyn Watch>> {
        self.0.get(tenant).map(|watcher| Arc::clone(watcher) as Arc<dyn Watch>)
    }

    /// Updates the gauges; returns the tenants whose events are missed, since when, and why.
    #[must_use]
    pub fn refresh(&self) -> Vec<(TenantId, String)> {
        self.0.iter().filter_map(|(tenant, watcher)| Some((tenant.clone(), watcher.refresh()?))).collect()
    }
}
