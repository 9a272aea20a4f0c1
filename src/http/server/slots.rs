//! The places of a listener: how many connections may be open, and who makes room when all are taken.
//!
//! A newcomer is not turned away because others sit there and wait: those that have waited longest go, first of them
//! those that have never got an answer. So whoever fills all places with slow connections only pushes out his own
//! oldest ones, and a client that sends its request at once is served. Connections that are being answered are
//! never pushed out: if all are, the newcomer is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::{InProgress, in_progress};

use super::connection_state::{Rank, Watch};

/// When room is made, this share of all places is freed at once, so that looking through them is paid for once.
const SHARE: usize = 64;

/// How often full places are worth a line in the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// All places of one listener.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    capacity: usize,
    taken: Mutex<Taken>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    by_number: HashMap<u64, Arc<Watch>>,
    told: Option<Instant>,
}

/// A place that is taken; free again when it is dropped, or when its connection was evicted.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) watch: Arc<Watch>,
    number: u64,
    places: Arc<ConnectionSlots>,
    _counted: InProgress,
}

impl ConnectionSlots {
    pub(super) fn new(capacity: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { capacity, taken: Mutex::default(), gauge })
    }

    /// Takes a place, making room if there is none; `None` if every connection is being answered.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken.lock();
        if taken.by_number.len() >= self.capacity {
            taken.make_room((self.capacity / SHARE).max(1));
        }
        if taken.by_number.len() >= self.capacity {
            return None;
        }
        let (number, watch) = (taken.next, Watch::new());
        taken.next += 1;
        taken.by_number.insert(number, Arc::clone(&watch));
        Some(Place { watch, number, places: Arc::clone(self), _counted: in_progress(&self.gauge) })
    }

    /// Makes room without a newcomer: the process ran out of something else that connections hold.
    pub(super) fn make_room(&self) {
        self.taken.lock().make_room((self.capacity / SHARE).max(1));
    }
}

impl Taken {
    /// Evicts up to `wanted` connections of clients that have never got anything, or else one of the others.
    fn make_room(&mut self, wanted: usize) {
        let rank = |(number, watch): (&u64, &Arc<Watch>)| Some((watch.rank()?, *number));
        let mut waiting: Vec<(Rank, u64)> = self.by_number.iter().filter_map(rank).collect();
        let wanted = wanted.min(waiting.len());
        if wanted > 0 && wanted < waiting.len() {
            waiting.select_nth_unstable(wanted - 1);
        }
        waiting.truncate(wanted);
        waiting.sort_unstable();
        let evicted = waiting.iter().enumerate().take_while(|(index, (rank, _))| *index == 0 || !rank.proven);
        for (_, (_, number)) in evicted {
            if let Some(watch) = self.by_number.remove(number) {
                watch.evict();
            }
        }
        let now = Instant::now();
        if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.told = Some(now);
            let connections = self.by_number.len();
            tracing::warn!(connections, "all connections are taken, the longest waiting ones make room");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use http::{StatusCode, Version};

    use super::*;

    fn places(capacity: usize) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(capacity, Gauge::noop())
    }

    async fn is_evicted(place: &Place) -> bool {
        tokio::time::timeout(Duration::ZERO, place.watch.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_pushes_out_the_longest_waiting_stranger() {
        let places = places(3);
        let proven = places.take().unwrap();
        proven.watch.begin(Version::HTTP_11).answer(StatusCode::OK);
        tokio::time::advance(Duration::from_secs(1)).await;
        let first = places.take().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = places.take().unwrap();
        let third = places.take().unwrap();
        assert!(is_evicted(&first).await);
        for stays in [&proven, &second, &third] {
            assert!(!is_evicted(stays).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_client_makes_room_where_there_is_no_stranger() {
        let places = places(2);
        let taken: Vec<Place> = (0..2).map(|_| places.take().unwrap()).collect();
        for place in &taken {
            tokio::time::advance(Duration::from_secs(1)).await;
            place.watch.begin(Version::HTTP_11).answer(StatusCode::OK);
        }
        assert!(places.take().is_some());
        assert!(is_evicted(&taken[0]).await && !is_evicted(&taken[1]).await);
    }

    #[tokio::test]
    async fn nobody_who_is_being_answered_is_pushed_out() {
        let places = places(2);
        let taken: Vec<Place> = (0..2).map(|_| places.take().unwrap()).collect();
        let _answering: Vec<_> = taken.iter().map(|place| place.watch.begin(Version::HTTP_11)).collect();
        assert!(places.take().is_none());
        drop(taken);
        assert!(places.take().is_some());
    }

    #[tokio::test]
    async fn many_strangers_go_at_once_so_that_room_is_made_once() {
        let places = places(640);
        let taken: Vec<Place> = (0..640).map(|_| places.take().unwrap()).collect();
        let _new = places.take().unwrap();
        let mut evicted = 0;
        for place in &taken {
            evicted += usize::from(is_evicted(place).await);
        }
        assert_eq!(evicted, 10);
    }
}
