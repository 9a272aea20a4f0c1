//! Shutdown as an argument.
//!
//! Every background task gets a [`Shutdown`], which signals when to stop and tracks all spawned tasks.
//! [`Controller::drain`] requests the stop and waits for the tasks until a deadline. The log then reports the number of
//! tasks that still run; they are abandoned.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Signals when to stop, and tracks the running tasks. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

/// Requests the stop of a [`Shutdown`].
#[derive(Debug)]
pub struct Controller {
    shutdown: Shutdown,
}

impl Shutdown {
    /// Creates a shutdown and its controller.
    #[must_use]
    pub fn new() -> (Controller, Self) {
        let shutdown = Self::default();
        (Controller { shutdown: shutdown.clone() }, shutdown)
    }

    /// Waits for the stop request. Cancel-safe.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Returns whether the stop was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Creates a shutdown that is requested when this one is, or when the guard is dropped.
    pub(crate) fn until_dropped(&self) -> (Self, DropGuard) {
        let token = self.token.child_token();
        (Self { token: token.clone(), tasks: self.tasks.clone() }, token.drop_guard())
    }

    /// Spawns a task that the drain waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }
}

/// Waits for SIGINT or SIGTERM.
///
/// If the process cannot listen for signals, it never returns.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("cannot listen for signals");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

impl Controller {
    /// Requests the stop and waits for all tracked tasks, for at most `deadline`.
    ///
    /// Returns whether all tasks have ended.
    pub async fn drain(self, deadline: Duration) -> bool {
        self.shutdown.token.cancel();
        self.shutdown.tasks.close();
        let drained = tokio::time::timeout(deadline, self.shutdown.tasks.wait()).await.is_ok();
        if !drained {
            tracing::warn!(tasks = self.shutdown.tasks.len(), "tasks were still running at the shutdown deadline");
        }
        drained
    }
}
