//! Listeners: bind, serve, drain.
//!
//! Binding comes first, for all listeners, so that a port in use is an error at start and nothing has
//! happened yet. Serving ends when shutdown is requested: no new connection is accepted, requests under
//! way are finished, and idle connections are closed.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::ListenerExt;
use bytesize::ByteSize;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::domain::Secret;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::error::{CORRELATION_ID, Dialect, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a client.
const MAX_REQUEST_ID: usize = 128;

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

/// Serves until shutdown is requested and what is under way has been answered.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let listener = listener.tap_io(|stream| {
        // An answer is one small write: waiting to fill a segment would only delay it.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps nagle's algorithm");
        }
    });
    let until = shutdown.clone();
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { until.requested().await }).await;
    if let Err(error) = served {
        tracing::error!(%error, "a listener failed");
    }
}

/// What every request of a listener goes through.
#[derive(Debug)]
struct Gate {
    /// One for each request that may be under way.
    permits: Semaphore,
    metrics: Arc<Metrics>,
}

/// Wraps a listener's routes in what every request goes through: shedding, ids, panics as 500, and
/// problems for unknown routes and methods.
pub fn wrap(routes: Router, max_in_flight: usize, metrics: Arc<Metrics>) -> Router {
    let gate = Arc::new(Gate { permits: Semaphore::new(max_in_flight), metrics });
    routes
        .fallback(async |request: Request| Problem::no_such_route().told_in(&Dialect::of(&request)))
        .method_not_allowed_fallback(async |request: Request| {
            Problem::method_not_allowed().told_in(&Dialect::of(&request))
        })
        .layer(middleware::from_fn_with_state(gate, pass))
}

/// Takes or makes the request's id, names it in the logs and in the answer, and passes Genesys'
/// correlation id through. One layer for everything: each costs every hit a boxed future and a copy of
/// the routes' service.
async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_plain(id)).cloned().unwrap_or_else(fresh_id);
    let mut correlation = request.headers().get(CORRELATION_ID).filter(|id| is_plain(id)).cloned();
    if Dialect::is_genesys(request.uri().path()) {
        // Genesys names every request, and so do the bodies of its errors.
        let correlation = correlation.get_or_insert_with(|| id.clone());
        request.headers_mut().insert(CORRELATION_ID, correlation.clone());
    }
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    let mut response = gate.admit(request, next).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(correlation) = correlation {
        response.headers_mut().insert(CORRELATION_ID, correlation);
    }
    response
}

impl Gate {
    /// Sheds what is too much, and turns a panic into a 500 that is counted.
    async fn admit(&self, request: Request, next: Next) -> Response {
        let dialect = Dialect::of(&request);
        let Ok(_permit) = self.permits.try_acquire() else {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shed", "too many requests are under way");
            return problem.retry_after(Duration::from_secs(1)).told_in(&dialect);
        };
        // Nothing that the request shared is looked at after a panic but locks that cannot be poisoned.
        match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_payload) => {
                // The panic hook has logged where; the payload may hold data and is not looked at.
                self.metrics.panics.increment(1);
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an unexpected fault, it has been logged")
                    .told_in(&dialect)
            }
        }
    }
}

fn is_plain(id: &HeaderValue) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

fn fresh_id() -> HeaderValue {
    // A hyphenated UUID is a valid header value.
    HeaderValue::try_from(uuid::Uuid::now_v7().to_string()).unwrap_or_else(|_| HeaderValue::from_static("-"))
}
