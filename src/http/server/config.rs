//! The options of the listeners, and their sockets.
//!
//! All listeners are bound first, so that a port in use is an error before anything else has started.
//! [`crate::http::server`] describes how connections are served, [`crate::http::server::service`] how requests are.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::domain::Secret;
use crate::listen::listen;

use crate::http::server::limits::ConnectionLimits;
use crate::http::server::tls;

/// `[http]`: the public listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address of the listener.
    pub listen: SocketAddr,
    /// The maximum size of a request body.
    pub max_body: ByteSize,
    /// The maximum number of bytes of all request bodies in progress; more are refused with 503. See
    /// [`body_budget`](Self::body_budget).
    pub body_budget: ByteSize,
    /// The maximum number of concurrent requests; more are refused with 503.
    pub max_in_flight: usize,
    /// The maximum number of open streams of changes, shared by callers; more are refused with 503.
    pub max_change_streams: usize,
    /// The origins whose pages may call, each exactly as browsers send it.
    pub cors_origins: Vec<String>,
    /// The key that signs callers' tokens: base64 of 32 bytes or more.
    #[serde(default)]
    pub token_secret: Option<Secret>,
    /// The lifetime of a caller's token.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// `[http.tls]`.
    #[serde(default)]
    pub tls: tls::Config,
    /// `[http.limits]`, for both listeners.
    pub limits: ConnectionLimits,
}

impl Config {
    /// Returns how many streams of changes may be open: at most half of the connections, because a stream keeps its own.
    #[must_use]
    pub fn change_streams(&self) -> usize {
        self.max_change_streams.min(self.limits.max_connections / 2)
    }

    /// Returns how many bytes the bodies in progress may have: four of the largest at least, because a quarter is for those
    /// that may prove nothing.
    #[must_use]
    pub fn body_budget(&self) -> usize {
        let bytes = self.body_budget.as_u64().max(self.max_body.as_u64().saturating_mul(4));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// `[admin]`: the operators' listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// The address of the listener.
    pub listen: SocketAddr,
    /// The SHA-256 of the admin key, in hex; required unless the listener is bound to loopback.
    #[serde(default)]
    pub key_sha256: Option<String>,
    /// `[admin.tls]`.
    #[serde(default)]
    pub tls: tls::Config,
}

impl AdminConfig {
    /// Returns the digest of the admin key, if one is configured.
    #[must_use]
    pub fn key_digest(&self) -> Option<[u8; 32]> {
        let key = self.key_sha256.as_deref()?;
        let mut digest = [0; 32];
        // The configuration is validated. If it were not, no key has a digest of zeros.
        let _ = hex::decode_to_slice(key, &mut digest);
        Some(digest)
    }

    /// Returns whether a key must be configured: always, except on loopback.
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
    /// The option that sets it.
    pub option: &'static str,
    /// The error of the system.
    pub source: std::io::Error,
}

/// Binds a listener.
///
/// # Errors
///
/// The address is in use, or does not belong to this machine.
pub fn bind(addr: SocketAddr, option: &'static str) -> Result<TcpListener, BindError> {
    listen(addr).map_err(|source| BindError { addr, option, source })
}
