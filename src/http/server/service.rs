//! A listener's front: what every request goes through, before and after its route.
//!
//! # The order
//!
//! An id is taken or made → what is too much is shed → the route answers; a panic of its becomes a 500 that is counted
//! → the answer gets the id, Genesys' correlation id where there is one, and the headers for browsers.
//!
//! # Why it is no layer of the router
//!
//! Every layer costs every request a box for its future and a copy of all routes, and the router a few more. A lookup
//! is made of so little that these were a good part of it. So this goes around the router, and lookups past it: see
//! [`HttpService::with_lookups`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use http::header::{self, Entry};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tracing::field::Empty;

use crate::metrics::Metrics;
use crate::spans;

use crate::http::response::problem::{CORRELATION_ID, Dialect, Problem};
use crate::http::routes::profile::{self, Profiles};
use crate::http::server::guarded_body::Held;

/// Names a request, in its answer, in the log and in the audit.
pub(in crate::http) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a client.
const MAX_REQUEST_ID: usize = 128;

/// A listener's routes, and what every request goes through.
#[derive(Debug)]
pub struct HttpService {
    gate: Gate,
    routes: TowerToHyperService<Router>,
    lookups: Option<Arc<Profiles>>,
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

impl HttpService {
    /// Makes the front of some routes, with problems for unknown routes and methods.
    #[must_use]
    pub fn new(routes: Router, max_in_flight: usize, is_tls: bool, metrics: Arc<Metrics>) -> Self {
        let permits = Semaphore::new(max_in_flight);
        let uploads = Arc::new(Semaphore::new((max_in_flight / 2).max(1)));
        let routes = routes
            .fallback(async |request: Request| Problem::no_such_route().told_in(&Dialect::of(&request)))
            .method_not_allowed_fallback(async |request: Request| {
                Problem::method_not_allowed().told_in(&Dialect::of(&request))
            });
        let gate = Gate { permits, uploads, is_tls, metrics };
        Self { gate, routes: TowerToHyperService::new(routes), lookups: None }
    }

    /// Has lookups answered past the router. It knows their route as well, for every method but theirs.
    #[must_use]
    pub fn with_lookups(mut self, profiles: Option<Arc<Profiles>>) -> Self {
        self.lookups = profiles;
        self
    }

    /// Answers a request.
    pub(in crate::http) async fn answer(&self, mut request: Request) -> Response {
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
        let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default(), trace_id = Empty);
        let mut response = spans::begin(span, self.admit(request)).await;
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        if let Some(correlation) = correlation {
            headers.insert(CORRELATION_ID, correlation);
        }
        harden(headers, self.gate.is_tls);
        response
    }

    /// Sheds what is too much, and turns a panic into a 500 that is counted.
    async fn admit(&self, request: Request) -> Response {
        let gate = &self.gate;
        let dialect = Dialect::of(&request);
        let Ok(_permit) = gate.permits.try_acquire() else { return shed(&dialect) };
        let Some(request) = gate.bound_upload(request) else { return shed(&dialect) };
        // Nothing that the request shared is looked at after a panic but locks that cannot be poisoned.
        match AssertUnwindSafe(self.route(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_payload) => {
                // The panic hook has logged where; the payload may hold data and is not looked at.
                gate.metrics.panics.increment(1);
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an unexpected fault, it has been logged")
                    .told_in(&dialect)
            }
        }
    }

    async fn route(&self, request: Request) -> Response {
        if let Some(profiles) = &self.lookups
            && request.uri().path() == profile::PATH
            && matches!(*request.method(), Method::GET | Method::POST)
        {
            // In a box of its own, so that a connection that waits does not keep the room of a lookup.
            return Box::pin(profile::answer(profiles, request)).await;
        }
        match self.routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
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
