//! A link to Redis that mends itself.
//!
//! # What it promises
//!
//! A command is sent once, or not at all, within the store's timeout: what comes back as an error may or
//! may not have taken effect, and nobody sends it again behind the caller's back (a lease's token serves
//! one attempt). While there is no connection, commands fail at once instead of waiting for one: the link
//! is its own circuit breaker.
//!
//! # How it mends itself
//!
//! One task owns the link. It connects, with backoff and without giving up; hands the connection out; and
//! takes it back when someone who used it says that it is broken: the connection was dropped, the server
//! turned read-only (it was demoted), or [`SUSPICIOUS`] commands in a row had no answer in time (a stalled
//! link looks like this). Then it asks the sentinels again, where there are any, and connects anew. A
//! cluster's client does the same for each of its nodes by itself, so its task only makes the first
//! connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult,
    ServerErrorKind, TlsCertificates, TlsMode, Value,
};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::shutdown::Shutdown;
use crate::store::Error;

use super::config::Place;

/// How many commands in a row may go unanswered before the connection is taken for broken.
const SUSPICIOUS: u32 = 3;

/// The longest that making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A link; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: watch::Sender<Option<Connection>>,
    /// Rung when a connection is broken.
    broken: Notify,
    unanswered: AtomicU32,
    timeout: Duration,
}

/// A connection, numbered, so that a late complaint about an old one does not cost the new one.
#[derive(Clone)]
struct Connection {
    number: u64,
    to: To,
}

#[derive(Clone)]
enum To {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.number)
    }
}

/// Where connections come from.
enum Source {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

/// What is sent.
enum Request<'a> {
    /// A question to whichever server is at hand.
    Ping,
    One(&'a Cmd),
    /// A question to every primary.
    Everywhere(&'a Cmd),
    /// A pipeline and the number of its answers.
    Many(&'a Pipeline, usize),
}

impl Link {
    /// Makes a link; its task starts at once.
    ///
    /// # Errors
    ///
    /// The certificates or addresses cannot be used.
    pub(super) fn open(
        place: &Place,
        certificates: Option<&TlsCertificates>,
        timeout: Duration,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let source = Source::of(place, certificates, timeout).map_err(|error| explain(&error))?;
        let connection = watch::Sender::new(None);
        let shared = Arc::new(Shared { connection, broken: Notify::new(), unanswered: AtomicU32::new(0), timeout });
        shutdown.spawn(supervise(source, Arc::clone(&shared), shutdown.clone()));
        Ok(Self { shared })
    }

    /// Waits for the first connection; the caller bounds it.
    pub(super) async fn connected(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.shared.connection.subscribe().wait_for(Option::is_some).await;
    }

    /// Asks whether anyone answers; of a cluster, one node is enough.
    pub(super) async fn ping(&self) -> Result<(), Failure> {
        self.request(Request::Ping).await.map(drop)
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, Failure> {
        let mut answers = self.request(Request::One(cmd)).await?;
        // A command has one answer.
        Ok(answers.pop().unwrap_or(Value::Nil))
    }

    /// Sends commands, of one hash slot, that follow each other on one connection; returns their answers.
    pub(super) async fn send_all(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, Failure> {
        self.request(Request::Many(commands, count)).await
    }

    /// Sends a command to every primary; returns all of their answers, in no order.
    pub(super) async fn send_everywhere(&self, cmd: &Cmd) -> Result<Vec<Value>, Failure> {
        self.request(Request::Everywhere(cmd)).await
    }

    async fn request(&self, request: Request<'_>) -> Result<Vec<Value>, Failure> {
        let connection = self.shared.connection.borrow().clone();
        let Some(Connection { number, mut to }) = connection else {
            return Err(Failure::Store(Error::Unavailable { reason: "not connected".to_owned() }));
        };
        match timeout(self.shared.timeout, to.request(request)).await {
            Ok(Ok(answers)) => {
                self.shared.unanswered.store(0, Ordering::Relaxed);
                Ok(answers)
            }
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
                    self.complain(number);
                }
                Err(Failure::of(&error))
            }
            Err(_elapsed) => {
                if self.shared.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= SUSPICIOUS {
                    self.complain(number);
                }
                Err(Failure::Store(Error::Unavailable { reason: "no answer in time".to_owned() }))
            }
        }
    }

    /// Takes a connection out of use, and has a new one made.
    fn complain(&self, number: u64) {
        let taken = self.shared.connection.send_if_modified(|connection| {
            let broken = connection.as_ref().is_some_and(|now| now.number == number && matches!(now.to, To::One(_)));
            if broken {
                *connection = None;
            }
            broken
        });
        if taken {
            self.shared.broken.notify_one();
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The script is not loaded: nothing was run.
    NoScript,
    /// Anything else.
    Store(Error),
}

impl Failure {
    fn of(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Self::NoScript,
            _ => Self::Store(explain(error)),
        }
    }
}

/// Says what went wrong in words that hold no key, value or password.
pub(super) fn explain(error: &RedisError) -> Error {
    let reason = match error.code() {
        Some(code) => format!("{} ({code})", error.category()),
        // What the transport says (refused, reset, an invalid certificate) is about the link alone.
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    };
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Parse
        | ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => Error::Rejected { reason },
        _ => Error::Unavailable { reason },
    }
}

async fn supervise(mut source: Source, shared: Arc<Shared>, shutdown: Shutdown) {
    let mut number = 0;
    let mut failing = false;
    let mut backoff = ExponentialBackoff {
        initial_interval: Duration::from_millis(50),
        max_interval: Duration::from_secs(2),
        // The library's default gives up after 15 minutes.
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    loop {
        let attempt = tokio::select! {
            () = shutdown.requested() => return,
            attempt = timeout(CONNECT_TIMEOUT, source.connect()) => attempt,
        };
        let why = match attempt {
            Ok(Ok(to)) => {
                number += 1;
                failing = false;
                backoff.reset();
                shared.unanswered.store(0, Ordering::Relaxed);
                shared.connection.send_replace(Some(Connection { number, to }));
                tracing::info!(connection = number, "connected to redis");
                tokio::select! {
                    // What is under way goes on with the connection it has.
                    () = shutdown.requested() => return,
                    () = shared.broken.notified() => {}
                }
                tracing::warn!(connection = number, "the connection to redis is broken");
                continue;
            }
            Ok(Err(error)) => explain(&error).to_string(),
            Err(_elapsed) => "no connection in time".to_owned(),
        };
        if !failing {
            tracing::warn!(why, "redis cannot be reached, trying until it can");
            failing = true;
        }
        let pause = backoff.next_backoff().unwrap_or(backoff.max_interval);
        // Either way it is time to go on.
        let _ = timeout(pause, shutdown.requested()).await;
    }
}

impl Source {
    fn of(place: &Place, certificates: Option<&TlsCertificates>, timeout: Duration) -> RedisResult<Self> {
        // A library that speaks TLS takes the process' provider; another may have been there first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match place {
            Place::Single(node) => match certificates {
                Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone())
                    .map(|client| Self::Single(Box::new(client))),
                None => Client::open(node.clone()).map(|client| Self::Single(Box::new(client))),
            },
            Place::Cluster(nodes) => {
                // The client's own retries send a command again whose fate is unknown.
                let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
                    .retries(0)
                    .connection_timeout(CONNECT_TIMEOUT)
                    .response_timeout(timeout);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.build().map(|client| Self::Cluster(Box::new(client)))
            }
            Place::Sentinel(sentinels, name) => {
                sentinel(sentinels, name, certificates).map(|client| Self::Sentinel(Box::new(client)))
            }
        }
    }

    /// Makes a connection over which a `PING` was answered.
    async fn connect(&mut self) -> RedisResult<To> {
        // Each command has the store's own deadline.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(CONNECT_TIMEOUT));
        let mut to = match self {
            Self::Single(client) => To::One(client.get_multiplexed_async_connection_with_config(&config).await?),
            Self::Sentinel(client) => To::One(client.get_async_connection_with_config(&config).await?),
            Self::Cluster(client) => To::Cluster(client.get_async_connection().await?),
        };
        to.request(Request::Ping).await?;
        Ok(to)
    }
}

impl To {
    async fn request(&mut self, request: Request<'_>) -> RedisResult<Vec<Value>> {
        if let (Self::Cluster(connection), Request::Ping) = (&mut *self, &request) {
            // Sent as other commands are it would go to every node, and fail with any of them.
            let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
            return Ok(vec![connection.route_command(redis::cmd("PING"), anyone).await?.extract_error()?]);
        }
        if let (Self::Cluster(connection), Request::Everywhere(cmd)) = (&mut *self, &request) {
            let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            return match connection.route_command((*cmd).clone(), all).await?.extract_error()? {
                Value::Map(answers) => answers.into_iter().map(|(_, answer)| answer.extract_error()).collect(),
                answer => Ok(vec![answer]),
            };
        }
        let connection: &mut (dyn ConnectionLike + Send) = match self {
            Self::One(connection) => connection,
            Self::Cluster(connection) => connection,
        };
        match request {
            Request::Ping => Ok(vec![connection.req_packed_command(&redis::cmd("PING")).await?.extract_error()?]),
            Request::One(cmd) | Request::Everywhere(cmd) => {
                Ok(vec![connection.req_packed_command(cmd).await?.extract_error()?])
            }
            Request::Many(commands, count) => {
                let answers = connection.req_packed_commands(commands, 0, count).await?;
                answers.into_iter().map(Value::extract_error).collect()
            }
        }
    }
}

/// Makes a client that asks sentinels for the master.
pub(super) fn sentinel(
    sentinels: &[ConnectionInfo],
    name: &str,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let addresses: Vec<ConnectionAddr> = sentinels.iter().map(|node| node.addr().clone()).collect();
    let tls = addresses.iter().any(|address| matches!(address, ConnectionAddr::TcpTls { .. }));
    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?;
    if tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    // The addresses' user and password are the servers'; sentinels are asked without.
    if let Some(settings) = sentinels.first().map(ConnectionInfo::redis_settings) {
        if let Some(username) = settings.username() {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        builder = builder.set_client_to_redis_db(settings.db());
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates.clone());
    }
    builder.build()
}
