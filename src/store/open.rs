//! Picks the store adapter that the configuration names.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::SharedClock;
use crate::metrics::Metrics;

use super::embedded::{self, Embedded};
use super::metered::Metered;
use super::{Error, Inspect, Lifetimes, Store};

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which adapter.
    pub kind: Kind,
    /// The longest that one operation may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `[store.embedded]`.
    pub embedded: embedded::Config,
}

/// The store adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// In this process' memory.
    Embedded,
}

/// An open store, as the flows and as operators see it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// For the flows.
    pub store: Arc<dyn Store>,
    /// For operators and probes.
    pub inspect: Arc<dyn Inspect>,
}

/// Opens the configured store.
///
/// # Errors
///
/// The adapter cannot work with its configuration; the embedded one always can.
pub fn open(
    config: &Config,
    lifetimes: Lifetimes,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
) -> Result<Opened, Error> {
    match config.kind {
        Kind::Embedded => {
            let embedded = Embedded::new(&config.embedded, lifetimes, Arc::clone(clock));
            let store = Arc::new(Metered::new(embedded, Arc::clone(metrics)));
            Ok(Opened { store: Arc::clone(&store) as Arc<dyn Store>, inspect: store })
        }
    }
}
