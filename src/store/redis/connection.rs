//! A connection to Redis that restores itself.
//!
//! # What it promises
//!
//! A command is sent at most once, within the store's timeout. After an error it may or may not have taken effect;
//! nothing sends it again behind the caller's back, because the token of a lease serves one attempt. Only a command that
//! a cluster did not run (`MOVED`, `ASK`, `TRYAGAIN`) is sent again, until the timeout. Without a connection, commands
//! fail at once. A server that is silent (stopped, or behind a stalled network) costs the timeout a few times only: then
//! the [`breaker`](super::breaker) fails commands at once as well, and a background task, not a caller, finds out when
//! the server is back.
//!
//! # How it restores itself
//!
//! One task owns the connection. It connects, with backoff and without a limit of attempts, and shares the connection.
//! It connects again after a caller reports that the connection is broken: the server closed it, the server is
//! read-only (it was demoted), or the breaker opened. Where there are sentinels, it first asks them for the master.
//!
//! The client library of a cluster reconnects to nodes that refuse or close a connection. But it keeps asking a silent
//! node, even when a replica has replaced it. So when the breaker of a slot range opens, the task creates a new client
//! connection, which asks the nodes that answer for the slots. The old connection serves the other ranges until then.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, Pipeline, RedisResult, ServerErrorKind, TlsCertificates, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::supervise::Backoff;

use super::breaker::{NodeBreaker, SlotRange};
use super::client::RedisClient;
use super::command::{CommandConnection, RedisRequest};
use super::config::Endpoints;
use super::error::{CommandError, Redirection, explain};
use super::patience::{Expired, Patience};

/// The least time between two connections to a cluster.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// The reason while a server answers nothing, also while it is not asked.
const SILENT: &str = "the server does not answer";

/// The pause before a command goes again to the nodes of its slot.
const REDIRECTED_AFTER: Duration = Duration::from_millis(5);

/// A connection that restores itself; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct RedisConnection {
    state: Arc<ConnectionStatus>,
}

#[derive(Debug)]
struct ConnectionStatus {
    current: watch::Sender<Option<CurrentConnection>>,
    /// Notified when the current connection is broken.
    broken: Notify,
    breaker: NodeBreaker,
    patience: Patience,
}

/// A numbered connection. The number keeps a late report about an old connection from closing the new one.
#[derive(Clone)]
struct CurrentConnection {
    number: u64,
    connection: CommandConnection,
}

impl std::fmt::Debug for CurrentConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CurrentConnection({})", self.number)
    }
}

impl RedisConnection {
    /// Creates a connection; its task starts at once.
    ///
    /// # Errors
    ///
    /// The certificates or addresses cannot be used.
    pub(super) fn open(
        endpoints: &Endpoints,
        certificates: Option<&TlsCertificates>,
        timeout: Duration,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let client = RedisClient::new(endpoints, certificates, |cluster| {
            // The library's retries send a command again whose effect is unknown.
            cluster.retries(0).response_timeout(timeout)
        });
        let client = client.map_err(|error| explain(&error))?;
        let state = Arc::new(ConnectionStatus {
            current: watch::Sender::new(None),
            broken: Notify::new(),
            breaker: NodeBreaker::new(),
            patience: Patience::new(timeout),
        });
        shutdown.spawn(supervise(client, Arc::clone(&state), shutdown.clone()));
        Ok(Self { state })
    }

    /// Waits for the first connection; the caller limits the time.
    pub(super) async fn connected(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.state.current.subscribe().wait_for(Option::is_some).await;
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, CommandError> {
        match self.exchange(RedisRequest::One(cmd), async |connection| connection.one(cmd).await, |_| true).await {
            Err(CommandError::Redirected(to)) => {
                let mut one = redis::pipe();
                one.add_command(cmd.clone());
                // Boxed, so that the future of every other command stays small.
                let answer = Box::pin(self.follow(to, &one, 1, |_| true)).await?.pop();
                answer.ok_or_else(|| CommandError::unavailable("the answer is empty"))
            }
            answer => answer,
        }
    }

    /// Sends commands of one hash slot one after the other on one connection; returns their answers. If they do not
    /// show that the slot `works`, they count as unanswered.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        count: usize,
        works: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        let run = async |connection: &mut CommandConnection| connection.many(commands, count).await;
        match self.exchange(RedisRequest::Many(commands), run, |answers| works(answers)).await {
            Err(CommandError::Redirected(to)) => self.follow(to, commands, count, works).await,
            answer => answer,
        }
    }

    /// Sends commands that were not run to where the cluster says, until the timeout.
    async fn follow(
        &self,
        mut to: Redirection,
        commands: &Pipeline,
        count: usize,
        works: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        let end = Instant::now() + self.state.patience.timeout();
        loop {
            if to == Redirection::Again {
                sleep(REDIRECTED_AFTER).await;
            }
            let run = async |connection: &mut CommandConnection| match &to {
                Redirection::Ask(host, port) => connection.asking(host, *port, commands, count).await,
                Redirection::Again => connection.many(commands, count).await,
            };
            match self.exchange(RedisRequest::Many(commands), run, |answers| works(answers)).await {
                Err(CommandError::Redirected(next)) if Instant::now() < end => to = next,
                answer => return answer,
            }
        }
    }

    /// Sends a command to every primary; returns their answers in no particular order.
    pub(super) async fn send_to_every_primary(&self, cmd: &Cmd) -> Result<Vec<Value>, CommandError> {
        let run = async |connection: &mut CommandConnection| connection.every_primary(cmd).await;
        self.exchange(RedisRequest::EveryPrimary, run, |_| true).await
    }

    async fn exchange<T>(
        &self,
        request: RedisRequest<'_>,
        run: impl AsyncFnOnce(&mut CommandConnection) -> RedisResult<T>,
        works: impl FnOnce(&T) -> bool,
    ) -> Result<T, CommandError> {
        let current = self.state.current.borrow().clone();
        let Some(CurrentConnection { number, mut connection }) = current else {
            return Err(CommandError::unavailable("not connected"));
        };
        let breaker = &self.state.breaker;
        let sent_at = Instant::now();
        let permit = match connection.slot_range(&request).map(|range| breaker.admit(range, sent_at)) {
            Some(None) => return Err(CommandError::unavailable(SILENT)),
            Some(Some(permit)) => Some(permit),
            None => None,
        };
        let error = match self.state.patience.answer(run(&mut connection)).await {
            Ok(Ok(answer)) => {
                match (permit, works(&answer)) {
                    (Some(permit), true) => breaker.answered(permit, sent_at),
                    (Some(permit), false) => {
                        breaker.timed_out(permit, Instant::now());
                    }
                    (None, _) => {}
                }
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(Expired::Silent) => io::Error::from(io::ErrorKind::TimedOut).into(),
            Err(Expired::Slow) => return Err(CommandError::slow()),
        };
        // The client library of a cluster has the same timeout and may be the first to give up.
        if error.is_timeout() {
            if permit.is_some_and(|permit| breaker.timed_out(permit, Instant::now())) {
                self.report_silence(number);
            }
            return Err(CommandError::unavailable(SILENT));
        }
        if !error.is_io_error() {
            permit.into_iter().for_each(|permit| breaker.answered(permit, sent_at));
        }
        if error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.report_broken(number);
        }
        Err(error.into())
    }

    /// Requests a new connection because a server is silent. In a cluster, the old one stays in use for the rest.
    fn report_silence(&self, number: u64) {
        match self.state.current.borrow().as_ref() {
            Some(CurrentConnection { number: now, connection: CommandConnection::Cluster(_) }) if *now == number => {
                self.state.broken.notify_one();
            }
            Some(_) | None => {}
        }
        self.report_broken(number);
    }

    /// Stops the use of a connection and requests a new one. The client library of a cluster restores its connections
    /// itself.
    fn report_broken(&self, number: u64) {
        let removed = self.state.current.send_if_modified(|current| {
            let broken = current
                .as_ref()
                .is_some_and(|now| now.number == number && matches!(now.connection, CommandConnection::Single(_)));
            if broken {
                *current = None;
            }
            broken
        });
        if removed {
            self.state.broken.notify_one();
        }
    }
}

/// Keeps the connection up.
async fn supervise(mut client: RedisClient, state: Arc<ConnectionStatus>, shutdown: Shutdown) {
    let mut number = 0;
    let mut failing = false;
    let connect_timeout = client.connect_timeout();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let attempt = tokio::select! {
            () = shutdown.requested() => return,
            attempt = timeout(connect_timeout, client.connect()) => attempt,
        };
        let why = match attempt {
            Ok(Ok(connection)) => {
                number += 1;
                failing = false;
                backoff.reset();
                let since = Instant::now();
                let pause = match connection {
                    CommandConnection::Single(_) => {
                        state.breaker.reset(SlotRange::WHOLE, since);
                        Duration::ZERO
                    }
                    CommandConnection::Cluster(_) => RENEW_EVERY,
                };
                state.current.send_replace(Some(CurrentConnection { number, connection }));
                tracing::info!(connection = number, "connected to redis");
                tokio::select! {
                    // Commands in flight keep the connection that they have.
                    () = shutdown.requested() => return,
                    () = state.broken.notified() => {}
                }
                tracing::warn!(connection = number, "the redis connection is broken or a node is silent, reconnecting");
                let _ = timeout_at(since + pause, shutdown.requested()).await;
                continue;
            }
            Ok(Err(error)) => explain(&error).to_string(),
            Err(_elapsed) => "no connection in time".to_owned(),
        };
        if !failing {
            tracing::warn!(why, "redis cannot be reached, retrying until it answers");
            failing = true;
        }
        backoff.pause(&shutdown).await;
    }
}
