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
