//! The sandbox inside this process: Genesys for whoever tries things.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::http::server::config::{BindError, bind};
use crate::sandbox::{self, Sandbox};
use crate::shutdown::Shutdown;

/// Opens a plain door on loopback for the events of this process' own sandbox where the public one speaks TLS: the
/// sandbox has no reason to trust that certificate.
pub(super) async fn open_backstage(config: &Config) -> Result<Option<TcpListener>, BindError> {
    if !(config.runs_sandbox() && config.http.tls.is_on()) {
        return Ok(None);
    }
    bind((Ipv4Addr::LOCALHOST, 0).into(), "sandbox.enabled").await.map(Some)
}

/// Starts the sandbox, if it is wanted, and points the demo tenant at where it really listens.
pub(super) async fn start_sandbox(
    config: &mut Config,
    public: SocketAddr,
    clock: &SharedClock,
    shutdown: &Shutdown,
) -> Result<Option<SocketAddr>, BindError> {
    if !config.runs_sandbox() {
        return Ok(None);
    }
    let options = sandbox::Options {
        listen: config.sandbox.listen.into(),
        customers: config.sandbox.customers,
        latency: config.sandbox.latency,
        webhook: config.sandbox_webhook(public),
    };
    let sandbox = Sandbox::start(options, Arc::clone(clock), shutdown.clone()).await.map_err(|source| BindError {
        addr: config.sandbox.listen,
        option: "sandbox.listen",
        source,
    })?;
    config.point_demo_at(sandbox.addr);
    Ok(Some(sandbox.addr))
}
