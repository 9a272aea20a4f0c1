//! One connection, from its TLS handshake to its end.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request};
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

use super::PeerAddress;
use super::answer_body::{AnswerBody, ReadWatch};
use super::connection_state::{ConnectionState, TimeoutKind};
use super::guarded_body::GuardedBody;
use super::io::MonitoredStream;
use super::limits::ConnectionLimits;
use super::service::HttpService;
use super::slots::ConnectionSlot;

/// The time between a graceful close and the next check whether the connection waits only for its client.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// HTTP/2: the maximum number of streams that a client may reset before they are handled (CVE-2023-44487, rapid reset).
const MAX_PENDING_RESETS: usize = 20;

/// HTTP/2: the maximum number of streams that we reset because of protocol errors of the client.
const MAX_FAULTY_STREAMS: usize = 64;

/// HTTP/2: the number of body bytes that may arrive before they are read, per stream and per connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2: the number of answer bytes that may wait for the client.
const MAX_SEND_BUFFER: usize = 256 << 10;

/// Serves the connections of one listener.
pub(super) struct Server {
    http1: auto::Builder<TaskExecutor>,
    http2: auto::Builder<TaskExecutor>,
    http_service: Arc<HttpService>,
    limits: ConnectionLimits,
    tls: Option<Reloadable<ServerConfig>>,
    shutdown: Shutdown,
}

/// Runs HTTP/2 streams as tasks that a shutdown waits for. A stream whose client does not read is reset after `timeout`.
#[derive(Clone)]
struct TaskExecutor {
    shutdown: Shutdown,
    timeout: Duration,
}

impl<F> Executor<F> for TaskExecutor
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.shutdown.spawn(ReadWatch::watch(task, self.timeout));
    }
}

impl Server {
    pub(super) fn new(
        http_service: HttpService,
        limits: ConnectionLimits,
        tls: Option<Reloadable<ServerConfig>>,
        shutdown: Shutdown,
    ) -> Self {
        let mut protocol =
            auto::Builder::new(TaskExecutor { shutdown: shutdown.clone(), timeout: limits.idle_timeout });
        // `ConnectionState` has the deadlines: they also cover HTTP/2 and clients that do not read.
        protocol
            .http1()
            .header_read_timeout(None)
            // A client may close its side after the request, and still reads the answer.
            .half_close(true)
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
        let (http1, http2) = (protocol.clone().http1_only(), protocol.http2_only());
        Self { http1, http2, http_service: Arc::new(http_service), limits, tls, shutdown }
    }

    /// Serves a connection until it ends; returns the reason.
    pub(super) async fn serve(&self, stream: TcpStream, slot: ConnectionSlot) -> ConnectionEnd {
        let peer = stream.peer_addr().ok().map(|peer| PeerAddress(peer.ip()));
        let Some(tls) = &self.tls else { return self.serve_http(stream, peer, slot).await };
        let handshake = TlsAcceptor::from(tls.keep()).accept(stream);
        let outcome = tokio::select! {
            outcome = timeout(self.limits.handshake_timeout, handshake) => outcome,
            () = slot.state.evicted() => return ConnectionEnd::Evicted,
            () = self.shutdown.requested() => return ConnectionEnd::Closed,
        };
        match outcome {
            // Boxed, so that a connection without TLS stays small.
            Ok(Ok(stream)) => Box::pin(self.serve_http(stream, peer, slot)).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "tls handshake failed");
                ConnectionEnd::HandshakeFailed
            }
            Err(_elapsed) => ConnectionEnd::HandshakeTimeout,
        }
    }

    /// Waits for the first bytes of a connection, and returns how to serve it.
    async fn protocol_of<S: AsyncRead + Unpin>(
        &self,
        stream: &mut MonitoredStream<S>,
        state: &ConnectionState,
    ) -> Result<&auto::Builder<TaskExecutor>, ConnectionEnd> {
        tokio::select! {
            is_http2 = stream.starts_http2() => match is_http2 {
                Ok(true) => Ok(&self.http2),
                Ok(false) => Ok(&self.http1),
                Err(error) => Err(end_of(&Err(error))),
            },
            (end, _is_graceful) = self.interrupted(state) => Err(end),
        }
    }

    /// Waits until the connection must end; returns the reason, and whether its requests are answered before.
    async fn interrupted(&self, state: &ConnectionState) -> (ConnectionEnd, bool) {
        tokio::select! {
            timed_out = state.timed_out(&self.limits) => match timed_out {
                TimeoutKind::Header => (ConnectionEnd::HeaderTimeout, false),
                TimeoutKind::Stalled => (ConnectionEnd::Stalled, false),
                TimeoutKind::Idle => (ConnectionEnd::Idle, true),
            },
            // A request that arrived just now is answered before its connection closes.
            () = state.evicted() => (ConnectionEnd::Evicted, !state.is_waiting()),
            () = self.shutdown.requested() => (ConnectionEnd::Closed, true),
        }
    }

    async fn serve_http<S>(&self, stream: S, peer: Option<PeerAddress>, slot: ConnectionSlot) -> ConnectionEnd
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let state = &slot.state;
        let mut stream = MonitoredStream::new(stream, Arc::clone(state));
        let protocol = match self.protocol_of(&mut stream, state).await {
            Ok(protocol) => protocol,
            Err(end) => return end,
        };
        let service = service_fn(|request: Request<Incoming>| {
            let mut request_guard = state.begin(request.version());
            let mut request = request.map(|body| {
                if body.is_end_stream() { Body::empty() } else { Body::new(GuardedBody::new(body, state.upload())) }
            });
            // An extension costs allocations, which hits do not need.
            if request.method() != Method::GET
                && let Some(peer) = peer
            {
                request.extensions_mut().insert(peer);
            }
            let http_service = Arc::clone(&self.http_service);
            async move {
                let response = http_service.answer(request).await;
                request_guard.answer(response.status());
                Ok::<_, Infallible>(response.map(|body| AnswerBody::new(body, request_guard)))
            }
        });
        let connection = protocol.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // A set, because it polls its future only when that was woken: otherwise each part of each request would take the
        // locks of what may interrupt it, and that of the shutdown is the same for all connections.
        let mut interrupted: FuturesUnordered<_> = std::iter::once(self.interrupted(state)).collect();
        let (end, is_graceful) = tokio::select! {
            biased;
            served = connection.as_mut() => return end_of(&served),
            Some(interruption) = interrupted.next() => interruption,
        };
        if !is_graceful {
            return end;
        }
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                _ended = connection.as_mut() => return end,
                () = sleep(CLOSE_GRACE) => {
                    if state.is_waiting() {
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
            tracing::debug!(%error, "connection failed");
            ConnectionEnd::Failed
        }
    }
}
