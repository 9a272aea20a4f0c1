//! Log lines that anyone can cause: at most one of a kind per second, with the number of those that were left out.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The shortest interval between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// One kind of log line. It is a `static` beside the statement that logs it.
#[derive(Debug)]
pub struct Sampled(Mutex<Sample>);

#[derive(Debug)]
struct Sample {
    logged: Option<Instant>,
    suppressed: u64,
}

impl Default for Sampled {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampled {
    /// Creates a kind of which nothing was logged.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Sample { logged: None, suppressed: 0 }))
    }

    /// Returns the number of lines that were left out since the last one if a line is due; otherwise counts it.
    pub fn due(&self) -> Option<u64> {
        let (mut sample, now) = (self.0.lock(), Instant::now());
        if sample.logged.is_some_and(|logged| now - logged < INTERVAL) {
            sample.suppressed += 1;
            return None;
        }
        sample.logged = Some(now);
        Some(std::mem::take(&mut sample.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second_has_the_number_of_the_others() {
        let kind = Sampled::new();
        let lines: Vec<_> = (0..5).filter_map(|_| kind.due()).collect();
        assert_eq!(lines, [0]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!((kind.due(), kind.due()), (Some(4), None));
    }
}
