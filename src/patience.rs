//! How long an answer is waited for: of a server, or of other lookups.
//!
//! A timer alone cannot tell a server that is gone from one that is slow, or from a process that had no processor time to
//! read the answer: in a crowd of lookups all three look the same, and each wrong guess sends a lookup past the cache to
//! Genesys. So an answer is *missing* only after [`timeout`](Patience::timeout) of silence, and silence is measured: it
//! starts again whenever anything is answered on the connection, and a slice of it that ended late does not count,
//! because this process was busy, and an answer takes several turns of its event loop. What is neither answered nor
//! missing after [`LONGEST`] timeouts is *slow*.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// How many slices a timeout is measured in.
const SLICES: u32 = 5;

/// How much later than it should a slice may end and still count, as a share of its length: a quarter. On an idle
/// machine it is a millisecond or two.
const PUNCTUAL: u32 = 4;

/// After how many timeouts an answer is not waited for any longer. It is long, because the answers to commands that were
/// given up cannot be counted, and so look like silence to those that follow. Lookups end at their own deadline.
const LONGEST: u32 = 40;

/// Waits for the answers on one connection.
#[derive(Debug)]
pub(crate) struct Patience {
    timeout: Duration,
    /// How many commands have been answered.
    answered: AtomicU64,
}

/// Why an answer is not waited for any longer. Whether the command was executed is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// Nothing was answered for the timeout.
    Silent,
    /// Others were answered meanwhile, or this process did not run.
    Slow,
}

impl Patience {
    pub(crate) const fn new(timeout: Duration) -> Self {
        Self { timeout, answered: AtomicU64::new(0) }
    }

    /// Returns the timeout.
    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Records that something was answered.
    pub(crate) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for an answer. The caller pins it: an async function stores a future that it takes by value twice.
    pub(crate) async fn answer<T>(&self, mut answer: Pin<&mut impl Future<Output = T>>) -> Result<T, Expired> {
        let slice = self.timeout / SLICES;
        let mut began = Instant::now();
        let end = began + self.timeout * LONGEST;
        let (mut silence, mut seen) = (Duration::ZERO, self.answered.load(Ordering::Relaxed));
        loop {
            if let Ok(answer) = timeout_at(began + slice, answer.as_mut()).await {
                self.answered();
                return Ok(answer);
            }
            let (now, answered) = (Instant::now(), self.answered.load(Ordering::Relaxed));
            if answered != seen {
                (silence, seen) = (Duration::ZERO, answered);
            } else if now - began < slice + slice / PUNCTUAL {
                silence += now - began;
            }
            if silence >= self.timeout {
                return Err(Expired::Silent);
            }
            if now >= end {
                return Err(Expired::Slow);
            }
            began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(250);

    #[tokio::test(start_paused = true)]
    async fn silence_of_the_timeout_is_a_missing_answer() {
        let (patience, began) = (Patience::new(TIMEOUT), Instant::now());
        assert_eq!(patience.answer(pin!(pending::<()>())).await, Err(Expired::Silent));
        assert!(began.elapsed() >= TIMEOUT && began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_others_make_it_slow_and_not_missing() {
        let (patience, began) = (Patience::new(TIMEOUT), Instant::now());
        let others = async {
            loop {
                tokio::time::sleep(TIMEOUT / 2).await;
                assert_eq!(patience.answer(pin!(ready(()))).await, Ok(()));
            }
        };
        let never = pin!(pending::<()>());
        tokio::select! {
            expired = patience.answer(never) => assert_eq!(expired, Err(Expired::Slow)),
            () = others => {}
        }
        assert!(began.elapsed() >= TIMEOUT * LONGEST);
    }

    /// The clock jumps as it does for a process that got no processor time.
    #[tokio::test(start_paused = true)]
    async fn time_in_which_this_process_did_not_run_is_no_silence() {
        let patience = Patience::new(TIMEOUT);
        let starved = async {
            for _ in 0..2 {
                tokio::task::yield_now().await;
                tokio::time::advance(TIMEOUT).await;
            }
        };
        let answer = async {
            tokio::time::sleep(TIMEOUT * 2 + TIMEOUT / 2).await;
            "late"
        };
        let answer = pin!(answer);
        let (answer, ()) = tokio::join!(patience.answer(answer), starved);
        assert_eq!(answer, Ok("late"));
    }
}
