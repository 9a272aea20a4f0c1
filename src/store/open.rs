//! Picks the store adapter that the configuration names.

use std::time::Duration;

use serde::Deserialize;

use super::embedded;

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
