//! A listener: accepts connections, and keeps slow clients from taking what others need.
//!
//! # What it promises
//!
//! Accepting waits for nobody: a handshake, a head that trickles in, a body, a client that does not read its answer
//! are each the matter of their own task, which ends at a deadline (`watch`). Open connections are bounded, and
//! when all places are taken those that wait longest for nothing make room (`places`), so that a client that
//! does what it came for is served whatever others do.
//!
//! # On shutdown
//!
//! No new connection is accepted, requests under way are answered, and connections that wait are closed.

pub mod config;
mod connection;
mod connection_state;
mod guarded_body;
mod io;
pub mod limits;
pub mod service;
mod slots;
pub mod tls;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::metrics::{ConnectionEnd, Listener, Metrics};
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

use crate::http::server::service::HttpService;

use connection::Server;
use limits::Limits;
use slots::ConnectionSlots;

/// The pause after an accept that failed for want of files or memory.
const BREATH: Duration = Duration::from_millis(20);

/// What a listener is, beside its address and its front.
#[derive(Debug)]
pub struct Options {
    /// Which one.
    pub listener: Listener,
    /// How many connections it may have open.
    pub connections: usize,
    /// What one client may take.
    pub limits: Limits,
    /// How it speaks TLS; `None`: it is plain.
    pub tls: Option<Reloadable<ServerConfig>>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

/// Serves until shutdown is requested; the connections are tasks of `shutdown`, which ends when they have.
pub async fn serve(listener: TcpListener, front: HttpService, options: Options, shutdown: Shutdown) {
    let Options { listener: which, connections, limits, tls, metrics } = options;
    let places = ConnectionSlots::new(connections, metrics.connections.with(which).clone());
    let ended = move |end: ConnectionEnd| metrics.connections_ended.with(which).with(end).increment(1);
    let server = Arc::new(Server::new(front, limits, tls, shutdown.clone()));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match places.take() {
                Some(place) => {
                    prepare(&stream);
                    let (server, ended) = (Arc::clone(&server), ended.clone());
                    shutdown.spawn(async move { ended(server.serve(stream, place).await) });
                }
                None => ended(ConnectionEnd::Refused),
            },
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted, waiting ones make room");
                places.make_room();
                sleep(BREATH).await;
            }
        }
    }
}

fn prepare(stream: &TcpStream) {
    // An answer is one small write: waiting to fill a segment would only delay it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps nagle's algorithm");
    }
}

/// Tells whether an accept failed because of the connection itself, which is gone then.
const fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}
