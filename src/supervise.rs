//! Retries with exponential backoff and jitter: one policy for all loops that reconnect or try again. And work that blocks.
//!
//! The delay doubles from a first value up to a longest one. Each delay is randomised by ±50 %, so that
//! processes that failed together do not retry together. A [`Backoff`] never gives up; a caller with a
//! time limit checks its own deadline.

use std::panic::resume_unwind;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::shutdown::Shutdown;

/// Runs work that may block, such as reading a file, on a thread for that. Its panic is the caller's.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
}

/// The delays between the attempts of one loop.
#[derive(Clone, Debug)]
pub struct Backoff(ExponentialBackoff);

impl Backoff {
    /// Creates a backoff whose delays double from `first` to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self(ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            multiplier: 2.0,
            max_interval: longest,
            // The library's default gives up after 15 minutes.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        })
    }

    /// Returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Starts again at the first delay. To be called after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// Starts again at the first delay, if what the last attempt opened lasted for the longest delay or more.
    pub fn reset_after(&mut self, lasted: Duration) {
        if lasted >= self.0.max_interval {
            self.reset();
        }
    }

    /// Waits for the next delay; a requested shutdown ends the wait early.
    pub async fn pause(&mut self, shutdown: &Shutdown) {
        self.pause_until(shutdown.requested()).await;
    }

    /// Waits for the next delay; the completion of `end` ends the wait early.
    pub async fn pause_until(&mut self, end: impl Future<Output = ()>) {
        // The caller checks which of the two it was.
        let _ = timeout(self.next_delay(), end).await;
    }
}

impl Default for Backoff {
    /// The policy for reconnecting to a queue or a store: from 100 ms to 5 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);

    fn assert_around(delay: Duration, expected: Duration) {
        assert!(delay >= expected / 2 && delay <= expected * 3 / 2, "{delay:?} is not around {expected:?}");
    }

    #[test]
    fn delays_double_up_to_the_longest_and_never_end() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for expected in [100, 200, 400, 800] {
            assert_around(backoff.next_delay(), Duration::from_millis(expected));
        }
        for _ in 0..100 {
            assert_around(backoff.next_delay(), LONGEST);
        }
    }

    #[test]
    fn reset_returns_to_the_first_delay() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for _ in 0..10 {
            backoff.next_delay();
        }
        backoff.reset_after(LONGEST / 2);
        assert_around(backoff.next_delay(), LONGEST);
        backoff.reset_after(LONGEST);
        assert_around(backoff.next_delay(), FIRST);
        backoff.reset();
        assert_around(backoff.next_delay(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_a_pause_early() {
        let (controller, shutdown) = Shutdown::new();
        let (started, mut backoff) = (Instant::now(), Backoff::new(LONGEST, LONGEST));
        tokio::join!(backoff.pause(&shutdown), controller.drain(LONGEST));
        assert!(started.elapsed() < LONGEST / 2);
        let (_controller, shutdown) = Shutdown::new();
        backoff.pause(&shutdown).await;
        assert!(started.elapsed() >= LONGEST / 2);
    }
}
