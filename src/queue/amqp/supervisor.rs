//! The supervisor of a connection to the broker: opens it again for as long as the queue is open.
//!
//! # Protocol
//!
//! 1. Connect and run the [`ConnectionSetup`], which declares the topology. Then the connection is up.
//! 2. Watch it. An error of the connection, a broker that is silent for two heartbeats, or a user that finds a fault
//!    ([`OpenConnection::give_up`]) ends it, with everything on it.
//! 3. Wait as [`Backoff`] says, and continue with step 1. A connection that lasted resets the backoff.
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

use super::broker::Broker;
use super::connection::{AmqpConnectionState, ConnectionSetup, OpenConnection, ReadyConnection, SupervisedConnection};

/// The longest time for the setup of a new connection.
const SETUP_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the status of a connection is checked, besides listening to its events.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// Keeps one connection open.
struct Supervisor<S: ConnectionSetup> {
    broker: Arc<Broker>,
    setup: S,
    state: watch::Sender<AmqpConnectionState<S::Resources>>,
    closing: CancellationToken,
    is_patient: Arc<AtomicBool>,
    shutdown: Shutdown,
}

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
        closing: closing.clone(),
        is_patient: Arc::clone(&is_patient),
        shutdown: shutdown.clone(),
    };
    shutdown.spawn(supervisor.run());
    SupervisedConnection { state, closing, is_patient }
}

impl<S: ConnectionSetup> Supervisor<S> {
    async fn run(self) {
        let mut backoff = Backoff::default();
        let (mut was_up, mut logged) = (false, String::new());
        while !self.is_closing() {
            let opened = tokio::select! {
                () = self.close_requested() => break,
                opened = self.open() => opened,
            };
            let reason = match opened {
                Ok((ready, blocked)) => {
                    let since = Instant::now();
                    was_up = true;
                    logged.clear();
                    let reason = self.hold(ready, &blocked).await;
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
            backoff.pause_until(self.close_requested()).await;
        }
        self.state.send_replace(AmqpConnectionState::Closed);
    }

    async fn open(&self) -> Result<(ReadyConnection<S::Resources>, watch::Sender<Option<String>>), Error> {
        let broker = Arc::new(self.broker.connect().await?);
        let (sender, blocked) = watch::channel(None);
        let open = OpenConnection { broker, ended: CancellationToken::new(), blocked };
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

    /// Publishes that the connection is up until it ends. Returns the reason; `None` when a close was requested.
    async fn hold(
        &self,
        ready: ReadyConnection<S::Resources>,
        blocked: &watch::Sender<Option<String>>,
    ) -> Option<String> {
        let open = ready.open.clone();
        tracing::info!(purpose = S::PURPOSE, broker = open.broker.address, "connected to the broker");
        self.state.send_replace(AmqpConnectionState::Up(Arc::new(ready)));
        let reason = tokio::select! {
            () = self.close_requested() => None,
            reason = watch_connection(&open, blocked) => Some(reason),
        };
        if let Some(reason) = &reason {
            self.state.send_replace(AmqpConnectionState::Down(reason.clone()));
        }
        open.give_up();
        open.broker.close().await;
        reason
    }

    fn is_closing(&self) -> bool {
        self.closing.is_cancelled() || self.shutdown.is_requested()
    }

    async fn close_requested(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = self.shutdown.requested() => {}
        }
    }
}

/// Waits until a connection ends, and returns the reason.
async fn watch_connection(open: &OpenConnection, blocked: &watch::Sender<Option<String>>) -> String {
    let mut events = std::pin::pin!(open.connection().events_listener());
    let mut checks = interval(CHECK_EVERY);
    let mut last_error = None;
    loop {
        tokio::select! {
            () = open.ended() => return "something on the connection failed".to_owned(),
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
        // An error of one channel does not end the connection; the channel's owner handles it.
        if !open.connection().status().connected() {
            return last_error.unwrap_or_else(|| "the connection ended".to_owned());
        }
    }
}
