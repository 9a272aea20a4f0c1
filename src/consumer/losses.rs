//! Loss detection: replays the journal when the store may have lost acknowledged effects.
//!
//! Replication and persistence of a store may be asynchronous: a failover, or a restart from disk, can lose the whole
//! effect of an acknowledged event and keep the old profile ([`rules::failover`](crate::rules#failover)). The store
//! then has another [`ReplicationHistory`], for each of its servers. Every consumer process reads it about once per second. When a history
//! that it saw before has ended, it requests a replay of the journal, from one minute before that history was last
//! seen. A server that does not answer hides nothing of the others, and is judged when it answers again. Events whose effect was not lost are duplicates then. A deletion that is not known to be the latest event
//! evicts the entry and writes no tombstone.
//!
//! Until a request is known to be durable it is repeated, unchanged; the queue carries out equal requests once.
//!
//! A failover while no consumer runs is not detected; the TTL bounds its effect. If several consumers run, each
//! requests the replay. This is harmless and rare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::queue::{Queue, RestoreOutcome};
use crate::shutdown::Shutdown;
use crate::store::{Inspect, ReplicationHistory};

/// The interval between two reads of the store's replication history.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the store's replication history.
#[derive(Debug)]
pub struct LossDetector {
    /// The store to watch.
    pub store: Arc<dyn Inspect>,
    /// The queue whose journal is replayed.
    pub queue: Arc<dyn Queue>,
    /// The wall clock; the times in the journal are from it.
    pub clock: SharedClock,
    /// Ends the watch.
    pub shutdown: Shutdown,
}

impl LossDetector {
    /// Watches until shutdown.
    pub async fn run(self) {
        let mut last_seen = BTreeMap::new();
        while !self.shutdown.is_requested() {
            // Before the read: events acknowledged from now on may be lost with the next history.
            let asked = self.clock.now();
            // Other tasks log and probe a store that is down; it is read again in the next round.
            if let Ok(history) = self.store.replication_history().await
                && self.is_complete(&last_seen, &history).await
            {
                // One that does not answer keeps the time when it was seen.
                last_seen.retain(|name: &String, _| history.has(name));
                last_seen.extend(history.answered().map(|name| (name.clone(), asked)));
            }
            // Continue after the timeout as well as on shutdown.
            let _ = timeout(CHECK_INTERVAL, self.shutdown.requested()).await;
        }
    }

    /// Returns whether nothing was lost, or a replay of what may be lost was requested; `false` to try again.
    async fn is_complete(&self, last_seen: &BTreeMap<String, Timestamp>, history: &ReplicationHistory) -> bool {
        let ended = last_seen.iter().filter(|(name, _)| !history.has(name));
        let Some(since) = ended.map(|(_, seen)| *seen).min() else { return true };
        match self.queue.restore(since).await {
            Ok(RestoreOutcome::Ordered) => {
                tracing::warn!(%since, "the store may have lost effects of events; replaying the journal");
                true
            }
            Ok(RestoreOutcome::NoJournal) => {
                tracing::warn!(%since, "the store may have lost effects of events, and there is no journal to replay");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "could not request a replay of the journal, trying again");
                false
            }
        }
    }
}
