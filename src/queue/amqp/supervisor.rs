//! The supervisor of a connection to the broker: opens it again for as long as the queue is open.
//!
//! # Protocol
//!
//! 1. Connect and run the [`ConnectionSetup`], which declares the topology. Then the connection is up.
//! 2. Watch it. An error of the connection, a broker that is silent for two heartbeats, or a user that finds a fault
//!    ([`OpenConnection::give_up`]) ends it, with everything on it.
//! 3. Wait as [`Backoff`] says, and continue with step 1. A connection that lasted resets the backoff.
//!
//! Where a name leads to the broker, a connection is replaced after its [`MaxAge`](crate::max_age::MaxAge), so that the name
//! is resolved again. The new one is set up first. The old one goes on until its last user is done: a message that is not
//! confirmed yet, a delivery that is not settled yet, or a replay that reads the journal.
//!
//! The recovery of the library is not used: it gives up, and it does not know which queues need a restore.
//!
//! # Failures
//!
//! While the connection is down its users get the reason at once. A refusal that is final ([`Error::Misconfigured`])
//! ends the supervisor if the connection was never up, unless the start went on without the broker. Later it is retried
//! like any other failure, since an operator may be working on the broker. Failures are logged here, once per new reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Event;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::queue::Error;
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::broker::{Broker, BrokerConnection};
use super::connection::{AmqpConnectionState, ConnectionSetup, OpenConnection, ReadyConnection, SupervisedConnection};

/// The longest time for the setup of a new connection.
const SETUP_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the status of a connection is checked, besides listening to its events.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// How long the last users of a connection that was replaced may take when the queue closes.
const LAST_USERS: Duration = Duration::from_secs(2);

/// Keeps one connection open.
struct Supervisor<S: ConnectionSetup> {
    broker: Arc<Broker>,
    setup: S,
    state: watch::Sender<AmqpConnectionState<S::Resources>>,
    close: CloseRequest,
    is_patient: Arc<AtomicBool>,
}

/// When connections are closed for good.
#[derive(Clone)]
struct CloseRequest {
    closing: CancellationToken,
    shutdown: Shutdown,
}

impl CloseRequest {
    fn is_made(&self) -> bool {
        self.closing.is_cancelled() || self.shutdown.is_requested()
    }

    async fn made(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = self.shutdown.requested() => {}
        }
    }
}

/// A connection that is up, and what reports whether the broker blocks it.
type OpenedConnection<R> = (ReadyConnection<R>, watch::Sender<Option<String>>);

/// Starts to supervise a connection; `shutdown` tracks the task.
pub(super) fn start<S: ConnectionSetup>(
    broker: Arc<Broker>,
    setup: S,
    shutdown: &Shutdown,
) -> SupervisedConnection<S::Resources> {
    let (sender, state) = watch::channel(AmqpConnectionState::Down("not connected yet".to_owned()));
    let (closing, is_patient) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
    let supervisor = Supervisor {
        broker,
        setup,
        state: sender,
        close: CloseRequest { closing: closing.clone(), shutdown: shutdown.clone() },
        is_patient: Arc::clone(&is_patient),
    };
    shutdown.spawn(supervisor.run());
    SupervisedConnection { state, closing, is_patient }
}

impl<S: ConnectionSetup> Supervisor<S> {
    async fn run(self) {
        let mut backoff = Backoff::default();
        let (mut was_up, mut logged) = (false, String::new());
        while !self.close.is_made() {
            let opened = tokio::select! {
                () = self.close.made() => break,
                opened = self.open() => opened,
            };
            let reason = match opened {
                Ok(opened) => {
                    let since = Instant::now();
                    was_up = true;
                    logged.clear();
                    let broker = opened.0.open.broker.address.as_str();
                    tracing::info!(purpose = S::PURPOSE, broker, "connected to the broker");
                    let reason = self.hold(opened).await;
                    backoff.reset_after(since.elapsed());
                    reason
                }
                Err(error @ Error::Misconfigured { .. }) if !was_up && !self.is_patient.load(Ordering::Acquire) => {
                    self.state.send_replace(AmqpConnectionState::Refused(error));
                    return;
                }
                // The error of who asks for the connection has the reason too.
                Err(Error::Unavailable { reason }) => Some(reason),
                Err(error) => Some(error.to_string()),
            };
            let Some(reason) = reason else { break };
            if reason != logged {
                tracing::warn!(purpose = S::PURPOSE, reason, "the connection to the broker is down, reconnecting");
                logged.clone_from(&reason);
            }
            self.state.send_replace(AmqpConnectionState::Down(reason));
            backoff.pause_until(self.close.made()).await;
        }
        self.state.send_replace(AmqpConnectionState::Closed);
    }

    async fn open(&self) -> Result<OpenedConnection<S::Resources>, Error> {
        let broker = Arc::new(self.broker.connect().await?);
        let (sender, blocked) = watch::channel(None);
        let (ended, replaced) = (CancellationToken::new(), CancellationToken::new());
        let open = OpenConnection { broker, ended, replaced, blocked };
        let set_up = timeout(SETUP_TIMEOUT, self.setup.set_up(&open)).await;
        let resources = set_up.unwrap_or_else(|_elapsed| {
            let reason = format!("the broker did not answer within {SETUP_TIMEOUT:?}");
            Err(Error::Unavailable { reason })
        });
        match resources {
            Ok(resources) => Ok((ReadyConnection { open, resources }, sender)),
            Err(error) => {
                open.give_up();
                open.broker.close().await;
                Err(error)
            }
        }
    }

    /// Publishes that the connection is up until it ends, and replaces it at its age. Returns the reason of its end; `None`
    /// when a close was requested.
    async fn hold(&self, (ready, mut blocked): OpenedConnection<S::Resources>) -> Option<String> {
        let mut open = ready.open.clone();
        self.state.send_replace(AmqpConnectionState::Up(Arc::new(ready)));
        let reason = loop {
            let (next, next_blocked) = tokio::select! {
                () = self.close.made() => break None,
                reason = watch_connection(&open.broker, &open.ended, &blocked) => break Some(reason),
                opened = self.renewed() => opened,
            };
            tracing::debug!(
                purpose = S::PURPOSE,
                broker = next.open.broker.address,
                "replaced the connection to the broker"
            );
            let old = std::mem::replace(&mut open, next.open.clone());
            self.state.send_replace(AmqpConnectionState::Up(Arc::new(next)));
            let old_blocked = std::mem::replace(&mut blocked, next_blocked);
            self.close.shutdown.spawn(retire(old, old_blocked, self.close.clone()));
        };
        if let Some(reason) = &reason {
            self.state.send_replace(AmqpConnectionState::Down(reason.clone()));
        }
        open.give_up();
        open.broker.close().await;
        reason
    }

    /// Waits until the present connection has reached its age, and opens the next one.
    async fn renewed(&self) -> OpenedConnection<S::Resources> {
        loop {
            self.broker.max_age.reached().await;
            match self.open().await {
                Ok(opened) => return opened,
                // The present one is still good.
                Err(error) => {
                    tracing::debug!(purpose = S::PURPOSE, %error, "could not replace the connection, trying again later");
                }
            }
        }
    }
}

/// Carries a connection that was replaced until it ends or its last user is done, and closes it.
async fn retire(open: OpenConnection, blocked: watch::Sender<Option<String>>, close: CloseRequest) {
    // Each user has a receiver.
    let OpenConnection { broker, ended, replaced, blocked: receiver } = open;
    drop(receiver);
    replaced.cancel();
    {
        let mut over = std::pin::pin!(async {
            tokio::select! {
                () = blocked.closed() => {}
                _ = watch_connection(&broker, &ended, &blocked) => {}
            }
        });
        tokio::select! {
            () = &mut over => {}
            () = close.made() => {
                // The publishers of messages that are unconfirmed by then have got an error.
                let _ = timeout(LAST_USERS, over).await;
            }
        }
    }
    ended.cancel();
    broker.close().await;
}

/// Waits until a connection ends, and returns the reason.
async fn watch_connection(
    broker: &BrokerConnection,
    ended: &CancellationToken,
    blocked: &watch::Sender<Option<String>>,
) -> String {
    let mut events = std::pin::pin!(broker.connection.events_listener());
    let mut checks = interval(CHECK_EVERY);
    let mut last_error = None;
    loop {
        tokio::select! {
            () = ended.cancelled() => return "something on the connection failed".to_owned(),
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "the broker accepts no messages");
                    blocked.send_replace(Some(reason));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker accepts messages again");
                    blocked.send_replace(None);
                }
                Some(Event::Error(error)) => last_error = Some(error.to_string()),
                Some(_) => {}
                None => return last_error.unwrap_or_else(|| "the connection ended".to_owned()),
            },
            _ = checks.tick() => {}
        }
        // What came before there was a listener, while the connection was set up, made no event.
        let is_blocked = broker.connection.status().blocked();
        if is_blocked != blocked.borrow().is_some() {
            blocked.send_replace(is_blocked.then(|| "it has an alarm".to_owned()));
        }
        // An error of one channel does not end the connection; the channel's owner handles it.
        if !broker.connection.status().connected() {
            return last_error.unwrap_or_else(|| "the connection ended".to_owned());
        }
    }
}
