//! Fixtures of the tests, and how they wait.

pub(crate) mod collector;
pub(crate) mod command;
pub(crate) mod edge;
pub(crate) mod http2;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod servers;
pub(crate) mod tls;

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a test waits for a condition before it fails. It is long, for slow machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Customer `n` of the sandbox.
pub(crate) fn customer(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// Measures for how long a value has not changed. A wait for many things ends when nothing happens any more: how long all of
/// them take depends on the machine.
pub(crate) struct Standstill<T> {
    value: T,
    since: Instant,
}

impl<T: PartialEq> Standstill<T> {
    pub(crate) fn of(value: T) -> Self {
        Self { value, since: Instant::now() }
    }

    /// Returns for how long the value has been this one.
    pub(crate) fn lasts(&mut self, value: T) -> Duration {
        if value != self.value {
            *self = Self::of(value);
        }
        self.since.elapsed()
    }
}

/// Polls until the answer is `Some`.
///
/// # Panics
///
/// It is still `None` after [`PATIENCE`].
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(5)).await;
    }
}
