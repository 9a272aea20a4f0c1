//! How long the parts of a fetch take. The parts are deep below the port, so they add their times to those of the task.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

tokio::task_local! {
    /// How long the fetch of this task has waited for a token.
    static TOKEN: Cell<Duration>;
}

/// How long a fetch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchTimes {
    /// All of it, retries included.
    pub whole: Duration,
    /// The part of it that was spent waiting for a token.
    pub token: Duration,
}

impl FetchTimes {
    /// Runs a fetch and sets its times.
    pub async fn measure<T>(fetch: impl Future<Output = T>, times: &mut Self) -> T {
        let started = Instant::now();
        let (fetched, token) = TOKEN.scope(Cell::default(), async { (fetch.await, TOKEN.with(Cell::get)) }).await;
        *times = Self { whole: started.elapsed(), token };
        fetched
    }
}

/// Adds a wait for a token to the times of the fetch that is measured, if any.
pub(super) fn waited_for_token(since: Instant) {
    // Most fetches of tests are not measured.
    let _ = TOKEN.try_with(|token| token.set(token.get() + since.elapsed()));
}
