//! Listeners: bind, serve, drain.

use std::net::SocketAddr;

use bytesize::ByteSize;
use serde::Deserialize;

/// `[http]`: the public listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The largest request body.
    pub max_body: ByteSize,
    /// How many requests may be under way at once; more are shed with 503.
    pub max_in_flight: usize,
}

/// `[admin]`: the operators' listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// SHA-256 of the operators' key, in hex; needed unless it listens on loopback only.
    #[serde(default)]
    pub key_sha256: Option<String>,
}
