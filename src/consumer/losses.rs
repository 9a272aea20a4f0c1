//! Losses: when the store may have forgotten what was acknowledged, the journal is replayed.
//!
//! Replication and persistence of a store may be asynchronous: a failover, or a restart from disk, can forget an
//! event's effect whole after it was acknowledged, and leave the old profile standing (DESIGN section 2,
//! rule 12). The store then stands on another [`ReplicationHistory`]. Whoever consumes asks for it about once a second; when
//! a history that was there is gone, the queue is ordered to hand out again what it did since that history was
//! last seen, and a minute before. What had survived is a duplicate then; a deletion that is not known to be the
//! latest evicts and does not bury.
//!
//! A failover while nobody consumes is not seen; TTL bounds what it leaves. With several consumers each orders
//! the replay: harmless, and rare.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::queue::{Queue, Restore};
use crate::shutdown::Shutdown;
use crate::store::{Inspect, ReplicationHistory};

/// How often the store is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Watches the store's lineage.
#[derive(Debug)]
pub struct Losses {
    /// Whom to ask.
    pub store: Arc<dyn Inspect>,
    /// What may hand out events again.
    pub queue: Arc<dyn Queue>,
    /// The wall clock, which the journal's times are of.
    pub clock: SharedClock,
    /// Says when to end.
    pub shutdown: Shutdown,
}

/// A lineage, and when it was last seen.
type Seen = (ReplicationHistory, Timestamp);

impl Losses {
    /// Watches until shutdown.
    pub async fn run(self) {
        let mut seen: Option<Seen> = None;
        while !self.shutdown.is_requested() {
            // Before the question: what was acknowledged since may be lost with the next answer.
            let asked = self.clock.now();
            // A store that is down is told of elsewhere, and asked again.
            if let Ok(lineage) = self.store.lineage().await
                && self.is_whole(seen.as_ref(), &lineage).await
            {
                seen = Some((lineage, asked));
            }
            // Either way it is time to go on.
            let _ = timeout(ASK_EVERY, self.shutdown.requested()).await;
        }
    }

    /// Tells whether nothing is missing, having ordered what may be; `false` to try again.
    async fn is_whole(&self, seen: Option<&Seen>, lineage: &ReplicationHistory) -> bool {
        let Some((_, since)) = seen.filter(|(earlier, _)| !lineage.continues(earlier)) else { return true };
        match self.queue.restore(*since).await {
            Ok(Restore::Ordered) => {
                tracing::warn!(%since, "the store may have lost effects of events, the journal is replayed");
                true
            }
            Ok(Restore::NoJournal) => {
                tracing::warn!(%since, "the store may have lost effects of events, and there is no journal to replay");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the journal's replay could not be ordered, trying again");
                false
            }
        }
    }
}
