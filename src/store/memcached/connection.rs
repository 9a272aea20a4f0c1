//! A connection to one server that restores itself.
//!
//! # What it promises
//!
//! Commands are sent at most once, within the store's timeout; after an error they may or may not have taken effect. All
//! commands of an operation are sent on one connection: a [`Session`] never changes to another, because the versions of values
//! mean something only on the connection that read them.
//!
//! Without a connection commands fail at once. A server that is silent (stopped, or behind a stalled network) costs the
//! timeout once: then the connection is closed. The next one is used only after the server has answered on it, so a
//! background task, not a caller, finds out when the server is back. Where a name leads to the server, a connection is
//! replaced after its age, the new one first, and all connections lead to the same server ([`SameServer`](crate::same_server::SameServer)).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use crate::invalid::InvalidSetting;
use crate::patience::{Expired, Patience};
use crate::same_server::{Due, Member};
use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::supervise::Backoff;

use super::config::{Config, Server};
use super::connector::{Carrier, Connected, Connector};
use super::link::Link;
use super::protocol::{Answer, Requests};

/// How long connecting may take, at least.
const CONNECT: Duration = Duration::from_secs(1);

/// How long the operations of a replaced connection may take.
const DRAIN: Duration = Duration::from_secs(10);

/// How often an operation begins again, however long that takes. Each time another one has succeeded, so only a process that
/// lacks processor time needs longer than the store's timeout for it; a redelivery would cost it more.
const ATTEMPTS: u32 = 8;

/// After a connection that lasted this long, the next failure is reported again.
const QUIET: Duration = Duration::from_secs(30);

/// A connection that restores itself; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Connection(Arc<State>);

#[derive(Debug)]
struct State {
    server: Server,
    current: watch::Sender<Result<Arc<CurrentConnection>, Arc<str>>>,
    /// That of a command.
    timeout: Duration,
}

/// A connection and its silence: what the next one answers says nothing about the commands on this one.
#[derive(Debug)]
struct CurrentConnection {
    link: Link,
    patience: Patience,
    /// Notified when the server is silent.
    silent: Notify,
}

/// The connection of one operation.
#[derive(Debug)]
pub(super) struct Session<'a> {
    state: &'a State,
    connection: Arc<CurrentConnection>,
    began: Instant,
    /// How often a key has changed under the operation.
    conflicts: AtomicU32,
}

impl Connection {
    /// Creates a connection, one of those to the same server; its task starts at once.
    ///
    /// # Errors
    ///
    /// The certificates cannot be used.
    pub(super) fn open(
        config: &Config,
        server: &Server,
        timeout: Duration,
        member: Member,
        shutdown: &Shutdown,
    ) -> Result<Self, InvalidSetting> {
        let state = Arc::new(State {
            server: server.clone(),
            current: watch::Sender::new(Err("not connected yet".into())),
            timeout,
        });
        let connector = Connector::new(config, server, timeout.max(CONNECT))?;
        shutdown.spawn(supervise(connector, Arc::clone(&state), member, shutdown.clone()));
        Ok(Self(state))
    }

    /// Waits for the first connection; the caller limits the time.
    pub(super) async fn connected(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.0.current.subscribe().wait_for(Result::is_ok).await;
    }

    /// Begins an operation.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub(super) fn session(&self) -> Result<Session<'_>, Error> {
        let state = &*self.0;
        let connection = state.current.borrow().clone().map_err(|why| state.unavailable(&why))?;
        Ok(Session { state, connection, began: Instant::now(), conflicts: AtomicU32::new(0) })
    }
}

impl Session<'_> {
    /// Sends commands together; returns their answers.
    pub(super) async fn run_all(&self, requests: Requests) -> Result<Vec<Answer>, Error> {
        let CurrentConnection { link, patience, silent } = &*self.connection;
        match patience.answer(pin!(link.run(requests))).await {
            Ok(Some(answers)) => Ok(answers),
            Ok(None) => Err(self.state.unavailable("the connection is broken")),
            Err(Expired::Silent) => {
                silent.notify_one();
                Err(self.state.unavailable("the server does not answer"))
            }
            Err(Expired::Slow) => {
                Err(Error::Slow { reason: "memcached answers others, or this process lacks processor time".to_owned() })
            }
        }
    }

    /// Allows the operation to begin again because a key changed under it.
    ///
    /// # Errors
    ///
    /// It has taken longer than the store's timeout, and several attempts: others change the same keys all the time.
    pub(super) fn try_again(&self) -> Result<(), Error> {
        let conflicts = self.conflicts.fetch_add(1, Ordering::Relaxed);
        if conflicts < ATTEMPTS || self.began.elapsed() < self.connection.patience.timeout() {
            return Ok(());
        }
        Err(Error::Slow { reason: "others change the same keys of memcached all the time".to_owned() })
    }

    /// As [`run_all`](Self::run_all), for a fixed number of commands.
    pub(super) async fn run<const N: usize>(&self, requests: Requests) -> Result<[Answer; N], Error> {
        self.run_all(requests).await?.try_into().map_err(|_| unexpected())
    }
}

impl State {
    /// Starts the use of a connection.
    fn connected_by(&self, link: Link) -> Arc<CurrentConnection> {
        let patience = Patience::new(self.timeout);
        let connection = Arc::new(CurrentConnection { link, patience, silent: Notify::new() });
        drop(self.current.send_replace(Ok(Arc::clone(&connection))));
        connection
    }

    /// Records why there is no connection.
    fn not_connected(&self, why: &str) {
        drop(self.current.send_replace(Err(format!("not connected: {why}").into())));
    }

    fn unavailable(&self, why: &str) -> Error {
        Error::Unavailable { reason: format!("memcached {}: {why}", self.server) }
    }
}

/// The error of an answer that does not belong to its command.
pub(super) fn unexpected() -> Error {
    Error::Rejected { reason: "memcached gave an unexpected answer".to_owned() }
}

/// Connects until shutdown.
async fn supervise(connector: Connector, state: Arc<State>, mut member: Member, shutdown: Shutdown) {
    let (mut failing, mut logged) = (false, String::new());
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let attempt = member.attempt();
        let connected = tokio::select! {
            () = shutdown.requested() => return,
            connected = connector.connect(attempt.address()) => connected,
        };
        match connected {
            Ok(Connected { link, carrier, address }) => {
                backoff.reset();
                failing = false;
                let since = Instant::now();
                tracing::debug!(server = %state.server, %address, "connected to memcached");
                member.connected(attempt, Some(address));
                let current = state.connected_by(link);
                let held = hold(&connector, &state, &mut member, (carrier, current), &shutdown);
                let Some(why) = held.await else { return };
                state.not_connected(&why);
                // A server that is connected to again and again, for the same reason, is reported once.
                if why != logged || since.elapsed() > QUIET {
                    tracing::warn!(server = %state.server, why, "the memcached connection is not usable, reconnecting");
                    logged = why;
                }
            }
            Err(why) => {
                // There is no connection that could stay in use.
                let _ = member.failed(attempt);
                state.not_connected(&why);
                if !failing {
                    tracing::warn!(server = %state.server, why, "memcached cannot be reached, retrying until it answers");
                    failing = true;
                }
                backoff.pause(&shutdown).await;
            }
        }
    }
}

/// Carries a connection until it ends, and replaces it when it has reached its age, or when another one was made. Returns why
/// it ended; `None` on shutdown.
async fn hold(
    connector: &Connector,
    state: &State,
    member: &mut Member,
    (mut carrier, mut current): (Carrier, Arc<CurrentConnection>),
    shutdown: &Shutdown,
) -> Option<String> {
    loop {
        let due = tokio::select! {
            () = shutdown.requested() => {
                // What is drained still uses this connection. It ends with the last use of the store, which no task may wait for.
                tokio::spawn(carrier);
                return None;
            }
            why = &mut carrier => return Some(why),
            () = current.silent.notified() => return Some("the server does not answer".to_owned()),
            due = member.due() => due,
        };
        let attempt = match due {
            Due::Aged => member.attempt(),
            Due::Behind => member.follow(),
            Due::Elsewhere => return Some("its name leads to another server".to_owned()),
        };
        // The old connection goes on meanwhile.
        let connected = tokio::select! {
            connected = connector.connect(attempt.address()) => connected,
            why = &mut carrier => return Some(why),
        };
        match connected {
            Ok(Connected { link, carrier: next, address }) => {
                member.connected(attempt, Some(address));
                current = state.connected_by(link);
                let old = std::mem::replace(&mut carrier, next);
                shutdown.spawn(timeout(DRAIN, old));
            }
            Err(why) if member.failed(attempt) => {
                tracing::debug!(server = %state.server, why, "could not replace a connection, trying again later");
            }
            Err(why) => return Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(250);

    /// Returns a connection to a server that never answers.
    fn unanswered() -> Connection {
        let state = State {
            server: Server { host: "memcached".to_owned(), port: 11211 },
            current: watch::Sender::new(Err("not connected yet".into())),
            timeout: TIMEOUT,
        };
        state.connected_by(link());
        Connection(Arc::new(state))
    }

    fn link() -> Link {
        let (ours, theirs) = tokio::io::duplex(1);
        let (link, carrier) = Link::over(ours);
        tokio::spawn(async {
            carrier.await;
            drop(theirs);
        });
        link
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_and_the_next_one_know_nothing_of_each_others_silence() {
        let connection = unanswered();
        let (old, began) = (connection.session().unwrap(), Instant::now());
        let next = connection.0.connected_by(link());
        let others = async {
            loop {
                tokio::time::sleep(TIMEOUT / 5).await;
                next.patience.answered();
            }
        };
        tokio::select! {
            outcome = old.run_all(Requests::default().get("key")) => {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            }
            () = others => {}
        }
        assert!(next.silent.notified().now_or_never().is_none(), "the next connection would be closed");
        assert!(began.elapsed() >= TIMEOUT && began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn conflicts_end_an_operation_only_after_time_and_attempts() {
        let connection = unanswered();
        // A process without processor time: the first round takes longer than the timeout.
        let starved = connection.session().unwrap();
        tokio::time::advance(TIMEOUT * 2).await;
        for _ in 0..ATTEMPTS {
            starved.try_again().unwrap();
        }
        assert!(matches!(starved.try_again(), Err(Error::Slow { .. })));
        // Others change the key: it may try as often as the timeout allows.
        let contended = connection.session().unwrap();
        for _ in 0..=ATTEMPTS {
            contended.try_again().unwrap();
        }
        tokio::time::advance(TIMEOUT).await;
        assert!(matches!(contended.try_again(), Err(Error::Slow { .. })));
    }
}
