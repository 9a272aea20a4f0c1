//! The connection slots of a listener: how many connections may be open, and which are closed when all slots are taken.
//!
//! When all slots are taken, a new connection evicts the connections that have waited longest; those that never got an
//! answer go first. So a client that fills all slots with slow connections evicts only its own oldest ones, and a client
//! that sends its request at once is served. A connection whose request is being answered is never evicted; if that is all
//! of them, the new connection is refused.

use std::collections::HashMap;
use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;

use crate::metrics::{InProgress, in_progress};
use crate::sampled::Sampled;

use super::connection_state::{ConnectionState, EvictionPriority};

/// An eviction frees 1/64 of all slots at once, so that the search for the longest waiting ones is rarely needed.
const SHARE: usize = 64;

/// All connection slots of one listener.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    capacity: usize,
    table: Mutex<SlotTable>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct SlotTable {
    next: u64,
    by_number: HashMap<u64, Arc<ConnectionState>>,
    warning: Sampled,
}

/// An occupied slot; it is free again when this is dropped or the connection is evicted.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) state: Arc<ConnectionState>,
    number: u64,
    slots: Arc<ConnectionSlots>,
    _counted: InProgress,
}

impl ConnectionSlots {
    pub(super) fn new(capacity: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { capacity, table: Mutex::default(), gauge })
    }

    /// Takes a slot, evicting connections if all are taken; `None` if every connection is being answered.
    pub(super) fn take(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let mut table = self.table.lock();
        if table.by_number.len() >= self.capacity {
            table.evict_waiting((self.capacity / SHARE).max(1));
        }
        if table.by_number.len() >= self.capacity {
            return None;
        }
        let (number, state) = (table.next, ConnectionState::new());
        table.next += 1;
        table.by_number.insert(number, Arc::clone(&state));
        Some(ConnectionSlot { state, number, slots: Arc::clone(self), _counted: in_progress(&self.gauge) })
    }

    /// Evicts connections without a new one: the process ran out of another resource, such as file descriptors.
    pub(super) fn evict_waiting(&self) {
        self.table.lock().evict_waiting((self.capacity / SHARE).max(1));
    }
}

impl SlotTable {
    /// Evicts up to `wanted` connections that never got an answer, or one of the others.
    fn evict_waiting(&mut self, wanted: usize) {
        let priority = |(number, state): (&u64, &Arc<ConnectionState>)| Some((state.priority()?, *number));
        let mut waiting: Vec<(EvictionPriority, u64)> = self.by_number.iter().filter_map(priority).collect();
        let wanted = wanted.min(waiting.len());
        if wanted > 0 && wanted < waiting.len() {
            waiting.select_nth_unstable(wanted - 1);
        }
        waiting.truncate(wanted);
        waiting.sort_unstable();
        let evicted =
            waiting.iter().enumerate().take_while(|(index, (priority, _))| *index == 0 || !priority.is_proven);
        for (_, (_, number)) in evicted {
            if let Some(state) = self.by_number.remove(number) {
                state.evict();
            }
        }
        if let Some(suppressed) = self.warning.due() {
            let connections = self.by_number.len();
            tracing::warn!(
                connections,
                suppressed,
                "all connection slots are taken, evicting the longest waiting connections"
            );
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.table.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{StatusCode, Version};

    use super::*;

    fn slots(capacity: usize) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(capacity, Gauge::noop())
    }

    async fn is_evicted(slot: &ConnectionSlot) -> bool {
        tokio::time::timeout(Duration::ZERO, slot.state.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_evicts_the_longest_waiting_unanswered_one() {
        let slots = slots(3);
        let is_proven = slots.take().unwrap();
        is_proven.state.begin(Version::HTTP_11).answer(StatusCode::OK);
        tokio::time::advance(Duration::from_secs(1)).await;
        let first = slots.take().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = slots.take().unwrap();
        let third = slots.take().unwrap();
        assert!(is_evicted(&first).await);
        for stays in [&is_proven, &second, &third] {
            assert!(!is_evicted(stays).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_evicted_if_all_have_got_answers() {
        let slots = slots(2);
        let table: Vec<ConnectionSlot> = (0..2).map(|_| slots.take().unwrap()).collect();
        for slot in &table {
            tokio::time::advance(Duration::from_secs(1)).await;
            slot.state.begin(Version::HTTP_11).answer(StatusCode::OK);
        }
        assert!(slots.take().is_some());
        assert!(is_evicted(&table[0]).await && !is_evicted(&table[1]).await);
    }

    #[tokio::test]
    async fn a_connection_that_is_being_answered_is_never_evicted() {
        let slots = slots(2);
        let table: Vec<ConnectionSlot> = (0..2).map(|_| slots.take().unwrap()).collect();
        let _answering: Vec<_> = table.iter().map(|slot| slot.state.begin(Version::HTTP_11)).collect();
        assert!(slots.take().is_none());
        drop(table);
        assert!(slots.take().is_some());
    }

    #[tokio::test]
    async fn one_eviction_frees_a_share_of_all_slots() {
        let slots = slots(640);
        let table: Vec<ConnectionSlot> = (0..640).map(|_| slots.take().unwrap()).collect();
        let _new = slots.take().unwrap();
        let mut evicted = 0;
        for slot in &table {
            evicted += usize::from(is_evicted(slot).await);
        }
        assert_eq!(evicted, 10);
    }
}
