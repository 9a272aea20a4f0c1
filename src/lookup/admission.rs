//! Admission: in an overload, some lookups are refused at once, so that the others are answered in time.
//!
//! When the store is slower than the lookups that arrive, its reads queue. Without a limit the queue grows until every
//! read is answered after its lookup's deadline: the store works at full speed for nobody. Two observations prevent that:
//!
//! - *Is there a standing queue?* The **minimum** delay of all reads in a short window is above a quarter of the target. A
//!   burst, or one slow shard, leaves some fast reads (`CoDel`, RFC 8289 section 3.1).
//! - *How many reads may queue?* As many as the store answers within the target (Little's law: concurrency = throughput ×
//!   delay). A lookup that finds more reads in progress is refused, before it costs anything.
//!
//! Each window without a standing queue raises the limit by a quarter, until it is far from any load and is removed. So
//! after an overload no state is left that could prolong it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long delays are observed before the limit is set again.
const WINDOW: Duration = Duration::from_millis(100);

/// The share of a lookup's deadline that the read of its entry may take while the store is overloaded: a fifth. The rest
/// is for the fetch of a miss.
const TARGET_SHARE: u32 = 5;

/// The share of the target above which the shortest delay of a window shows a standing queue. It is below the target,
/// because the queue goes on growing while its first reads are answered.
const QUEUE_SHARE: u32 = 4;

/// The limit is never below this, so that one slow read of an idle process refuses nobody.
const MIN_LIMIT: usize = 64;

/// A limit above this is removed.
const MAX_LIMIT: usize = 1 << 20;

/// Decides which lookups may read the store.
#[derive(Debug)]
pub(super) struct Admission {
    /// The delay of reads that is aimed at in an overload.
    target: Duration,
    start: Instant,
    in_progress: AtomicUsize,
    /// The maximum number of reads in progress; `usize::MAX`: no limit.
    limit: AtomicUsize,
    /// The end of the window, in microseconds since `start`.
    window_end: AtomicU64,
    /// The shortest delay of a read in the window, in microseconds.
    shortest: AtomicU64,
    /// The number of reads that the store answered in the window.
    answered: AtomicUsize,
}

/// The permission to read an entry. Dropping it ends the read.
#[must_use]
#[derive(Debug)]
pub(super) struct AdmittedRead<'a> {
    admission: &'a Admission,
    started: Instant,
}

impl Admission {
    /// Creates the admission for lookups whose shortest deadline is `deadline`.
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            target: deadline / TARGET_SHARE,
            start: Instant::now(),
            in_progress: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            window_end: AtomicU64::new(micros(WINDOW)),
            shortest: AtomicU64::new(u64::MAX),
            answered: AtomicUsize::new(0),
        }
    }

    /// Admits a lookup that starts now, or returns `None` in an overload.
    pub(super) fn admit(&self, now: Instant) -> Option<AdmittedRead<'_>> {
        let read = AdmittedRead { admission: self, started: now };
        let others = self.in_progress.fetch_add(1, Ordering::Relaxed);
        (others < self.limit.load(Ordering::Relaxed)).then_some(read)
    }

    fn observe(&self, delay: Duration, now: Instant, answered: bool) {
        self.shortest.fetch_min(micros(delay), Ordering::Relaxed);
        self.answered.fetch_add(usize::from(answered), Ordering::Relaxed);
        let (now, end) = (micros(now - self.start), self.window_end.load(Ordering::Relaxed));
        if now < end {
            return;
        }
        let next = now + micros(WINDOW);
        if self.window_end.compare_exchange(end, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.set_limit(Duration::from_micros(now - end) + WINDOW);
        }
    }

    /// Sets the limit after a window that took `window`.
    fn set_limit(&self, window: Duration) {
        let shortest = Duration::from_micros(self.shortest.swap(u64::MAX, Ordering::Relaxed));
        let answered = self.answered.swap(0, Ordering::Relaxed);
        let current = self.limit.load(Ordering::Relaxed);
        let limit = limit_after(current, shortest > self.target / QUEUE_SHARE, answered, window, self.target);
        self.limit.store(limit, Ordering::Relaxed);
        if current == usize::MAX && limit < usize::MAX {
            tracing::warn!(
                limit,
                shortest_read_ms = shortest.as_millis(),
                "the store answers too slowly for the lookups that arrive; refusing those above a limit"
            );
        } else if current < usize::MAX && limit == usize::MAX {
            tracing::info!("the store is fast enough again; no lookup is refused");
        }
    }
}

/// Returns the next limit of reads in progress.
fn limit_after(current: usize, is_queueing: bool, answered: usize, window: Duration, target: Duration) -> usize {
    if !is_queueing {
        let raised = current.saturating_add(current / 4);
        return if raised > MAX_LIMIT { usize::MAX } else { raised };
    }
    let share = target.as_micros().saturating_mul(answered as u128) / window.as_micros().max(1);
    usize::try_from(share).unwrap_or(usize::MAX).clamp(MIN_LIMIT, MAX_LIMIT).min(current)
}

impl AdmittedRead<'_> {
    /// Ends the read; `answered`: the store answered it.
    pub(super) fn end(self, answered: bool) {
        let now = Instant::now();
        self.admission.observe(now - self.started, now, answered);
    }
}

impl Drop for AdmittedRead<'_> {
    fn drop(&mut self) {
        self.admission.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(300);

    #[test]
    fn the_limit_is_what_the_store_answers_within_the_target() {
        assert_eq!(limit_after(usize::MAX, true, 100, WINDOW, TARGET), 300);
        assert_eq!(limit_after(usize::MAX, true, 100, WINDOW * 2, TARGET), 150);
        assert_eq!(limit_after(usize::MAX, true, 1, WINDOW, TARGET), MIN_LIMIT);
        assert_eq!(limit_after(200, true, 100, WINDOW, TARGET), 200, "a standing queue never raises the limit");
    }

    #[test]
    fn the_limit_is_raised_and_removed_without_a_queue() {
        assert_eq!(limit_after(usize::MAX, false, 0, WINDOW, TARGET), usize::MAX);
        assert_eq!(limit_after(400, false, 0, WINDOW, TARGET), 500);
        let windows =
            std::iter::successors(Some(MIN_LIMIT), |limit| Some(limit_after(*limit, false, 0, WINDOW, TARGET)));
        assert!(windows.take(60).any(|limit| limit == usize::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reads_limit_those_in_progress_and_fast_ones_do_not() {
        let admission = Admission::new(TARGET * TARGET_SHARE);
        let read = async |delay: Duration| {
            let read = admission.admit(Instant::now());
            tokio::time::advance(delay).await;
            if let Some(read) = read {
                read.end(true);
            }
        };
        for _ in 0..2 {
            read(TARGET / (QUEUE_SHARE + 1)).await;
        }
        assert_eq!(admission.limit.load(Ordering::Relaxed), usize::MAX);
        read(TARGET).await;
        assert_eq!(admission.limit.load(Ordering::Relaxed), MIN_LIMIT);
        let now = Instant::now();
        let admitted: Vec<_> = (0..MIN_LIMIT).map(|_| admission.admit(now)).collect();
        assert!(admitted.iter().all(Option::is_some));
        assert!(admission.admit(now).is_none());
        drop(admitted);
        assert!(admission.admit(now).is_some());
        assert_eq!(admission.in_progress.load(Ordering::Relaxed), 0);
    }
}
