//! A small real Genesys on loopback: what a new user plays with, and what the tests drive.
//!
//! It is an HTTP server with the shapes of Genesys Cloud: OAuth client credentials, external
//! contacts with merges and deletions, errors, rate limits, and an EventBridge event posted to a
//! webhook for every change. Its people are invented, a pure function of their number, so it starts
//! at once with a million of them. `/sandbox/behaviour` makes it slow, wrong or strict while it
//! runs; `/sandbox/calls` tells what reached it, `/sandbox/events` what became of its events, and the
//! answer to a write names the events it caused in `Sandbox-Events`. None of these needs a token, and
//! all credentials are known to everyone: it is no place for real data.
//!
//! Nothing is kept across restarts. Memory is bounded: changed contacts, tokens, counted ids and
//! undelivered events each have their limit, beyond which a write is refused (contacts, events),
//! the oldest is forgotten (tokens) or only the total counts (ids).
//!
//! When shutdown is requested it takes no new connections, sends the answers that are under way
//! without their latency, and drops undelivered events with one log line that counts them.

mod announcement;
mod behaviour;
mod calls;
mod contacts;
mod errors;
mod events;
mod fields;
mod oauth;
mod people;
mod shapes;
mod world;

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
use http::{HeaderValue, header};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpListener;
use url::Url;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Secret;
use crate::shutdown::Shutdown;

use behaviour::Behaviour;
use errors::{CORRELATION_ID, Refusal};

/// `[sandbox]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether it runs inside `profile-edge run`; absent: only while no `[[tenant]]` is configured.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How many invented customers it starts with.
    pub customers: u32,
    /// How long each answer of its API takes.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
}

/// What a sandbox is started with.
#[derive(Debug)]
pub struct Options {
    /// Where it listens.
    pub listen: Listen,
    /// How many invented customers it starts with.
    pub customers: u32,
    /// How long each answer about contacts takes, until `/sandbox/behaviour` says otherwise.
    pub latency: Duration,
    /// Where every change is posted; absent: nowhere.
    pub webhook: Option<Webhook>,
}

/// An address to bind, or a listener that is bound already.
#[derive(Debug)]
pub enum Listen {
    /// To be bound by [`Sandbox::start`].
    Address(SocketAddr),
    /// Bound by the caller.
    Bound(TcpListener),
}

/// Where events are posted, authenticated by the header `X-API-Key`.
#[derive(Clone)]
pub struct Webhook {
    /// The URL, `http` or `https`.
    pub url: Url,
    /// The key.
    pub key: Secret,
}

/// A running sandbox; it stops when the shutdown that it was started with is requested.
#[derive(Debug)]
pub struct Sandbox {
    /// The address that it listens on.
    pub addr: SocketAddr,
}

impl Sandbox {
    /// Starts a sandbox; its tasks are tracked by `shutdown`.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound (with the system's own error kind, such as `AddrInUse`), or
    /// when no HTTPS client can be made for the webhook.
    pub async fn start(options: Options, clock: SharedClock, shutdown: Shutdown) -> Result<Self, io::Error> {
        let listener = match options.listen {
            Listen::Address(address) => TcpListener::bind(address).await?,
            Listen::Bound(listener) => listener,
        };
        let addr = listener.local_addr()?;
        let genesys = Arc::new(Genesys {
            world: world::World::new(options.customers, Arc::clone(&clock)),
            latency: options.latency,
            behaviour: Mutex::new(Arc::new(Behaviour::new(options.latency))),
            tokens: oauth::Tokens::default(),
            calls: calls::Calls::default(),
            rate_limit: calls::RateLimit::default(),
            events: events::Events::new(options.webhook, Arc::clone(&clock), shutdown.clone())
                .map_err(io::Error::other)?,
            clock,
            shutdown: shutdown.clone(),
        });
        shutdown.spawn(serve(listener, genesys));
        Ok(Self { addr })
    }
}

/// Everything that the routes share.
struct Genesys {
    world: world::World,
    /// The latency that it was started with.
    latency: Duration,
    behaviour: Mutex<Arc<Behaviour>>,
    tokens: oauth::Tokens,
    calls: calls::Calls,
    rate_limit: calls::RateLimit,
    events: events::Events,
    clock: SharedClock,
    shutdown: Shutdown,
}

impl Genesys {
    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&self.behaviour.lock())
    }
}

async fn serve(listener: TcpListener, genesys: Arc<Genesys>) {
    // Small answers wait for nobody's acknowledgement.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let stop = genesys.shutdown.clone();
    let served = axum::serve(listener, router(Arc::clone(&genesys)))
        .with_graceful_shutdown(async move { stop.requested().await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "sandbox stopped serving");
    }
    genesys.events.close().await;
}

fn router(genesys: Arc<Genesys>) -> Router {
    let contact = get(contacts::read).put(contacts::replace).patch(contacts::amend).delete(contacts::remove);
    let contacts = Router::new()
        .route("/", post(contacts::create))
        .route("/merge", post(contacts::merge))
        .route("/{id}", contact)
        .route("/{id}/unresolved", get(contacts::read_unresolved))
        .layer(middleware::from_fn_with_state(Arc::clone(&genesys), delay));
    Router::new()
        .nest(shapes::CONTACTS, contacts)
        .route("/oauth/token", post(oauth::token))
        .route("/login/oauth/token", post(oauth::token))
        .route("/api/v2/tokens/me", get(oauth::token_info))
        .route("/api/v2/authorization/subjects/me", get(oauth::subject))
        .route("/sandbox/behaviour", get(behaviour::show).post(behaviour::update))
        .route("/sandbox/calls", get(calls::show))
        // For `profile-edge healthcheck --admin`, in a container.
        .route("/readyz", get(async || "ready\n"))
        .route("/sandbox/events", get(calls::events))
        .fallback(async || Refusal::not_found())
        .method_not_allowed_fallback(async || Refusal::method_not_allowed())
        .layer(DefaultBodyLimit::max(fields::MAX_BYTES))
        .layer(middleware::map_response(label))
        .with_state(genesys)
}

/// Holds an answer back for the latency that was set when its request arrived.
async fn delay(State(genesys): State<Arc<Genesys>>, request: Request, next: Next) -> Response {
    let latency = genesys.behaviour().latency;
    let answer = next.run(request).await;
    tokio::select! {
        () = tokio::time::sleep(latency) => {}
        () = genesys.shutdown.requested() => {}
    }
    answer
}

/// Adds what every answer of Genesys carries.
async fn label(mut response: Response) -> Response {
    let headers = response.headers_mut();
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
        // A URL may carry credentials of its own.
        write!(f, "Webhook({}://{}, [redacted])", self.url.scheme(), self.url.host_str().unwrap_or_default())
    }
}
