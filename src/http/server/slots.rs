//! The connection slots of a listener: how many connections may be open, and which are closed when all slots are taken.
//!
//! When all slots are taken, a new connection evicts the connections that have waited longest; those that never got an
//! answer go first. So a client that fills all slots with slow connections evicts only its own oldest ones, and a client
//! that sends its request at once is served. A connection whose request is being answered is never evicted; if that is all
//! of them, the new connection is refused.
//!
//! An evicted connection leaves its slot at once, but its socket is open until its task has run. So open sockets have a
//! limit of their own: only as many as one eviction frees may be open in addition to the slots, and no further connection
//! is accepted until one of them is closed.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{InProgress, in_progress};
use crate::sampled::Sampled;

use super::connection_state::{ConnectionState, EvictionPriority};

/// An eviction frees 1/64 of all slots at once, so that the search for the longest waiting ones is rarely needed.
const SHARE: usize = 64;

/// All connection slots of one listener.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    capacity: usize,
    /// The number of connections that one eviction frees.
    share: usize,
    table: Mutex<SlotTable>,
    sockets: Arc<Semaphore>,
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
    _socket: OwnedSemaphorePermit,
    _counted: InProgress,
}

impl ConnectionSlots {
    pub(super) fn new(capacity: usize, gauge: Gauge) -> Arc<Self> {
        let share = (capacity / SHARE).max(1);
        let sockets = Arc::new(Semaphore::new((capacity + share).min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { capacity, share, table: Mutex::default(), sockets, gauge })
    }

    /// Accepts a connection as soon as another socket may be open.
    ///
    /// # Errors
    ///
    /// The operating system could not accept it.
    pub(super) async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let socket = Arc::clone(&self.sockets).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        Ok((stream, socket))
    }

    /// Takes a slot, evicting connections if all are taken; `None` if every connection is being answered.
    pub(super) fn take(self: &Arc<Self>, socket: OwnedSemaphorePermit) -> Option<ConnectionSlot> {
        let mut table = self.table.lock();
        if table.by_number.len() >= self.capacity {
            table.evict_waiting(self.share);
        }
        if table.by_number.len() >= self.capacity {
            return None;
        }
        let (number, state) = (table.next, ConnectionState::new());
        table.next += 1;
        table.by_number.insert(number, Arc::clone(&state));
        let counted = in_progress(&self.gauge);
        Some(ConnectionSlot { state, number, slots: Arc::clone(self), _socket: socket, _counted: counted })
    }

    /// Evicts connections without a new one: the process ran out of another resource, such as file descriptors.
    pub(super) fn evict_waiting(&self) {
        self.table.lock().evict_waiting(self.share);
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

    fn take(slots: &Arc<ConnectionSlots>) -> Option<ConnectionSlot> {
        slots.take(Arc::clone(&slots.sockets).try_acquire_owned().expect("a socket"))
    }

    async fn is_evicted(slot: &ConnectionSlot) -> bool {
        tokio::time::timeout(Duration::ZERO, slot.state.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_evicts_the_longest_waiting_unanswered_one() {
        let slots = slots(3);
        let is_proven = take(&slots).unwrap();
        is_proven.state.begin(Version::HTTP_11).answer(StatusCode::OK);
        tokio::time::advance(Duration::from_secs(1)).await;
        let first = take(&slots).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = take(&slots).unwrap();
        let third = take(&slots).unwrap();
        assert!(is_evicted(&first).await);
        for stays in [&is_proven, &second, &third] {
            assert!(!is_evicted(stays).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_evicted_if_all_have_got_answers() {
        let slots = slots(2);
        let table: Vec<ConnectionSlot> = (0..2).map(|_| take(&slots).unwrap()).collect();
        for slot in &table {
            tokio::time::advance(Duration::from_secs(1)).await;
            slot.state.begin(Version::HTTP_11).answer(StatusCode::OK);
        }
        assert!(take(&slots).is_some());
        assert!(is_evicted(&table[0]).await && !is_evicted(&table[1]).await);
    }

    #[tokio::test]
    async fn a_connection_that_is_being_answered_is_never_evicted() {
        let slots = slots(2);
        let table: Vec<ConnectionSlot> = (0..2).map(|_| take(&slots).unwrap()).collect();
        let _answering: Vec<_> = table.iter().map(|slot| slot.state.begin(Version::HTTP_11)).collect();
        assert!(take(&slots).is_none());
        drop(table);
        assert!(take(&slots).is_some());
    }

    #[tokio::test]
    async fn one_eviction_frees_a_share_of_all_slots() {
        let slots = slots(640);
        let table: Vec<ConnectionSlot> = (0..640).map(|_| take(&slots).unwrap()).collect();
        let _new = take(&slots).unwrap();
        let mut evicted = 0;
        for slot in &table {
            evicted += usize::from(is_evicted(slot).await);
        }
        assert_eq!(evicted, 10);
    }
    #[tokio::test]
    async fn no_more_sockets_are_open_than_slots_and_one_share() {
        let slots = slots(64);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _clients: Vec<TcpStream> =
            futures_util::future::try_join_all((0..66).map(|_| TcpStream::connect(address))).await.unwrap();
        let mut table = Vec::new();
        for _ in 0..65 {
            let (_stream, socket) = slots.accept(&listener).await.unwrap();
            table.push(slots.take(socket).unwrap());
        }
        // The first one was evicted, but its task has not run yet.
        let next = slots.accept(&listener);
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        table.remove(0);
        drop(next.await.unwrap());
    }
}
