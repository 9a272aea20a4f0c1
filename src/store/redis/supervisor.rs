//! The task that keeps a connection to Redis up.
//!
//! It connects, with backoff and without a limit of attempts, and shares the connection. It connects again after a caller
//! reports that the connection is broken: the server closed it, it is no primary any more, or the breaker opened. Where
//! there are sentinels, it first asks them for the master; and it asks them every second whether that has changed,
//! because a master that is cut off from them goes on answering. Once a connection leads to another master, the others of
//! this process are of no use.
//!
//! Where a name leads to the server, a connection is replaced after its age, so that the name is resolved again. The
//! new connection is made first, and commands in flight keep the old one: no command fails because of it. Then the other
//! connections are replaced too, so that all lead to the same server ([`SameServer`](crate::same_server::SameServer)).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::patience::Patience;
use crate::same_server::{Attempt, Due, Member};
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::client::{CONNECT_TIMEOUT, ServerClient};
use super::connection_state::{ConnectionState, CurrentConnection};
use super::error::reason;
use super::role;
use super::sentinels::MOVED;

/// After a connection that lasted this long, the next failure is reported again.
const QUIET: Duration = Duration::from_secs(30);

/// Keeps a connection up.
pub(super) struct Supervisor {
    client: ServerClient,
    state: Arc<ConnectionState>,
    /// That of a command.
    timeout: Duration,
    member: Member,
    shutdown: Shutdown,
    /// The number of the last connection.
    number: u64,
}

/// Why a connection is not held any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldEnd {
    Shutdown,
    Broken,
    /// The sentinels name another master.
    Moved,
    /// It is to be replaced.
    Due(Due),
}

impl Supervisor {
    pub(super) fn new(
        client: ServerClient,
        state: Arc<ConnectionState>,
        timeout: Duration,
        member: Member,
        shutdown: Shutdown,
    ) -> Self {
        Self { client, state, timeout, member, shutdown, number: 0 }
    }

    /// Connects until shutdown.
    pub(super) async fn run(mut self) {
        let (shutdown, server) = (self.shutdown.clone(), self.client.name());
        let (mut failing, mut logged) = (false, String::new());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let attempt = self.member.attempt();
            let connected = tokio::select! {
                () = shutdown.requested() => return,
                connected = self.connect(attempt) => connected,
            };
            match connected {
                Ok(()) => {
                    backoff.reset();
                    let since = Instant::now();
                    if failing || logged.is_empty() {
                        tracing::info!(server, connection = self.number, "connected to redis");
                    } else {
                        tracing::debug!(server, connection = self.number, "connected to redis again");
                    }
                    failing = false;
                    if self.hold().await == HoldEnd::Shutdown {
                        return;
                    }
                    let reason = self.state.why_down().unwrap_or_default();
                    // A server that is connected to again and again, for the same reason, is reported once.
                    if reason != logged || since.elapsed() > QUIET {
                        tracing::warn!(
                            server,
                            connection = self.number,
                            reason,
                            "the redis connection is not usable, reconnecting"
                        );
                        logged = reason;
                    }
                }
                Err(why) => {
                    self.state.refused(&why);
                    if !failing {
                        tracing::warn!(server, why, "redis cannot be reached, retrying until it answers");
                        failing = true;
                    }
                    backoff.pause(&shutdown).await;
                }
            }
        }
    }

    /// Connects, and starts the use of the connection, which has answered once. Fails with the reason.
    async fn connect(&mut self, attempt: Attempt) -> Result<(), String> {
        let began = Instant::now();
        let connecting = async {
            let mut connection = self.client.connect().await?;
            if !self.state.role.is_on() {
                connection.send_packed_command(&redis::cmd("PING")).await?.extract_error()?;
            } else if !role::ask(&mut connection).await? {
                tracing::warn!("redis does not name its role (HELLO), so it is not noticed if it becomes a replica");
            }
            Ok(connection)
        };
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(reason(&error)),
            Err(_elapsed) => return Err("no connection in time".to_owned()),
        };
        self.number += 1;
        self.state.breaker.connected(Instant::now());
        self.state.role.confirm(began);
        let moves = self.state.role.connected(began, self.client.master());
        // The client library resolves the name itself; the address is not known.
        self.member.connected(attempt, None);
        let patience = Arc::new(Patience::new(self.timeout));
        self.state.connected_by(CurrentConnection { number: self.number, moves, connection, patience });
        Ok(())
    }

    /// Holds the connection until it is broken, and replaces it when it is due.
    async fn hold(&mut self) -> HoldEnd {
        let shutdown = self.shutdown.clone();
        loop {
            let end = tokio::select! {
                // Commands in flight keep the connection that they have.
                () = shutdown.requested() => HoldEnd::Shutdown,
                () = self.state.broken.notified() => HoldEnd::Broken,
                () = self.client.moved() => HoldEnd::Moved,
                due = self.member.due() => HoldEnd::Due(due),
            };
            match end {
                HoldEnd::Shutdown | HoldEnd::Broken => return end,
                HoldEnd::Moved => self.state.report_broken(self.number, MOVED),
                HoldEnd::Due(due) => {
                    let attempt = if due == Due::Aged { self.member.attempt() } else { self.member.follow() };
                    match self.connect(attempt).await {
                        Ok(()) => tracing::debug!(connection = self.number, "replaced the connection to redis"),
                        Err(why) if self.member.failed(attempt) => {
                            tracing::debug!(why, "could not replace the connection to redis, trying again later");
                        }
                        // The others may lead to another server.
                        Err(why) => self.state.report_broken(self.number, &why),
                    }
                }
            }
        }
    }
}
