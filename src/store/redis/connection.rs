//! A link to Redis that mends itself.
//!
//! # What it promises
//!
//! A command is sent once, or not at all, within the store's timeout: what comes back as an error may or
//! may not have taken effect, and nobody sends it again behind the caller's back (a lease's token serves
//! one attempt). While there is no connection, commands fail at once instead of waiting for one. A server
//! that is silent (stopped, or behind a stalled link) costs the timeout a few times only: then the
//! [`breaker`] fails commands at once as well, and this task, not a caller, finds out when it is back.
//!
//! # How it mends itself
//!
//! One task owns the link. It connects, with backoff and without giving up; hands the connection out; and
//! takes it back when someone who used it says that it is broken: the connection was dropped, the server
//! turned read-only (it was demoted), or the breaker found it silent. Then it asks the sentinels again,
//! where there are any, and connects anew.
//!
//! A cluster's client connects to nodes that refused or hung up by itself, but a silent one it goes on
//! asking, also when a replica has long taken its place. So when the breaker finds a part of a cluster
//! silent, the task makes a new connection, which asks the nodes that do answer who has which slots; the
//! old one serves the other parts until the new one is there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::supervise::Backoff;

use super::config::Place;

use super::breaker::{Breaker, PartOf};
use super::client::Source;

pub(super) use super::client::sentinel;

/// The least time between two connections to a cluster.
const RENEW_EVERY: Duration = Duration::from_secs(1);

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
    breaker: Breaker,
    timeout: Duration,
}

/// A connection, numbered, so that a late complaint about an old one does not cost the new one.
#[derive(Clone)]
struct Connection {
    number: u64,
    to: To,
}

#[derive(Clone)]
pub(super) enum To {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.number)
    }
}

/// What is sent.
enum Request<'a> {
    /// A question to whichever server is at hand.
    Ping,
    One(&'a Cmd),
    /// A question to every primary.
    Everywhere,
    Many(&'a Pipeline),
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
        let shared = Arc::new(Shared { connection, broken: Notify::new(), breaker: Breaker::new(), timeout });
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
        self.exchange(Request::Ping, async |to| to.ping().await).await
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, Failure> {
        self.exchange(Request::One(cmd), async |to| to.one(cmd).await).await
    }

    /// Sends commands, of one hash slot, that follow each other on one connection; returns their answers.
    pub(super) async fn send_all(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, Failure> {
        self.exchange(Request::Many(commands), async |to| to.many(commands, count).await).await
    }

    /// Sends a command to every primary; returns all of their answers, in no order.
    pub(super) async fn send_everywhere(&self, cmd: &Cmd) -> Result<Vec<Value>, Failure> {
        self.exchange(Request::Everywhere, async |to| to.everywhere(cmd).await).await
    }

    async fn exchange<T>(
        &self,
        request: Request<'_>,
        run: impl AsyncFnOnce(&mut To) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        let connection = self.shared.connection.borrow().clone();
        let Some(Connection { number, mut to }) = connection else {
            return Err(Failure::unavailable("not connected"));
        };
        let breaker = &self.shared.breaker;
        let pass = match to.part(&request).map(|part| breaker.admit(part, Instant::now())) {
            Some(None) => return Err(Failure::unavailable("left alone, since it does not answer")),
            Some(Some(pass)) => Some(pass),
            None => None,
        };
        let silence = |_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let error = match timeout(self.shared.timeout, run(&mut to)).await.unwrap_or_else(silence) {
            Ok(answer) => {
                pass.into_iter().for_each(|pass| breaker.answered(pass));
                return Ok(answer);
            }
            Err(error) => error,
        };
        // The client of a cluster has the same timeout, and may be the first to give up.
        if error.is_timeout() {
            if pass.is_some_and(|pass| breaker.was_silent(pass, Instant::now())) {
                self.complain_of_silence(number);
            }
            return Err(Failure::unavailable("no answer in time"));
        }
        if !error.is_io_error() {
            pass.into_iter().for_each(|pass| breaker.answered(pass));
        }
        if error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.complain(number);
        }
        Err(Failure::of(&error))
    }

    /// Has a new connection made to what is silent; of a cluster, the old one stays in use for the rest.
    fn complain_of_silence(&self, number: u64) {
        match self.shared.connection.borrow().as_ref() {
            Some(Connection { number: now, to: To::Cluster(_) }) if *now == number => self.shared.broken.notify_one(),
            Some(_) | None => {}
        }
        self.complain(number);
    }

    /// Takes a connection out of use, and has a new one made; a cluster's client sees to its connections itself.
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
    /// What stands there is of another type: none of ours.
    WrongType,
    /// Anything else.
    Store(Error),
}

impl Failure {
    fn unavailable(reason: &str) -> Self {
        Self::Store(Error::Unavailable { reason: reason.to_owned() })
    }

    fn of(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Self::NoScript,
            _ if error.code() == Some("WRONGTYPE") => Self::WrongType,
            _ => Self::Store(explain(error)),
        }
    }
}

/// Says what went wrong in words that hold no key, value or password.
pub(super) fn explain(error: &RedisError) -> Error {
    let reason = match error.code() {
        Some(code) => format!("{} ({code})", error.category()).trim_start().to_owned(),
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

/// Keeps the link up.
async fn supervise(mut source: Source, shared: Arc<Shared>, shutdown: Shutdown) {
    let mut number = 0;
    let mut failing = false;
    let patience = source.patience();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let attempt = tokio::select! {
            () = shutdown.requested() => return,
            attempt = timeout(patience, source.connect()) => attempt,
        };
        let why = match attempt {
            Ok(Ok(to)) => {
                number += 1;
                failing = false;
                backoff.reset();
                let since = Instant::now();
                let pause = if matches!(to, To::Cluster(_)) { RENEW_EVERY } else { Duration::ZERO };
                if matches!(to, To::One(_)) {
                    shared.breaker.forget(PartOf::WHOLE);
                }
                shared.connection.send_replace(Some(Connection { number, to }));
                tracing::info!(connection = number, "connected to redis");
                tokio::select! {
                    // What is under way goes on with the connection it has.
                    () = shutdown.requested() => return,
                    () = shared.broken.notified() => {}
                }
                tracing::warn!(connection = number, "the connection to redis is broken, or a part of it silent");
                let _ = timeout_at(since + pause, shutdown.requested()).await;
                continue;
            }
            Ok(Err(error)) => explain(&error).to_string(),
            Err(_elapsed) => "no connection in time".to_owned(),
        };
        if !failing {
            tracing::warn!(why, "redis cannot be reached, trying until it can");
            failing = true;
        }
        backoff.pause(&shutdown).await;
    }
}

impl To {
    /// The part of Redis that answers this; `None` where any node may.
    fn part(&self, request: &Request<'_>) -> Option<PartOf> {
        let cmd = match (self, request) {
            (Self::One(_), _) => return Some(PartOf::WHOLE),
            (Self::Cluster(_), Request::Ping | Request::Everywhere) => return None,
            (Self::Cluster(_), Request::One(cmd)) => cmd,
            (Self::Cluster(_), Request::Many(commands)) => commands.cmd_iter().next()?,
        };
        // Every command of the store names K first: behind its own name, or behind a script and a count.
        let mut words = cmd.args_iter().map(|arg| if let Arg::Simple(word) = arg { word } else { &[] });
        let scripted = matches!(words.next(), Some(b"EVAL" | b"EVALSHA"));
        words.nth(if scripted { 2 } else { 0 }).map(PartOf::of)
    }

    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        let ping = redis::cmd("PING");
        let answer = match self {
            Self::One(connection) => connection.req_packed_command(&ping).await?,
            // Sent as other commands are it would go to every node, and fail with any of them.
            Self::Cluster(connection) => {
                connection.route_command(ping, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random)).await?
            }
        };
        answer.extract_error().map(drop)
    }

    async fn one(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            // The way of every hit: without the box that the library's trait makes of its future.
            Self::One(connection) => connection.send_packed_command(cmd).await?.extract_error(),
            Self::Cluster(connection) => connection.req_packed_command(cmd).await?.extract_error(),
        }
    }

    async fn many(&mut self, commands: &Pipeline, count: usize) -> RedisResult<Vec<Value>> {
        let answers = match self {
            Self::One(connection) => connection.req_packed_commands(commands, 0, count).await?,
            Self::Cluster(connection) => connection.req_packed_commands(commands, 0, count).await?,
        };
        answers.into_iter().map(Value::extract_error).collect()
    }

    async fn everywhere(&mut self, cmd: &Cmd) -> RedisResult<Vec<Value>> {
        let connection = match self {
            Self::One(connection) => return Ok(vec![connection.req_packed_command(cmd).await?.extract_error()?]),
            Self::Cluster(connection) => connection,
        };
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        match connection.route_command(cmd.clone(), all).await?.extract_error()? {
            Value::Map(answers) => answers.into_iter().map(|(_, answer)| answer.extract_error()).collect(),
            answer => Ok(vec![answer]),
        }
    }
}
