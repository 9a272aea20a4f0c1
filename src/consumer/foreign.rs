//! Foreign consumers: other processes that take events from our work queues and apply them to another store.
//!
//! Each event goes to one consumer. If two services with different stores have the same queues, each of them misses the
//! events that the other one takes, and serves outdated profiles without any failure. Neither the broker nor a store shows
//! that. So each process that consumes sends the others a notice every few seconds, through the broker: which
//! [replication histories](ReplicationHistory) its store had in the last minute. A process whose notice contains none of
//! those that this one read in the last minute uses another store.
//!
//! A store that fails over, is restarted or emptied gets a new history. Its processes learn of it within seconds of each
//! other, so what they remember overlaps; and only a second notice in a row counts. No times are compared between
//! processes. Notices are not authenticated: a wrong one can cause an alarm, and nothing else. A process that sends none,
//! of an earlier version or without the permission, is not found.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::{Inspect, ReplicationHistory};

/// The time between two notices of a process.
const NOTICE_EVERY: Duration = Duration::from_secs(5);

/// How long a history is remembered that the store has no more.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How long a foreign process is reported after its last notice.
const SILENCE: Duration = Duration::from_secs(15);

/// After how many foreign notices in a row a process is reported.
const CERTAIN: u32 = 2;

/// The number of foreign consumers that this process knows of. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct ForeignConsumers(Arc<AtomicUsize>);

impl ForeignConsumers {
    /// Returns the number.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches for foreign consumers.
#[derive(Debug)]
pub struct ForeignWatch {
    /// What is found.
    pub found: ForeignConsumers,
    /// The queue over which notices are exchanged.
    pub queue: Arc<dyn Queue>,
    /// The store of this process.
    pub store: Arc<dyn Inspect>,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
    /// Ends the watch.
    pub shutdown: Shutdown,
}

/// What a process reports about its store.
#[derive(Debug, Deserialize, Serialize)]
struct Notice {
    /// Distinguishes the process from others.
    process: String,
    histories: BTreeSet<String>,
}

/// What this process knows of its own store and of other processes.
#[derive(Debug)]
struct StoreComparison {
    process: String,
    /// When each history was last read.
    histories: HashMap<String, Instant>,
    /// For each process with another store: its foreign notices in a row, and when the last one arrived.
    foreign: HashMap<String, (u32, Instant)>,
}

impl ForeignWatch {
    /// Watches until shutdown, or ends at once if no notices can be exchanged.
    pub async fn run(self) {
        let mut comparison = StoreComparison::new();
        while !self.shutdown.is_requested() {
            // Other tasks probe and log a store and a queue that are down. A process that cannot read its store sends nothing.
            if let Ok(history) = self.store.replication_history().await {
                comparison.read(&history, Instant::now());
                match self.queue.exchange_notices(&comparison.notice()).await {
                    Ok(Some(notices)) => self.report(comparison.compare(&notices, Instant::now())),
                    Ok(None) => return self.report(0),
                    Err(error) => tracing::debug!(%error, "notices to other consumers could not be exchanged"),
                }
            }
            // Continue after the timeout as well as on shutdown.
            let _ = timeout(NOTICE_EVERY, self.shutdown.requested()).await;
        }
    }

    fn report(&self, foreign: usize) {
        let before = self.found.0.swap(foreign, Ordering::Relaxed);
        // A floating-point number represents counts below 2^53 exactly.
        self.metrics.foreign_consumers.set(foreign as f64);
        if foreign > before {
            tracing::error!(
                foreign,
                "other processes take events from our work queues and apply them to another store, so profiles here and \
                 there are outdated; give each service queues of its own (queue.amqp.name), or the same store"
            );
        } else if foreign == 0 && before > 0 {
            tracing::info!("no other process takes events from our work queues to another store any more");
        }
    }
}

impl StoreComparison {
    fn new() -> Self {
        let process = hex::encode(rand::random::<[u8; 8]>());
        Self { process, histories: HashMap::new(), foreign: HashMap::new() }
    }

    /// Notes the present histories of the own store.
    fn read(&mut self, history: &ReplicationHistory, now: Instant) {
        self.histories.retain(|_, read| now.duration_since(*read) < REMEMBERED);
        self.histories.extend(history.answered().map(|name| (name.clone(), now)));
    }

    fn notice(&self) -> Vec<u8> {
        let notice = Notice { process: self.process.clone(), histories: self.histories.keys().cloned().collect() };
        // Strings can always be written.
        serde_json::to_vec(&notice).unwrap_or_default()
    }

    /// Compares what others reported since the last call; returns how many of them use another store.
    fn compare(&mut self, notices: &[Vec<u8>], now: Instant) -> usize {
        let readable = notices.iter().filter_map(|notice| serde_json::from_slice::<Notice>(notice).ok());
        // Of several notices of a process the last one counts: they may all be from before an outage.
        let latest: HashMap<String, BTreeSet<String>> =
            readable.map(|notice| (notice.process, notice.histories)).collect();
        for (process, histories) in latest {
            let is_ours = process == self.process || histories.iter().any(|name| self.histories.contains_key(name));
            if is_ours || histories.is_empty() {
                self.foreign.remove(&process);
            } else {
                let (in_a_row, arrived) = self.foreign.entry(process).or_insert((0, now));
                (*in_a_row, *arrived) = (in_a_row.saturating_add(1), now);
            }
        }
        self.foreign.retain(|_, (_, arrived)| now.duration_since(*arrived) < SILENCE);
        self.foreign.values().filter(|(in_a_row, _)| *in_a_row >= CERTAIN).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(names: &[&str]) -> ReplicationHistory {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Two processes. A round returns how many foreign consumers the first one reports after both have sent a notice.
    struct Two {
        one: StoreComparison,
        other: StoreComparison,
        now: Instant,
    }

    impl Two {
        fn new() -> Self {
            Self { one: StoreComparison::new(), other: StoreComparison::new(), now: Instant::now() }
        }

        fn round(&mut self, one: &[&str], other: &[&str]) -> usize {
            self.now += NOTICE_EVERY;
            self.one.read(&history(one), self.now);
            self.other.read(&history(other), self.now);
            let notices = [self.one.notice(), self.other.notice()];
            self.one.compare(&notices, self.now)
        }
    }

    #[test]
    fn a_second_notice_about_another_store_counts() {
        let mut two = Two::new();
        assert_eq!(two.round(&["a"], &["b"]), 0);
        assert_eq!(two.round(&["a"], &["b"]), 1);
        assert_eq!(two.round(&["a"], &["b"]), 1);
        // The other one ends.
        two.now += SILENCE;
        assert_eq!(two.one.compare(&[two.one.notice()], two.now), 0);
    }

    #[test]
    fn processes_that_learn_of_a_failover_one_after_the_other_have_one_store() {
        let mut two = Two::new();
        for (one, other) in [("a", "a"), ("b", "a"), ("b", "a"), ("b", "b"), ("c", "b"), ("c", "c")] {
            assert_eq!(two.round(&[one], &[other]), 0, "{one} {other}");
        }
        for _ in 0..100 {
            assert_eq!(two.round(&["c", "d"], &["d", "e"]), 0);
        }
    }

    #[test]
    fn a_process_that_starts_after_a_failover_waits_for_a_second_notice() {
        let mut two = Two::new();
        assert_eq!(two.round(&["b"], &["a"]), 0);
        assert_eq!(two.round(&["b"], &["b"]), 0);
        assert_eq!(two.round(&["b"], &["b"]), 0);
    }

    #[test]
    fn old_notices_of_an_outage_count_once_and_unreadable_ones_never() {
        let (mut two, old) = (Two::new(), StoreComparison::new());
        let mut notices = vec![old.notice(); 3];
        assert_eq!(two.one.compare(&notices, two.now), 0);
        two.other.read(&history(&["a"]), two.now);
        notices = vec![two.other.notice(); 50];
        notices.extend([b"{}".to_vec(), b"planted".to_vec()]);
        assert_eq!(two.round(&["b"], &["b"]), 0);
        assert_eq!(two.one.compare(&notices, two.now), 0);
        assert_eq!(two.round(&["b"], &["b"]), 0);
    }
}
