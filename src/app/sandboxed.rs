//! The sandbox in this process, which simulates Genesys.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::http::server::config::{BindError, bind};
use crate::sandbox::{self, Sandbox};
use crate::shutdown::Shutdown;

/// Binds a plain listener on loopback for the events of the sandbox, if the public listener uses TLS: the sandbox does not
/// trust its certificate.
pub(super) fn bind_sandbox_webhook(config: &Config) -> Result<Option<TcpListener>, BindError> {
    if !(config.runs_sandbox() && config.http.tls.is_on()) {
        return Ok(None);
    }
    bind((Ipv4Addr::LOCALHOST, 0).into(), "sandbox.enabled").map(Some)
}

/// Starts the sandbox, if it is enabled, and sets its address as the upstream of the demo's tenant.
pub(super) async fn start_sandbox(
    config: &mut Config,
    public: SocketAddr,
    clock: &SharedClock,
    shutdown: &Shutdown,
) -> Result<Option<SocketAddr>, BindError> {
    if !config.runs_sandbox() {
        return Ok(None);
    }
    let options = sandbox::SandboxOptions {
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
