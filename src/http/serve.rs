//! The listeners' settings, and what every request of theirs goes through.
//!
//! Binding comes first, for all listeners, so that a port in use is an error at start and nothing has
//! happened yet. How connections are served is told in [`super::listener`].

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytesize::ByteSize;
use futures_util::FutureExt;
use http::header::{self, Entry};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::domain::Secret;
use crate::metrics::Metrics;

use super::error::{CORRELATION_ID, Dialect, Problem};
use super::held::Held;
use super::listener::limits::Limits;
use super::tls;

/// Names a request, in its answer, in the log and in the audit.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

/// What every request of a listener goes through.
#[derive(Debug)]
struct Gate {
    /// One for each request that may be under way.
    permits: Semaphore,
    /// One for each request that may be under way before all of its body has come: clients that send slowly must not
    /// take what those need that have sent everything.
    uploads: Arc<Semaphore>,
    is_tls: bool,
    metrics: Arc<Metrics>,
}

/// Wraps a listener's routes in what every request goes through: shedding, ids, panics as 500, headers for browsers, and
/// problems for unknown routes and methods.
pub fn wrap(routes: Router, max_in_flight: usize, is_tls: bool, metrics: Arc<Metrics>) -> Router {
    let permits = Semaphore::new(max_in_flight);
    let uploads = Arc::new(Semaphore::new((max_in_flight / 2).max(1)));
    let gate = Arc::new(Gate { permits, uploads, is_tls, metrics });
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
    let id = request.headers().get(REQUEST_ID).filter(|id| is_plain(id)).cloned();
    let id = id.unwrap_or_else(|| {
        let id = fresh_id();
        request.headers_mut().insert(REQUEST_ID, id.clone());
        id
    });
    let mut correlation = request.headers().get(CORRELATION_ID).filter(|id| is_plain(id)).cloned();
    if Dialect::is_genesys(request.uri().path()) {
        // Genesys names every request, and so do the bodies of its errors.
        let correlation = correlation.get_or_insert_with(|| id.clone());
        request.headers_mut().insert(CORRELATION_ID, correlation.clone());
    }
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    let mut response = gate.admit(request, next).instrument(span).await;
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if let Some(correlation) = correlation {
        headers.insert(CORRELATION_ID, correlation);
    }
    harden(headers, gate.is_tls);
    response
}

/// Tells browsers, and what caches for them, to do nothing clever with an answer (OWASP, REST security cheat sheet).
fn harden(headers: &mut HeaderMap, is_tls: bool) {
    let constant = HeaderValue::from_static;
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, constant("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, constant("DENY"));
    if let Entry::Vacant(policy) = headers.entry(header::CONTENT_SECURITY_POLICY) {
        policy.insert(constant("default-src 'none'; frame-ancestors 'none'"));
    }
    if let Entry::Vacant(caching) = headers.entry(header::CACHE_CONTROL) {
        caching.insert(constant("no-store"));
    }
    if is_tls {
        // RFC 6797 section 7.2: over a plain link it must not be sent.
        headers.insert(header::STRICT_TRANSPORT_SECURITY, constant("max-age=31536000"));
    }
}

impl Gate {
    /// Sheds what is too much, and turns a panic into a 500 that is counted.
    async fn admit(&self, request: Request, next: Next) -> Response {
        let dialect = Dialect::of(&request);
        let Ok(_permit) = self.permits.try_acquire() else { return shed(&dialect) };
        let Some(request) = self.bound_upload(request) else { return shed(&dialect) };
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

    /// Takes a permit for a body that is still to come, until it has; `None` if there is none.
    fn bound_upload(&self, request: Request) -> Option<Request> {
        if request.body().is_end_stream() {
            return Some(request);
        }
        let permit = Arc::clone(&self.uploads).try_acquire_owned().ok()?;
        Some(request.map(|body| Body::new(Held::new(body, Some(permit)))))
    }
}

fn shed(dialect: &Dialect) -> Response {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shed", "too many requests are under way");
    problem.retry_after(Duration::from_secs(1)).told_in(dialect)
}

fn is_plain(id: &HeaderValue) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// Draws an id (a UUID of version 4, RFC 9562) from the thread's own generator: one of version 7 would take a
/// system call and a lock for every request.
fn fresh_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    // A hyphenated UUID is a valid header value.
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).unwrap_or_else(|_| HeaderValue::from_static("-"))
}
