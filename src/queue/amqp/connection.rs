//! A supervised connection to the broker: its handle, its state, and what is set up on it.
//!
//! The [supervisor](super::supervisor) keeps the connection open for as long as the queue is open. Users ask the handle
//! for the present connection and get an error with the reason while there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::queue::Error;

use super::broker::BrokerConnection;

/// Sets up a new connection: declarations, channels, tasks.
#[async_trait]
pub(super) trait ConnectionSetup: Send + Sync + 'static {
    /// What is created on the connection and ends with it.
    type Resources: Send + Sync + 'static;

    /// The purpose of the connection, for the log.
    const PURPOSE: &'static str;

    /// Sets up a new connection.
    async fn set_up(&self, connection: &OpenConnection) -> Result<Self::Resources, Error>;
}

/// An open connection. Cloning shares it; while there is a clone, a connection that was replaced goes on.
#[derive(Clone, Debug)]
pub(super) struct OpenConnection {
    pub(super) broker: Arc<BrokerConnection>,
    pub(super) ended: CancellationToken,
    /// Cancelled when another connection has taken its place.
    pub(super) replaced: CancellationToken,
    pub(super) blocked: watch::Receiver<Option<String>>,
}

impl OpenConnection {
    /// Returns the connection of the library.
    pub(super) fn connection(&self) -> &lapin::Connection {
        &self.broker.connection
    }

    /// Returns the broker's major version, if it is known.
    pub(super) fn major(&self) -> Option<u32> {
        self.broker.major
    }

    /// Waits until the connection ends. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Waits until another connection has taken the place of this one, which goes on until it is not used any more.
    /// Cancel-safe.
    pub(super) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    /// Ends the connection, so that the supervisor opens a new one.
    pub(super) fn give_up(&self) {
        self.ended.cancel();
    }

    /// Succeeds if the broker accepts messages on this connection.
    pub(super) fn accepts_messages(&self) -> Result<(), Error> {
        self.blocked.borrow().as_deref().map_or(Ok(()), |reason| Err(blocked(reason)))
    }

    /// Waits until the broker accepts no messages, and returns the reason. Cancel-safe.
    pub(super) async fn until_blocked(&self) -> String {
        let mut blocked = self.blocked.clone();
        match blocked.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => reason.unwrap_or_default(),
            // The supervisor is gone, so the connection has ended, which callers wait for too.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Returns the error of a broker that accepts no messages.
pub(super) fn blocked(reason: &str) -> Error {
    Error::Unavailable { reason: format!("the broker accepts no messages: {reason}") }
}

/// A connection that is set up, and the resources on it.
#[derive(Debug)]
pub(super) struct ReadyConnection<R> {
    /// The connection.
    pub(super) open: OpenConnection,
    /// What was set up on it.
    pub(super) resources: R,
}

/// The state of a supervised connection.
#[derive(Debug)]
pub(super) enum AmqpConnectionState<R> {
    Down(String),
    Up(Arc<ReadyConnection<R>>),
    Refused(Error),
    Closed,
}

/// What opening the queue does while the broker does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerAbsence {
    /// It waits for the broker, without a time limit.
    Wait,
    /// It ends after the first attempt, and publishers get errors at once until the broker answers: events that are not
    /// confirmed go elsewhere.
    GoOn,
}

/// The handle of a supervised connection.
#[derive(Debug)]
pub(super) struct SupervisedConnection<R> {
    pub(super) state: watch::Receiver<AmqpConnectionState<R>>,
    pub(super) closing: CancellationToken,
    /// Set when a refusal of the broker is no reason to give up, although the connection was never up.
    pub(super) is_patient: Arc<AtomicBool>,
}

impl<R: Send + Sync + 'static> SupervisedConnection<R> {
    /// Returns the connection; waits for one until `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] with the reason if there is none; [`Error::Misconfigured`] if there will be none.
    pub(super) async fn get(&self, deadline: Instant) -> Result<Arc<ReadyConnection<R>>, Error> {
        if let AmqpConnectionState::Up(ready) = &*self.state.borrow() {
            return Ok(Arc::clone(ready));
        }
        let mut state = self.state.clone();
        // After a timeout the last state has the reason.
        let _ = timeout_at(deadline, state.wait_for(is_not_down)).await;
        self.now()
    }

    /// Returns the connection; waits for one without a time limit.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] or [`Error::Closed`]: there will be none.
    pub(super) async fn get_eventually(&self) -> Result<Arc<ReadyConnection<R>>, Error> {
        let mut state = self.state.clone();
        if state.wait_for(is_not_down).await.is_err() {
            return Err(Error::Closed);
        }
        self.now()
    }

    /// Waits until the connection is up, or until the first attempt to open it has failed, at most until `deadline`. From
    /// then on the supervisor never gives up.
    ///
    /// # Errors
    ///
    /// As of [`get_eventually`](Self::get_eventually): the first attempt found a broker that refuses.
    pub(super) async fn attempt(&self, deadline: Instant) -> Result<(), Error> {
        // Either result is in the state, and so is the reason that there is none.
        let _ = timeout_at(deadline, self.state.clone().changed()).await;
        self.is_patient.store(true, Ordering::Release);
        match self.now() {
            Ok(_) | Err(Error::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the connection, if there is one now.
    ///
    /// # Errors
    ///
    /// As of [`SupervisedConnection::get`].
    pub(super) fn now(&self) -> Result<Arc<ReadyConnection<R>>, Error> {
        match &*self.state.borrow() {
            AmqpConnectionState::Up(ready) => Ok(Arc::clone(ready)),
            AmqpConnectionState::Down(reason) => Err(Error::Unavailable { reason: reason.clone() }),
            AmqpConnectionState::Refused(error) => Err(error.clone()),
            AmqpConnectionState::Closed => Err(Error::Closed),
        }
    }

    /// Closes the connection for good; waits until it is closed.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        let over = |state: &AmqpConnectionState<R>| {
            matches!(state, AmqpConnectionState::Closed | AmqpConnectionState::Refused(_))
        };
        // An error means that the supervisor has ended.
        let _ = self.state.clone().wait_for(over).await;
    }
}

fn is_not_down<R>(state: &AmqpConnectionState<R>) -> bool {
    !matches!(state, AmqpConnectionState::Down(_))
}
