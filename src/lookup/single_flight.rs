//! Single flight: within this process, lookups of one entry key share one fetch.
//!
//! [`rules::witness`](crate::rules#witness) decides which lookups may share it: a lookup joins a flight only if
//! the entry that it read is exactly the one that the flight's leader wrote or read (its lease, or the record that
//! it refreshes). An event that was applied before the lookup began would have removed that entry, so the result
//! of a flight is never older than a lookup that joined it. A flight is removed before its result is published; a
//! later lookup requests the lease again.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::domain::Key;
use crate::store::Token;

/// The number of locks that protect the flights; a power of two.
const SHARDS: usize = 64;

type FlightShard<T> = Mutex<HashMap<Key, Flight<T>>>;

/// The flights of this process.
#[derive(Debug)]
pub struct Flights<T> {
    shards: Arc<[FlightShard<T>]>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Flight<T> {
    witness: Token,
    result: watch::Receiver<Option<T>>,
}

/// The leader of a flight; it completes the flight with a result.
///
/// If it is dropped first, its followers get [`FlightResult::LeaderDropped`].
#[must_use = "dropping a leader fails its flight, and the followers need another leader"]
#[derive(Debug)]
pub struct Leader<T> {
    shards: Arc<[FlightShard<T>]>,
    shard: usize,
    key: Key,
    result: watch::Sender<Option<T>>,
}

/// A follower of a flight; it waits for the leader's result.
#[derive(Debug)]
pub struct Follower<T> {
    result: watch::Receiver<Option<T>>,
}

/// How the wait of a follower ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlightResult<T> {
    /// The leader completed the flight with this result.
    Completed(T),
    /// The leader was dropped without a result; request the lease again.
    LeaderDropped,
    /// There is no result yet; the follower can wait again.
    TimedOut,
}

impl<T> FlightResult<T> {
    /// Changes the result of a completed flight.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> FlightResult<U> {
        match self {
            Self::Completed(result) => FlightResult::Completed(change(result)),
            Self::LeaderDropped => FlightResult::LeaderDropped,
            Self::TimedOut => FlightResult::TimedOut,
        }
    }
}

impl<T: Clone> Flights<T> {
    /// Creates an empty set of flights.
    #[must_use]
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Starts a flight under a witness. An older flight of the same key keeps its followers and gets no more.
    pub fn start(&self, key: &Key, witness: Token) -> (Leader<T>, Follower<T>) {
        let shard = self.shard(key);
        self.insert(&mut self.shards[shard].lock(), shard, key, witness)
    }

    /// Joins the flight of a key under exactly this witness, or starts it: of concurrent callers, one leads.
    pub fn join_or_start(&self, key: &Key, witness: Token) -> (Option<Leader<T>>, Follower<T>) {
        let shard = self.shard(key);
        let mut flights = self.shards[shard].lock();
        if let Some(follower) = follow(&flights, key, witness) {
            return (None, follower);
        }
        let (leader, follower) = self.insert(&mut flights, shard, key, witness);
        (Some(leader), follower)
    }

    /// Joins the flight of a key, if there is one under exactly this witness.
    #[must_use]
    pub fn join(&self, key: &Key, witness: Token) -> Option<Follower<T>> {
        follow(&self.shards[self.shard(key)].lock(), key, witness)
    }

    fn insert(
        &self,
        flights: &mut HashMap<Key, Flight<T>>,
        shard: usize,
        key: &Key,
        witness: Token,
    ) -> (Leader<T>, Follower<T>) {
        let (sender, result) = watch::channel(None);
        flights.insert(key.clone(), Flight { witness, result: result.clone() });
        let leader = Leader { shards: Arc::clone(&self.shards), shard, key: key.clone(), result: sender };
        (leader, Follower { result })
    }

    fn shard(&self, key: &Key) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()
    }
}

fn follow<T>(flights: &HashMap<Key, Flight<T>>, key: &Key, witness: Token) -> Option<Follower<T>> {
    let flight = flights.get(key).filter(|flight| flight.witness == witness)?;
    Some(Follower { result: flight.result.clone() })
}

impl<T: Clone> Default for Flights<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Leader<T> {
    /// Completes the flight: all followers get the result.
    pub fn complete(self, result: T) {
        self.close();
        self.result.send_replace(Some(result));
    }

    /// Closes the flight to new followers. Those that have joined get the result.
    pub fn close(&self) {
        let mut flights = self.shards[self.shard].lock();
        let own = self.result.subscribe();
        if flights.get(&self.key).is_some_and(|flight| flight.result.same_channel(&own)) {
            flights.remove(&self.key);
        }
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        // Before the sender is dropped: a follower that sees the drop must not find this flight again.
        self.close();
    }
}

impl<T: Clone> Follower<T> {
    /// Waits for the leader's result until `deadline`.
    pub async fn wait(&mut self, deadline: Instant) -> FlightResult<T> {
        match timeout_at(deadline, self.result.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone().map_or(FlightResult::LeaderDropped, FlightResult::Completed),
            Ok(Err(_closed)) => FlightResult::LeaderDropped,
            Err(_elapsed) => FlightResult::TimedOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Digest;

    fn key(n: u8) -> Key {
        Key::new(&"10001".parse().unwrap(), Digest::from_bytes([n; 16]))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn followers_with_the_witness_get_the_result() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, mut own) = flights.start(&key(1), witness);
        let mut joined = flights.join(&key(1), witness).unwrap();
        leader.complete(7);
        assert_eq!(own.wait(soon()).await, FlightResult::Completed(7));
        assert_eq!(joined.wait(soon()).await, FlightResult::Completed(7));
    }

    #[tokio::test]
    async fn joining_needs_the_witness_and_a_flight_under_way() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, _own) = flights.start(&key(1), witness);
        assert!(flights.join(&key(1), Token::draw()).is_none());
        assert!(flights.join(&key(2), witness).is_none());
        leader.complete(7);
        assert!(flights.join(&key(1), witness).is_none());
    }

    #[tokio::test]
    async fn followers_see_that_their_leader_was_dropped() {
        let flights: Flights<u8> = Flights::new();
        let witness = Token::draw();
        let (leader, _own) = flights.start(&key(1), witness);
        let mut joined = flights.join(&key(1), witness).unwrap();
        drop(leader);
        assert_eq!(joined.wait(soon()).await, FlightResult::LeaderDropped);
        assert!(flights.join(&key(1), witness).is_none());
    }

    #[tokio::test]
    async fn a_replaced_flight_keeps_its_followers_and_the_newer_one_stays() {
        let flights = Flights::new();
        let (old, new) = (Token::draw(), Token::draw());
        let (replaced, mut its_follower) = flights.start(&key(1), old);
        let (_leader, _follower) = flights.start(&key(1), new);
        assert!(flights.join(&key(1), old).is_none());
        replaced.complete(1);
        assert_eq!(its_follower.wait(soon()).await, FlightResult::Completed(1));
        assert!(flights.join(&key(1), new).is_some());
    }

    #[tokio::test]
    async fn one_caller_leads_and_a_closed_flight_gets_no_more_followers() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, mut first) = flights.join_or_start(&key(1), witness);
        let (none, mut second) = flights.join_or_start(&key(1), witness);
        assert!(none.is_none());
        let leader = leader.unwrap();
        leader.close();
        assert!(flights.join(&key(1), witness).is_none());
        let (another, mut late) = flights.join_or_start(&key(1), witness);
        leader.complete(7);
        assert_eq!(first.wait(soon()).await, FlightResult::Completed(7));
        assert_eq!(second.wait(soon()).await, FlightResult::Completed(7));
        another.unwrap().complete(8);
        assert_eq!(late.wait(soon()).await, FlightResult::Completed(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline() {
        let flights: Flights<u8> = Flights::new();
        let (_leader, mut follower) = flights.start(&key(1), Token::draw());
        let deadline = Instant::now() + Duration::from_millis(50);
        assert_eq!(follower.wait(deadline).await, FlightResult::TimedOut);
        assert_eq!(Instant::now(), deadline);
    }
}
