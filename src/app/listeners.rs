//! The listeners: how they are bound to their services.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use rustls::ServerConfig;
use tokio::net::TcpListener;

use crate::http::server::service::HttpService;
use crate::http::server::{self, limits};
use crate::metrics::{Listener, Metrics};
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

/// How many connections the admin listener may have open; operators, scrapers and probes need few.
const ADMIN_CONNECTIONS: usize = 512;

/// What all listeners have in common.
pub(super) struct Listeners<'a> {
    pub(super) config: &'a server::config::Config,
    pub(super) metrics: &'a Arc<Metrics>,
}

impl Listeners<'_> {
    /// Creates the service of some routes.
    pub(super) fn service(&self, routes: Router, is_tls: bool) -> HttpService {
        HttpService::new(routes, self.config.max_in_flight, is_tls, Arc::clone(self.metrics))
    }

    /// Serves a listener until shutdown.
    pub(super) fn serve(
        &self,
        socket: TcpListener,
        listener: Listener,
        service: HttpService,
        tls: Option<Reloadable<ServerConfig>>,
        shutdown: &Shutdown,
    ) {
        let limits = &self.config.limits;
        let wanted = match listener {
            Listener::Public => limits.max_connections,
            Listener::Admin => limits.max_connections.min(ADMIN_CONNECTIONS),
        };
        let options = server::ServerOptions {
            listener,
            connections: limits::connections_that_fit(wanted),
            limits: limits.clone(),
            tls,
            metrics: Arc::clone(self.metrics),
        };
        shutdown.spawn(server::serve(socket, service, options, shutdown.clone()));
    }
}

/// Returns the address of a bound listener.
pub(super) fn addr(listener: &TcpListener) -> SocketAddr {
    // Only an unbound socket has no address.
    listener.local_addr().expect("a bound listener has an address")
}
