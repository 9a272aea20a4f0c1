//! The listeners' settings, and their sockets.
//!
//! Binding comes first, for all listeners, so that a port in use is an error at start and nothing has
//! happened yet. How connections are served is told in [`crate::http::server`], what every request goes through in
//! [`crate::http::server::service`].

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::domain::Secret;

use crate::http::server::limits::Limits;
use crate::http::server::tls;

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
    /// What callers' tokens are signed with: base64 of 32 bytes or more.
    #[serde(default)]
    pub token_secret: Option<Secret>,
    /// How long a caller's token is valid.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// `[http.tls]`.
    #[serde(default)]
    pub tls: tls::Config,
    /// `[http.limits]`, of both listeners.
    pub limits: Limits,
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
    /// `[admin.tls]`.
    #[serde(default)]
    pub tls: tls::Config,
}

impl AdminConfig {
    /// Returns the digest of the operators' key, if one is configured.
    #[must_use]
    pub fn key_digest(&self) -> Option<[u8; 32]> {
        let key = self.key_sha256.as_deref()?;
        let mut digest = [0; 32];
        // Validated with the configuration; were it not, all zeros is no key's digest.
        let _ = hex::decode_to_slice(key, &mut digest);
        Some(digest)
    }

    /// Tells whether operators must show the key: not on loopback.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        !self.listen.ip().is_loopback()
    }
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({option}): {source}")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The option that names it.
    pub option: &'static str,
    /// What the system said.
    pub source: std::io::Error,
}

/// Binds a listener.
///
/// # Errors
///
/// The address is in use, or not one of this machine's.
pub async fn bind(addr: SocketAddr, option: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, option, source })
}
