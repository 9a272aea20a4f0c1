//! Consumer.

use std::time::Duration;

use serde::Deserialize;

/// `[consumer]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many events are applied at once.
    pub concurrency: usize,
    /// How long an applied event is remembered.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// How long a deletion keeps its customer from being cached again.
    #[serde(with = "humantime_serde")]
    pub tombstone_ttl: Duration,
    /// How long an event makes fetched profiles prove that they are new enough.
    #[serde(with = "humantime_serde")]
    pub settle_window: Duration,
}
