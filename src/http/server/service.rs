//! The handling that all requests of a listener have in common, before and after the route.
//!
//! # The order
//!
//! The request gets an id → one without a valid `Host` is refused → excess load is refused → the route answers; a panic
//! becomes a counted 500 → the answer gets the id, Genesys' correlation id if there is one, and the security headers.
//!
//! # Why it is not a layer of the router
//!
//! Each layer costs every request a boxed future and a copy of all routes, and the router adds more. For a cache hit these
//! are a considerable part of the work. So this wraps the router, and lookups bypass it: see
//! [`HttpService::with_direct_route`].

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::Either;
use http::header::{self, Entry};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::metrics::Metrics;
use crate::request_context::RequestContext;

use crate::http::response::dialect::Dialect;
use crate::http::response::headers::{CORRELATION_ID, REQUEST_ID};
use crate::http::response::problem::Problem;
use crate::http::server::cors::AllowedOrigins;
use crate::http::server::guarded_body::GuardedBody;

/// The maximum length of a client's request id, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// The maximum length of one without a letter.
const LONGEST_NUMBER: usize = 6;

/// The answer of a [`DirectRoute`].
pub type ResponseFuture<'a> = Pin<Box<dyn Future<Output = Response> + Send + 'a>>;

/// A route that bypasses the router.
pub trait DirectRoute: fmt::Debug + Send + Sync {
    /// Returns whether this route answers a request.
    fn accepts(&self, request: &Request) -> bool;

    /// Answers a request that it accepts.
    fn answer(&self, request: Request) -> ResponseFuture<'_>;
}

/// The routes of a listener, with the common handling.
#[derive(Debug)]
pub struct HttpService {
    load: LoadLimit,
    routes: TowerToHyperService<Router>,
    direct: Option<Arc<dyn DirectRoute>>,
    origins: AllowedOrigins,
    is_tls: bool,
    metrics: Arc<Metrics>,
}

/// Limits the number of concurrent requests.
#[derive(Debug)]
struct LoadLimit {
    /// One permit for each concurrent request.
    permits: Semaphore,
    /// One permit for each request whose body has not arrived completely: slow clients must not take all permits.
    uploads: Arc<Semaphore>,
}

impl HttpService {
    /// Creates the service of some routes; unknown routes and methods are answered with problems.
    #[must_use]
    pub fn new(routes: Router, max_in_flight: usize, is_tls: bool, metrics: Arc<Metrics>) -> Self {
        let permits = Semaphore::new(max_in_flight);
        let uploads = Arc::new(Semaphore::new((max_in_flight / 2).max(1)));
        let routes = routes
            .fallback(async |request: Request| Dialect::of(&request).render(Problem::no_such_route()))
            .method_not_allowed_fallback(async |request: Request| {
                Dialect::of(&request).render(Problem::method_not_allowed())
            });
        let load = LoadLimit { permits, uploads };
        Self {
            load,
            routes: TowerToHyperService::new(routes),
            direct: None,
            origins: AllowedOrigins::default(),
            is_tls,
            metrics,
        }
    }

    /// Lets pages of these origins call.
    #[must_use]
    pub fn with_origins(mut self, origins: AllowedOrigins) -> Self {
        self.origins = origins;
        self
    }

    /// Adds a route that bypasses the router. The router needs it as well, for the requests that it does not accept.
    #[must_use]
    pub fn with_direct_route(mut self, route: Option<Arc<dyn DirectRoute>>) -> Self {
        self.direct = route;
        self
    }

    /// Answers a request.
    pub(in crate::http) async fn answer(&self, mut request: Request) -> Response {
        let id = request.headers().get(REQUEST_ID).filter(|id| is_showable(id)).cloned();
        let id = id.unwrap_or_else(|| {
            let id = fresh_id();
            request.headers_mut().insert(REQUEST_ID, id.clone());
            id
        });
        let mut correlation = request.headers().get(CORRELATION_ID).filter(|id| is_plain(id)).cloned();
        if Dialect::is_genesys(request.uri().path()) {
            // Genesys gives every request a correlation id, and repeats it in the bodies of its errors.
            let correlation = correlation.get_or_insert_with(|| id.clone());
            request.headers_mut().insert(CORRELATION_ID, correlation.clone());
        }
        let cors = self.origins.judge(request.headers());
        let dialect = Dialect::of(&request);
        let answer = match cors.preflight(&request) {
            Some(answer) => answer,
            None => match self.admit(request) {
                Ok((request, _permit)) => {
                    // After a panic, only locks that cannot be poisoned are shared with other requests.
                    let answering = AssertUnwindSafe(self.route(request)).catch_unwind();
                    let answer = RequestContext::new(id.clone()).scope(answering).await;
                    answer.map_err(|_payload| self.panicked())
                }
                Err(problem) => Err(problem),
            },
        };
        let mut response = answer.unwrap_or_else(|problem| dialect.render(problem));
        let headers = response.headers_mut();
        cors.write_headers(headers);
        headers.insert(REQUEST_ID, id);
        if let Some(correlation) = correlation {
            headers.insert(CORRELATION_ID, correlation);
        }
        add_security_headers(headers, self.is_tls);
        response
    }

    /// Refuses a request without a valid `Host`, and excess load.
    fn admit(&self, request: Request) -> Result<(Request, SemaphorePermit<'_>), Problem> {
        if !has_valid_host(&request) {
            return Err(Problem::bad_field("Host", "must be given once, and be a host"));
        }
        let permit = self.load.permits.try_acquire().map_err(|_| shed())?;
        Ok((self.load.limit_upload(request).ok_or_else(shed)?, permit))
    }

    fn route(&self, request: Request) -> impl Future<Output = Response> {
        match &self.direct {
            // The boxed future exists only during the request, so that a waiting connection stays small.
            Some(direct) if direct.accepts(&request) => Either::Left(direct.answer(request)),
            Some(_) | None => Either::Right(self.routes.call(request).map(|Ok(response)| response)),
        }
    }

    fn panicked(&self) -> Problem {
        // The panic hook has logged the location; the payload may contain data and is not logged.
        self.metrics.panics.increment(1);
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an unexpected error, see the log")
    }
}

/// Adds the security headers for browsers and their caches (OWASP, REST security cheat sheet).
fn add_security_headers(headers: &mut HeaderMap, is_tls: bool) {
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
        // Must not be sent without TLS (RFC 6797 section 7.2).
        headers.insert(header::STRICT_TRANSPORT_SECURITY, constant("max-age=31536000"));
    }
}

impl LoadLimit {
    /// Takes an upload permit until the body has arrived; `None` if there is none.
    fn limit_upload(&self, request: Request) -> Option<Request> {
        if request.body().is_end_stream() {
            return Some(request);
        }
        let permit = Arc::clone(&self.uploads).try_acquire_owned().ok()?;
        Some(request.map(|body| Body::new(GuardedBody::new(body, permit))))
    }
}

fn shed() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shed", "too many requests in progress")
        .retry_after(Duration::from_secs(1))
}

/// Returns whether a request has the `Host` that RFC 9112 section 3.2 requires: at most one, and in HTTP/1.1 exactly one.
fn has_valid_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let is_valid = |host: &HeaderValue| {
        host.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b))
    };
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => is_valid(host),
        (Some(_), Some(_)) => false,
    }
}

fn is_plain(id: &HeaderValue) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// Returns whether a request id may be shown in logs and audit records. Anybody can choose it, and digits alone may be a phone
/// number, so a long one needs a letter.
fn is_showable(id: &HeaderValue) -> bool {
    is_plain(id) && (id.len() <= LONGEST_NUMBER || id.as_bytes().iter().any(u8::is_ascii_alphabetic))
}

/// Creates a UUID of version 4 (RFC 9562) with the thread's random generator: version 7 would cost a system call and a lock
/// per request.
fn fresh_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    // A hyphenated UUID is a valid header value.
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).unwrap_or_else(|_| HeaderValue::from_static("-"))
}
