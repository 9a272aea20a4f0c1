//! The state of a connection that its users and its supervisor share.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::sync::{Notify, watch};

use crate::patience::Patience;

use super::breaker::ServerBreaker;
use super::error::CommandError;
use super::role::RoleCheck;
use super::sentinels::MOVED;

/// The state of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    /// The present connection, or why there is none.
    current: watch::Sender<Result<CurrentConnection, Arc<str>>>,
    /// Notified when the current connection is broken.
    pub(super) broken: Notify,
    pub(super) breaker: ServerBreaker,
    pub(super) role: RoleCheck,
}

/// A numbered connection. The number keeps a late report about an old connection from closing the new one.
#[derive(Clone)]
pub(super) struct CurrentConnection {
    pub(super) number: u64,
    /// What [`RoleCheck::connected`] returned for it.
    pub(super) moves: u64,
    pub(super) connection: MultiplexedConnection,
    /// Its own: what the next connection answers says nothing about the commands on this one.
    pub(super) patience: Arc<Patience>,
}

impl std::fmt::Debug for CurrentConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CurrentConnection({})", self.number)
    }
}

impl ConnectionState {
    /// Creates the state before the first connection.
    pub(super) fn new(role: RoleCheck) -> Self {
        Self {
            current: watch::Sender::new(Err("not connected yet".into())),
            broken: Notify::new(),
            breaker: ServerBreaker::new(),
            role,
        }
    }

    /// Waits until there is a connection.
    pub(super) async fn connected(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.current.subscribe().wait_for(Result::is_ok).await;
    }

    /// Returns the present connection.
    ///
    /// # Errors
    ///
    /// There is none, or sentinels have named another master since it was made; with the reason.
    pub(super) fn now(&self) -> Result<CurrentConnection, CommandError> {
        let current = self.current.borrow().clone().map_err(|reason| CommandError::unavailable(&reason))?;
        if self.role.has_moved(current.moves) {
            self.report_broken(current.number, MOVED);
            return Err(CommandError::unavailable(MOVED));
        }
        Ok(current)
    }

    /// Returns why there is no connection.
    pub(super) fn why_down(&self) -> Option<String> {
        self.current.borrow().as_ref().err().map(ToString::to_string)
    }

    /// Starts the use of a connection.
    pub(super) fn connected_by(&self, current: CurrentConnection) {
        // What is replaced, the old connection or the reason, is of no use.
        drop(self.current.send_replace(Ok(current)));
    }

    /// Records why no connection could be made. A connection that is still in use stays.
    pub(super) fn refused(&self, reason: &str) {
        self.current.send_if_modified(|current| {
            let is_down = current.is_err();
            if is_down {
                *current = Err(format!("not connected: {reason}").into());
            }
            is_down
        });
    }

    /// Stops the use of a connection and requests a new one.
    pub(super) fn report_broken(&self, number: u64, reason: &str) {
        let removed = self.current.send_if_modified(|current| {
            let broken = current.as_ref().is_ok_and(|now| now.number == number);
            if broken {
                *current = Err(format!("not connected: {reason}").into());
            }
            broken
        });
        if removed {
            self.broken.notify_one();
        }
    }
}
