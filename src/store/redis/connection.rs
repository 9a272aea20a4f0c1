//! A connection to Redis that restores itself.
//!
//! # What it promises
//!
//! A command is sent at most once, within the store's timeout. After an error it may or may not have taken effect;
//! nothing sends it again behind the caller's back, because the token of a lease serves one attempt. Only a command that
//! a cluster did not run (`MOVED`, `ASK`, `TRYAGAIN`) is sent again, until the timeout. Without a connection, commands
//! fail at once. A server that is silent (stopped, or behind a stalled network) costs the timeout a few times only: then
//! the [`breaker`](super::breaker) fails commands at once as well, and a background task, not a caller, finds out when
//! the server is back. A server that is no primary any more is not believed (see [`role`](super::role)).
//!
//! The [`supervisor`](super::supervisor) restores it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, Pipeline, RedisResult, ServerErrorKind, Value};
use tokio::time::{Instant, sleep};

use crate::same_server::SameServer;
use crate::shutdown::Shutdown;
use crate::store::Error;

use super::client::RedisClient;
use super::command::{CommandConnection, RedisRequest};
use super::config::{Config, Mode};
use super::connection_state::{ConnectionState, CurrentConnection};
use super::error::{CommandError, Redirection, reason};
use super::patience::Expired;
use super::supervisor::Supervisor;

/// The reason while a server answers nothing, also while it is not asked.
pub(super) const SILENT: &str = "the server does not answer";

/// The first pause before a command goes again to the nodes of its slot; the next ones are longer, because the library
/// asks for the slots each time, and delays every other command meanwhile.
const REDIRECTED_AFTER: Duration = Duration::from_millis(5);

/// A connection that restores itself; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct RedisConnection {
    state: Arc<ConnectionState>,
}

impl RedisConnection {
    /// Creates a connection, one of those to the same server; its task starts at once.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, or one of its files cannot be read.
    pub(super) fn open(
        config: &Config,
        timeout: Duration,
        all: &SameServer,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let client = RedisClient::new(config, move |cluster| {
            // The library's retries send a command again whose effect is unknown.
            cluster.retries(0).response_timeout(timeout)
        })?;
        let state = Arc::new(ConnectionState::new(timeout, config.mode == Some(Mode::Cluster)));
        shutdown.spawn(Supervisor::new(client, Arc::clone(&state), all.member(), shutdown.clone()).run());
        Ok(Self { state })
    }

    /// Waits for the first connection; the caller limits the time.
    pub(super) async fn connected(&self) {
        self.state.connected().await;
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, CommandError> {
        let now = Instant::now();
        let answer = if self.state.role.is_due(now) {
            // Boxed, as below, so that the future of every other command stays small.
            Box::pin(self.send_to_primary(cmd, now)).await
        } else {
            let run = async |connection: &mut CommandConnection| connection.one(cmd).await;
            self.exchange(RedisRequest::One(cmd), now, run, |_| true).await
        };
        match answer {
            Err(CommandError::Redirected(to)) => {
                let mut one = redis::pipe();
                one.add_command(cmd.clone());
                let answer = Box::pin(self.follow(to, &one, 1, |_| true)).await?.pop();
                answer.ok_or_else(|| CommandError::unavailable("the answer is empty"))
            }
            answer => answer,
        }
    }

    /// Sends a command with the question for the role of the server.
    async fn send_to_primary(&self, cmd: &Cmd, now: Instant) -> Result<Value, CommandError> {
        let run = async |connection: &mut CommandConnection| connection.one_of_primary(cmd).await;
        let (answer, _) = self.exchange(RedisRequest::One(cmd), now, run, |_| true).await?;
        self.state.role.confirm(now);
        Ok(answer)
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
        match self.exchange(RedisRequest::Many(commands), Instant::now(), run, |answers| works(answers)).await {
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
        let (end, mut pause) = (Instant::now() + self.state.patience.timeout(), REDIRECTED_AFTER);
        loop {
            if to == Redirection::Again {
                sleep(pause).await;
                pause *= 2;
            }
            let run = async |connection: &mut CommandConnection| match &to {
                Redirection::Ask(host, port) => connection.asking(host, *port, commands, count).await,
                Redirection::Again => connection.many(commands, count).await,
            };
            match self.exchange(RedisRequest::Many(commands), Instant::now(), run, |answers| works(answers)).await {
                Err(CommandError::Redirected(next)) if Instant::now() < end => to = next,
                answer => return answer.inspect_err(|error| self.count_unserved(error, commands)),
            }
        }
    }

    /// Counts commands that no node took as unanswered.
    fn count_unserved(&self, error: &CommandError, commands: &Pipeline) {
        let (breaker, now, current) = (&self.state.breaker, Instant::now(), self.state.now().ok());
        let range = current.and_then(|it| it.connection.slot_range(&RedisRequest::Many(commands)));
        let permit = range.filter(|_| error.is_redirection()).and_then(|range| breaker.admit(range, now));
        let _opens = permit.is_some_and(|permit| breaker.timed_out(permit, now));
    }

    /// Sends a command to every primary; returns their answers in no particular order.
    pub(super) async fn send_to_every_primary(&self, cmd: &Cmd) -> Result<Vec<Value>, CommandError> {
        let run = async |connection: &mut CommandConnection| connection.every_primary(cmd).await;
        self.exchange(RedisRequest::EveryPrimary, Instant::now(), run, |_| true).await
    }

    async fn exchange<T>(
        &self,
        request: RedisRequest<'_>,
        sent_at: Instant,
        run: impl AsyncFnOnce(&mut CommandConnection) -> RedisResult<T>,
        works: impl FnOnce(&T) -> bool,
    ) -> Result<T, CommandError> {
        let CurrentConnection { number, mut connection } = self.state.now()?;
        let breaker = &self.state.breaker;
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
                self.state.report_silence(number, SILENT);
            }
            return Err(CommandError::unavailable(SILENT));
        }
        let is_cluster = matches!(connection, CommandConnection::Cluster(_));
        permit.into_iter().for_each(|permit| breaker.failed(permit, &error, is_cluster, sent_at));
        if error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.state.report_broken(number, &reason(&error));
        }
        Err(error.into())
    }
}
