//! A connection to one Redis server that restores itself.
//!
//! # What it promises
//!
//! A command is sent at most once, within the store's timeout. After an error it may or may not have taken effect;
//! nothing sends it again behind the caller's back, because the token of a lease serves one attempt. Without a connection,
//! commands fail at once. A server that is silent (stopped, or behind a stalled network) costs the timeout a few times
//! only: then the [`breaker`](super::breaker) fails commands at once as well, and a background task, not a caller, finds
//! out when the server is back. A server that is no primary any more is not believed (see [`role`](super::role)).
//!
//! The [`supervisor`](super::supervisor) restores it, until it is dropped.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisResult, ServerErrorKind, Value};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use crate::patience::Expired;
use crate::same_server::Member;
use crate::shutdown::Shutdown;

use super::client::ServerClient;
use super::connection_state::{ConnectionState, CurrentConnection};
use super::error::{CommandError, reason};
use super::role::{self, RoleCheck};
use super::supervisor::Supervisor;

/// The reason while a server answers nothing, also while it is not asked.
pub(super) const SILENT: &str = "the server does not answer";

/// A connection to one server.
#[derive(Debug)]
pub(super) struct ServerConnection {
    state: Arc<ConnectionState>,
    /// Ends the supervisor.
    _supervised: DropGuard,
}

impl ServerConnection {
    /// Creates a connection, which is a `member` of those to its server; its task starts at once. `timeout` is that of a command.
    pub(super) fn open(
        client: ServerClient,
        role: RoleCheck,
        timeout: Duration,
        member: Member,
        shutdown: &Shutdown,
    ) -> Self {
        let state = Arc::new(ConnectionState::new(role));
        let (until_dropped, guard) = shutdown.until_dropped();
        shutdown.spawn(Supervisor::new(client, Arc::clone(&state), timeout, member, until_dropped).run());
        Self { state, _supervised: guard }
    }

    /// Waits until there is a connection; the caller limits the time.
    pub(super) async fn connected(&self) {
        self.state.connected().await;
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, CommandError> {
        let now = Instant::now();
        if self.state.role.is_due(now) {
            // Boxed, so that the future of every other command stays small.
            return Box::pin(self.send_to_primary(cmd, now)).await;
        }
        // Every hit comes here: this call avoids the boxed future of the library's trait.
        let run =
            async |connection: &mut MultiplexedConnection| connection.send_packed_command(cmd).await?.extract_error();
        self.exchange(now, run, |_| true).await
    }

    /// Sends commands together; returns the answer to each, which may be an error of the server.
    pub(super) async fn send_each(&self, commands: &Pipeline) -> Result<Vec<Value>, CommandError> {
        let now = Instant::now();
        if self.state.role.is_due(now) {
            return Box::pin(self.send_each_to_primary(commands, now)).await;
        }
        let run = async |connection: &mut MultiplexedConnection| {
            connection.send_packed_commands(commands, 0, commands.len()).await
        };
        self.exchange(now, run, |_| true).await
    }

    /// Sends a command with the question for the role of the server.
    async fn send_to_primary(&self, cmd: &Cmd, now: Instant) -> Result<Value, CommandError> {
        let mut only = redis::pipe();
        only.add_command(cmd.clone());
        let answer = self.send_each_to_primary(&only, now).await?.pop().unwrap_or(Value::Nil);
        Ok(answer.extract_error()?)
    }

    async fn send_each_to_primary(&self, commands: &Pipeline, now: Instant) -> Result<Vec<Value>, CommandError> {
        let run = async |connection: &mut MultiplexedConnection| role::ask_with(connection, commands).await;
        let (answers, _) = self.exchange(now, run, |_| true).await?;
        self.state.role.confirm(now);
        Ok(answers)
    }

    /// Sends commands one after the other; returns `count` answers after the first `skipped` ones. If they do not show
    /// that the server `works`, they count as unanswered.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        (skipped, count): (usize, usize),
        works: impl FnOnce(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        let run = async |connection: &mut MultiplexedConnection| {
            let answers = connection.send_packed_commands(commands, skipped, count).await?;
            answers.into_iter().map(Value::extract_error).collect::<RedisResult<Vec<Value>>>()
        };
        self.exchange(Instant::now(), run, |answers: &Vec<Value>| works(answers)).await
    }

    async fn exchange<T>(
        &self,
        sent_at: Instant,
        run: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
        works: impl FnOnce(&T) -> bool,
    ) -> Result<T, CommandError> {
        let CurrentConnection { number, mut connection, patience, .. } = self.state.now()?;
        let breaker = &self.state.breaker;
        let Some(permit) = breaker.admit(sent_at) else { return Err(CommandError::unavailable(SILENT)) };
        let error = match patience.answer(pin!(run(&mut connection))).await {
            Ok(Ok(answer)) => {
                if works(&answer) {
                    breaker.answered(sent_at);
                } else {
                    breaker.timed_out(permit, Instant::now());
                }
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(Expired::Silent) => io::Error::from(io::ErrorKind::TimedOut).into(),
            Err(Expired::Slow) => return Err(CommandError::slow()),
        };
        if error.is_timeout() {
            if breaker.timed_out(permit, Instant::now()) {
                self.state.report_broken(number, SILENT);
            }
            return Err(CommandError::unavailable(SILENT));
        }
        // A broken connection is not counted: it is restored.
        if !error.is_io_error() {
            breaker.answered(sent_at);
        }
        if error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.state.report_broken(number, &reason(&error));
        }
        Err(error.into())
    }
}
