//! One connection, from its handshake to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::metrics::ConnectionEnd;
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

use super::connection_state::Overdue;
use super::guarded_body::Held;
use super::io::Watched;
use super::limits::Limits;
use super::service::HttpService;
use super::slots::Place;

/// How long a connection that is closed politely may take to take note, and how often one that is draining is looked
/// at.
const FAREWELL: Duration = Duration::from_secs(1);

/// HTTP/2: how many streams a client may reset before they were looked at (CVE-2023-44487, rapid reset).
const MAX_PENDING_RESETS: usize = 20;

/// HTTP/2: how many streams we may have to reset because of what their client did.
const MAX_FAULTY_STREAMS: usize = 64;

/// HTTP/2: how much of a body may arrive before it is read, on one stream and on all of a connection's.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2: how much of an answer may wait for its client.
const MAX_SEND_BUFFER: usize = 256 << 10;

/// What serves the connections of one listener.
pub(super) struct Server {
    protocol: auto::Builder<Tracked>,
    front: Arc<HttpService>,
    limits: Limits,
    tls: Option<Reloadable<ServerConfig>>,
    shutdown: Shutdown,
}

/// Runs HTTP/2's streams as tasks that a drain waits for.
#[derive(Clone)]
struct Tracked(Shutdown);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Server {
    pub(super) fn new(
        front: HttpService,
        limits: Limits,
        tls: Option<Reloadable<ServerConfig>>,
        shutdown: Shutdown,
    ) -> Self {
        let mut protocol = auto::Builder::new(Tracked(shutdown.clone()));
        // The watch has the deadlines: it also knows the handshake, HTTP/2, and clients that do not read.
        protocol
            .http1()
            .header_read_timeout(None)
            .max_headers(limits.max_headers)
            .max_buf_size(limits.header_bytes() as usize);
        protocol
            .http2()
            .max_header_list_size(limits.header_bytes())
            .max_concurrent_streams(limits.max_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_FAULTY_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER);
        Self { protocol, front: Arc::new(front), limits, tls, shutdown }
    }

    /// Serves a connection to its end; returns why it ended.
    pub(super) async fn serve(&self, stream: TcpStream, place: Place) -> ConnectionEnd {
        let Some(tls) = &self.tls else { return self.converse(stream, place).await };
        let handshake = TlsAcceptor::from(tls.keep()).accept(stream);
        let outcome = tokio::select! {
            outcome = timeout(self.limits.handshake_timeout, handshake) => outcome,
            () = place.watch.evicted() => return ConnectionEnd::Evicted,
            () = self.shutdown.requested() => return ConnectionEnd::Closed,
        };
        match outcome {
            Ok(Ok(stream)) => self.converse(stream, place).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a tls handshake failed");
                ConnectionEnd::HandshakeFailed
            }
            Err(_elapsed) => ConnectionEnd::HandshakeTimeout,
        }
    }

    async fn converse<S>(&self, stream: S, place: Place) -> ConnectionEnd
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let watch = &place.watch;
        let exchange = service_fn(|request: Request<Incoming>| {
            let mut exchange = watch.begin(request.version());
            let request = request.map(|body| {
                if body.is_end_stream() { Body::empty() } else { Body::new(Held::new(body, Some(watch.upload()))) }
            });
            let front = Arc::clone(&self.front);
            async move {
                let response = front.answer(request).await;
                exchange.answer(response.status());
                Ok::<_, Infallible>(response.map(|body| Held::new(body, Some(exchange))))
            }
        });
        let io = TokioIo::new(Watched::new(stream, Arc::clone(watch)));
        let connection = self.protocol.serve_connection(io, exchange);
        tokio::pin!(connection);
        let (end, is_polite) = tokio::select! {
            served = connection.as_mut() => return end_of(&served),
            overdue = watch.overdue(&self.limits) => match overdue {
                Overdue::Header => (ConnectionEnd::HeaderTimeout, false),
                Overdue::Stalled => (ConnectionEnd::Stalled, false),
                Overdue::Idle => (ConnectionEnd::Idle, true),
            },
            // A request that came just now is answered before its connection makes room.
            () = watch.evicted() => (ConnectionEnd::Evicted, !watch.is_waiting()),
            () = self.shutdown.requested() => (ConnectionEnd::Closed, true),
        };
        if !is_polite {
            return end;
        }
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                _ended = connection.as_mut() => return end,
                () = sleep(FAREWELL) => {
                    if watch.is_waiting() {
                        return end;
                    }
                }
            }
        }
    }
}

fn end_of<E: std::fmt::Display>(served: &Result<(), E>) -> ConnectionEnd {
    match served {
        Ok(()) => ConnectionEnd::Closed,
        Err(error) => {
            tracing::debug!(%error, "a connection failed");
            ConnectionEnd::Failed
        }
    }
}
