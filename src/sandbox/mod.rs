//! The sandbox: a small imitation of Genesys on loopback, for new users and for the tests.
//!
//! It is an HTTP server with the API of Genesys Cloud: OAuth client credentials, external contacts with merges and
//! deletions, errors, rate limits, an EventBridge event to a webhook for every change, and notifications over WebSockets.
//! Its customers are generated from their number, so it starts immediately with a million of them.
//!
//! `/` is an example page of a desktop. `/sandbox/behaviour` makes the running sandbox slow, faulty or strict;
//! `/sandbox/calls` counts the requests, `/sandbox/events` the events by state, and the answer to a write names its events in `Sandbox-Events`. None of these
//! needs a token, and all credentials are public: do not store real data here.
//!
//! Nothing survives a restart. Memory is bounded: changed contacts, tokens, counted ids, undelivered events and audits each have a
//! limit. Above it a write is refused (contacts, events), the oldest entry is removed (tokens, audits), or only the total
//! counts (ids).
//!
//! On shutdown it accepts no new connections, sends pending answers without their latency, and drops undelivered events
//! with one log line that counts them.

mod announcement;
mod audit_log;
mod audits;
mod behaviour;
mod calls;
mod catalogues;
mod channels;
mod contact;
mod contacts;
mod directory;
mod errors;
mod events;
mod example;
mod fields;
mod notifications;
mod oauth;
mod people;
mod search;
mod shapes;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpListener;
use url::Url;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Secret;
use crate::listen::listen;
use crate::shutdown::Shutdown;

use behaviour::Behaviour;
use errors::{ApiError, CORRELATION_ID};

/// `[sandbox]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether it runs inside `profile-edge run`; by default only while no `[[tenant]]` is configured.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The number of generated customers at start.
    pub customers: u32,
    /// The delay of each answer of its API.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
}

/// The options of a sandbox.
#[derive(Debug)]
pub struct SandboxOptions {
    /// The address or the listener.
    pub listen: Listen,
    /// The number of generated customers at start.
    pub customers: u32,
    /// The delay of each answer about contacts, until `/sandbox/behaviour` changes it.
    pub latency: Duration,
    /// The webhook for events; without one, changes post no events.
    pub webhook: Option<Webhook>,
}

/// An address to bind, or a bound listener.
#[derive(Debug)]
pub enum Listen {
    /// [`Sandbox::start`] binds it.
    Address(SocketAddr),
    /// Bound by the caller.
    Bound(TcpListener),
}

/// The target of events, which carry the header `X-API-Key`.
#[derive(Clone)]
pub struct Webhook {
    /// The URL, `http` or `https`.
    pub url: Url,
    /// The key.
    pub key: Secret,
}

/// A running sandbox; it stops when its shutdown is requested.
#[derive(Debug)]
pub struct Sandbox {
    /// The address that it listens on.
    pub addr: SocketAddr,
}

impl Sandbox {
    /// Starts a sandbox; `shutdown` tracks its tasks.
    ///
    /// # Errors
    ///
    /// The address cannot be bound (with the error kind of the system, such as `AddrInUse`), or no HTTPS client can be
    /// created for the webhook.
    pub async fn start(options: SandboxOptions, clock: SharedClock, shutdown: Shutdown) -> Result<Self, io::Error> {
        let listener = match options.listen {
            Listen::Address(address) => listen(address)?,
            Listen::Bound(listener) => listener,
        };
        let addr = listener.local_addr()?;
        let page = example::page(options.webhook.as_ref().map(|webhook| &webhook.url)).into();
        let channels = Arc::new(channels::Channels::new(Arc::clone(&clock), shutdown.clone()));
        let sandbox = Arc::new(SandboxState {
            directory: directory::ContactDirectory::new(options.customers, Arc::clone(&clock)),
            latency: options.latency,
            behaviour: Mutex::new(Arc::new(Behaviour::new(options.latency))),
            tokens: oauth::TokenRegistry::default(),
            calls: calls::Calls::default(),
            audits: audit_log::AuditLog::default(),
            rate_limit: calls::RateLimit::default(),
            page,
            events: events::EventSender::new(
                options.webhook,
                Arc::clone(&channels),
                Arc::clone(&clock),
                shutdown.clone(),
            )
            .map_err(io::Error::other)?,
            channels,
            clock,
            shutdown: shutdown.clone(),
        });
        shutdown.spawn(serve(listener, sandbox));
        Ok(Self { addr })
    }
}

/// The state that the routes share.
struct SandboxState {
    directory: directory::ContactDirectory,
    /// The latency at start.
    latency: Duration,
    behaviour: Mutex<Arc<Behaviour>>,
    tokens: oauth::TokenRegistry,
    calls: calls::Calls,
    audits: audit_log::AuditLog,
    rate_limit: calls::RateLimit,
    /// The example page.
    page: Bytes,
    events: events::EventSender,
    channels: Arc<channels::Channels>,
    clock: SharedClock,
    shutdown: Shutdown,
}

impl SandboxState {
    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&self.behaviour.lock())
    }
}

async fn serve(listener: TcpListener, sandbox: Arc<SandboxState>) {
    // Small answers do not wait for an acknowledgement (Nagle).
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let stop = sandbox.shutdown.clone();
    let served = axum::serve(listener, router(Arc::clone(&sandbox)))
        .with_graceful_shutdown(async move { stop.requested().await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the sandbox stopped serving");
    }
    sandbox.events.close().await;
}

fn router(sandbox: Arc<SandboxState>) -> Router {
    let contact = get(contacts::read).put(contacts::replace).patch(contacts::amend).delete(contacts::remove);
    let contacts = Router::new()
        .route("/", post(contacts::create).get(search::contacts))
        .route("/merge", post(contacts::merge))
        .route("/{id}", contact)
        .route("/{id}/unresolved", get(contacts::read_unresolved))
        .layer(middleware::from_fn_with_state(Arc::clone(&sandbox), delay));
    let bulk = Router::new()
        .route(shapes::BULK, post(contacts::read_many))
        .layer(middleware::from_fn_with_state(Arc::clone(&sandbox), delay));
    let subscriptions = get(notifications::subscriptions).post(notifications::subscribe).put(notifications::replace);
    let searches = Router::new()
        .route("/identifierlookup/contacts", post(search::identifier))
        .route("/identifierlookup", post(search::identifier))
        .route("/reversewhitepageslookup", get(search::reverse))
        .layer(middleware::from_fn_with_state(Arc::clone(&sandbox), delay));
    Router::new()
        .nest(shapes::CONTACTS, contacts)
        .merge(bulk)
        .nest(shapes::EXTERNAL_CONTACTS, searches)
        .route("/oauth/token", post(oauth::token))
        .route("/login/oauth/token", post(oauth::token))
        .route("/api/v2/tokens/me", get(oauth::token_info))
        .route("/api/v2/authorization/subjects/me", get(oauth::subject))
        .route("/api/v2/notifications/availabletopics", get(catalogues::topics))
        .route("/api/v2/audits/query/realtime/servicemapping", get(audits::services))
        .route("/api/v2/audits/query/realtime", post(audits::query))
        .route("/", get(example::show))
        .route("/sandbox/example", get(example::show))
        .route("/api/v2/notifications/channels", get(notifications::list).post(notifications::create))
        .route("/api/v2/notifications/channels/{id}/subscriptions", subscriptions)
        .route("/channels/{id}", get(notifications::connect))
        .route("/sandbox/channels", get(notifications::show))
        .route("/sandbox/behaviour", get(behaviour::show).post(behaviour::update))
        .route("/sandbox/calls", get(calls::show))
        // For `profile-edge healthcheck --admin`, in a container.
        .route("/readyz", get(async || "ready\n"))
        .route("/sandbox/events", get(calls::events))
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(fields::MAX_BYTES))
        .layer(middleware::map_response_with_state(Arc::clone(&sandbox), label))
        .with_state(sandbox)
}

/// Delays an answer by the latency at the time of the request.
async fn delay(State(sandbox): State<Arc<SandboxState>>, request: Request, next: Next) -> Response {
    let latency = sandbox.behaviour().latency;
    let answer = next.run(request).await;
    tokio::select! {
        () = tokio::time::sleep(latency) => {}
        () = sandbox.shutdown.requested() => {}
    }
    answer
}

/// Adds the headers of every Genesys answer.
async fn label(State(sandbox): State<Arc<SandboxState>>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    let offset = sandbox.behaviour().clock_offset_seconds;
    if offset != 0 {
        let seconds = u64::try_from(sandbox.clock.now().as_millis() / 1_000 + offset).unwrap_or_default();
        let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds));
        headers.extend(HeaderValue::from_str(&date).ok().map(|date| (header::DATE, date)));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(header::EXPIRES, HeaderValue::from_static("0"));
    if let Ok(correlation) = HeaderValue::from_str(&Uuid::new_v4().to_string()) {
        headers.entry(CORRELATION_ID).or_insert(correlation);
    }
    response
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<TcpListener> for Listen {
    fn from(listener: TcpListener) -> Self {
        Self::Bound(listener)
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may contain credentials.
        write!(f, "Webhook({}://{}, [redacted])", self.url.scheme(), self.url.host_str().unwrap_or_default())
    }
}
