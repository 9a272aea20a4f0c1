//! How long the parts of a fetch take. The parts are deep below the port, so they add their times to those of the task.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

tokio::task_local! {
    /// How long the fetch of this task has waited for a token, and for a new connection.
    static PARTS: Cell<(Duration, Duration)>;
}

/// How long a fetch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchTimes {
    /// All of it, retries included.
    pub whole: Duration,
    /// The part of it that was spent waiting for a token.
    pub token: Duration,
    /// The part of it that was spent connecting to Genesys.
    pub connect: Duration,
}

impl FetchTimes {
    /// Runs a fetch and sets its times.
    pub async fn measure<T>(fetch: impl Future<Output = T>, times: &mut Self) -> T {
        let started = Instant::now();
        let parts = async { (fetch.await, PARTS.with(Cell::get)) };
        let (fetched, (token, connect)) = PARTS.scope(Cell::default(), parts).await;
        // Requests at the same time may wait longer together than the fetch took.
        let whole = started.elapsed();
        let token = token.min(whole);
        *times = Self { whole, token, connect: connect.min(whole.saturating_sub(token)) };
        fetched
    }

    /// Adds the parts of a fetch that another task has measured to those of the fetch of this task.
    pub fn add_to_task(self) {
        add(self.token, self.connect);
    }
}

/// Adds a wait for a token to the times of the fetch that is measured, if any.
pub(super) fn waited_for_token(since: Instant) {
    add(since.elapsed(), Duration::ZERO);
}

fn add(token: Duration, connect: Duration) {
    // Most fetches of tests are not measured, and a connection that lost the race for a request is made by another task.
    let _ = PARTS.try_with(|parts| {
        let (waited, connecting) = parts.get();
        parts.set((waited + token, connecting + connect));
    });
}

/// Adds the time that a connector needs to the times of the fetch that waits for the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimedConnections;

/// A connector whose time is added; see [`TimedConnections`].
#[derive(Clone, Debug)]
pub(super) struct TimedConnector<S>(S);

impl<S> Layer<S> for TimedConnections {
    type Service = TimedConnector<S>;

    fn layer(&self, connector: S) -> TimedConnector<S> {
        TimedConnector(connector)
    }
}

impl<S, R> Service<R> for TimedConnector<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async move {
            let since = Instant::now();
            let connected = connecting.await;
            add(Duration::ZERO, since.elapsed());
            connected
        })
    }
}
