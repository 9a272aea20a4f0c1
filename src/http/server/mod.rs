//! A listener: accepts connections and limits what slow clients can occupy.
//!
//! # What it promises
//!
//! `accept` never waits for what a client sends: each connection is its own task with deadlines (`connection_state`) for the
//! handshake, for a slow head or body, and for a client that does not read its answer. The number of open connections is
//! limited. When all slots are taken, the connections that have waited longest are evicted (`slots`), so that active
//! clients are always served.
//!
//! # On shutdown
//!
//! No new connection is accepted, requests in progress are answered, and waiting connections are closed.

mod answer_body;
pub mod config;
mod connection;
mod connection_state;
pub mod cors;
mod guarded_body;
mod io;
pub mod limits;
pub mod service;
mod slots;
pub mod tls;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::metrics::{ConnectionEnd, Listener, Metrics};
use crate::reload::Reloadable;
use crate::sampled::Sampled;
use crate::shutdown::Shutdown;

use crate::http::server::service::HttpService;

use connection::Server;
use limits::ConnectionLimits;
use slots::ConnectionSlots;

/// The pause after `accept` failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The address of the peer of a connection, as an extension of its requests other than `GET`.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// The options of a listener.
#[derive(Debug)]
pub struct ServerOptions {
    /// The listener, for the metrics.
    pub listener: Listener,
    /// The maximum number of open connections.
    pub connections: usize,
    /// The limits of connections.
    pub limits: ConnectionLimits,
    /// The TLS configuration; `None`: no TLS.
    pub tls: Option<Reloadable<ServerConfig>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Serves until shutdown is requested. The connections are tasks of `shutdown`, which waits for them.
pub async fn serve(listener: TcpListener, service: HttpService, options: ServerOptions, shutdown: Shutdown) {
    let ServerOptions { listener: which, connections, limits, tls, metrics } = options;
    let slots = ConnectionSlots::new(connections, metrics.connections.with(which).clone());
    let ended = move |end: ConnectionEnd| metrics.connections_ended.with(which).with(end).increment(1);
    let server = Arc::new(Server::new(service, limits, tls, shutdown.clone()));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            accepted = slots.accept(&listener) => accepted,
        };
        match accepted {
            Ok((stream, socket)) => match slots.take(socket) {
                Some(slot) => {
                    prepare(&stream);
                    let (server, ended) = (Arc::clone(&server), ended.clone());
                    shutdown.spawn(async move { ended(server.serve(stream, slot).await) });
                }
                None => ended(ConnectionEnd::Refused),
            },
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                static LINE: Sampled = Sampled::new();
                if let Some(suppressed) = LINE.due() {
                    tracing::warn!(%error, suppressed, "cannot accept a connection, evicting waiting connections");
                }
                slots.evict_waiting();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn prepare(stream: &TcpStream) {
    // An answer is one small write: Nagle's algorithm would only delay it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot disable nagle's algorithm on a connection");
    }
}

/// Returns whether `accept` failed because of the connection itself, which is closed already.
const fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}
