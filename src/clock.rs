//! Time as a port.
//!
//! Wall-clock time comes only from a [`Clock`], so that a test can control it (a lint bans `SystemTime::now` and
//! `Instant::now` outside this file). Monotonic waits use `tokio::time`, which a test can pause.
//!
//! Wall-clock time labels records (`Age`, expiry) and events (`received_at`). It never orders events: see
//! [`crate::domain::stamps`].

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::domain::time::Timestamp;

/// A source of wall-clock time.
pub trait Clock: Debug + Send + Sync {
    /// Returns the current time, in milliseconds since the Unix epoch.
    fn now(&self) -> Timestamp;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Returns the operating system's clock as a [`SharedClock`].
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system clock")]
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The operating system's clock, set wrong and right again in turns: for the oracle.
#[cfg(feature = "faults")]
#[derive(Debug)]
struct SteppedClock {
    /// By how many milliseconds it is wrong, half of the time.
    by: i64,
}

#[cfg(feature = "faults")]
impl SteppedClock {
    /// How long it is right, and how long wrong, in milliseconds.
    const PERIOD: i64 = 7_000;
}

#[cfg(feature = "faults")]
impl Clock for SteppedClock {
    fn now(&self) -> Timestamp {
        let now = SystemClock.now().as_millis();
        Timestamp::from_millis(if now / Self::PERIOD % 2 == 0 { now } else { now + self.by })
    }
}

/// Returns the clock of the program: the operating system's. If `PROFILE_EDGE_CLOCK_STEP` is a number of seconds, the clock
/// steps by it, and back.
#[cfg(feature = "faults")]
#[must_use]
pub fn of_the_program() -> SharedClock {
    let seconds = std::env::var("PROFILE_EDGE_CLOCK_STEP").ok().and_then(|step| step.parse::<i64>().ok());
    seconds.map_or_else(SystemClock::shared, |seconds| Arc::new(SteppedClock { by: seconds.saturating_mul(1_000) }))
}

/// Returns the clock of the program: the operating system's.
#[cfg(not(feature = "faults"))]
#[must_use]
pub fn of_the_program() -> SharedClock {
    SystemClock::shared()
}

/// A clock that moves only on request, for tests and deterministic tools.
#[derive(Debug)]
pub struct ManualClock(Mutex<Timestamp>);

impl ManualClock {
    /// Returns a clock that shows `now` until [`Self::advance`].
    #[must_use]
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self(Mutex::new(now)))
    }

    /// Moves the clock forward by `by`.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock();
        *now = now.plus(by);
    }

    /// Sets the clock back by `by`.
    pub fn set_back(&self, by: Duration) {
        let mut now = self.0.lock();
        *now = now.minus(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}
