//! Picks the queue adapter that the configuration names.

use serde::Deserialize;

use super::embedded;

/// `[queue]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which adapter.
    pub kind: Kind,
    /// `[queue.embedded]`.
    pub embedded: embedded::Config,
}

/// The queue adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A durable log in a local file.
    Embedded,
}
