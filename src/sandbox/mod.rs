//! A small real Genesys on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

/// `[sandbox]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether it runs inside `profile-edge run`; absent: only while no `[[tenant]]` is configured.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How many invented customers it starts with.
    pub customers: u32,
    /// How long each answer of its API takes.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
}
