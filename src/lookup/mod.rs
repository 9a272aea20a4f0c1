//! Lookup.

use std::time::Duration;

use serde::Deserialize;

/// `[lookup]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long a profile is fresh.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// The share of `ttl` that is cut off at random, so that entries do not expire together: 0 to 0.5.
    pub ttl_jitter: f64,
    /// How much longer a profile may be served while Genesys is failing.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long "no such customer" is kept.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// How long a profile is kept, at least, that may be older than what events announced.
    #[serde(with = "humantime_serde")]
    pub unsettled_ttl: Duration,
    /// How long a fetcher may keep others waiting; above `upstream.timeout`.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// How long a lookup that has something stale waits for something fresh.
    #[serde(with = "humantime_serde")]
    pub soft_timeout: Duration,
    /// When a lookup gives up with 503.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}
