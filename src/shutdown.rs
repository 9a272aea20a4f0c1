//! Shutdown as an argument.
//!
//! Whoever runs in the background gets a [`Shutdown`]: it learns from it that it is time to go,
//! and everything it spawns is tracked by it. [`Controller::drain`] asks everyone to go and waits
//! for them until one deadline; what is still running then is named in the log by its count and left
//! behind, never waited for without end.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Knows when to stop, and keeps track of what is still running. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

/// Ends what a [`Shutdown`] was given to.
#[derive(Debug)]
pub struct Controller {
    shutdown: Shutdown,
}

impl Shutdown {
    /// Makes a shutdown and the controller that triggers it.
    #[must_use]
    pub fn new() -> (Controller, Self) {
        let shutdown = Self::default();
        (Controller { shutdown: shutdown.clone() }, shutdown)
    }

    /// Waits until it is time to stop. Cancel-safe.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Tells whether it is time to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
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
/// Where signals cannot be listened for there is nothing to wait for, and it never returns.
pub async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be listened for");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

impl Controller {
    /// Asks everyone to stop and waits until all tracked tasks have ended, at most `deadline` long.
    ///
    /// Returns whether all of them have.
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
