//! Single flight: within this process, one fetch per key, whose result everyone who may takes.
//!
//! The witness rule (DESIGN section 2, rule 2) decides who may: a lookup joins a flight only if it
//! saw at K exactly what the flight's leader put or found there (its lease, or the record that it
//! refreshes). An event applied before the lookup began would have removed that, so a joined flight
//! never answers with something older than the lookup. A flight that ends is removed before its
//! result is told; whoever comes later contends anew.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::domain::Key;
use crate::store::Token;

/// How many locks the flights are spread over; a power of two.
const SHARDS: usize = 64;

type Shard<T> = Mutex<HashMap<Key, Flight<T>>>;

/// The flights under way in this process.
#[derive(Debug)]
pub struct Flights<T> {
    shards: Arc<[Shard<T>]>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Flight<T> {
    witness: Token,
    landing: watch::Receiver<Option<T>>,
}

/// A leader's side of a flight: it lands with a result, or is lost when it is dropped.
#[must_use = "a leader that does not land is lost, and another is elected"]
#[derive(Debug)]
pub struct Leader<T> {
    shards: Arc<[Shard<T>]>,
    shard: usize,
    key: Key,
    landing: watch::Sender<Option<T>>,
}

/// A place in a flight.
#[derive(Debug)]
pub struct Seat<T> {
    landing: watch::Receiver<Option<T>>,
}

/// How a wait in a flight ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing<T> {
    /// The leader landed with this.
    Landed(T),
    /// The leader was lost: contend anew.
    Lost,
    /// Not yet; the seat is still good.
    TimedOut,
}

impl<T: Clone> Flights<T> {
    /// Makes an empty set of flights.
    #[must_use]
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Starts a flight under a witness; an older one of the same key keeps its seats and takes no more.
    pub fn start(&self, key: &Key, witness: Token) -> (Leader<T>, Seat<T>) {
        let shard = self.shard(key);
        self.begin(&mut self.shards[shard].lock(), shard, key, witness)
    }

    /// Joins the flight of a key under exactly this witness, or starts it: of many who board at once, one leads.
    pub fn board(&self, key: &Key, witness: Token) -> (Option<Leader<T>>, Seat<T>) {
        let shard = self.shard(key);
        let mut flights = self.shards[shard].lock();
        if let Some(flight) = flights.get(key).filter(|flight| flight.witness == witness) {
            return (None, Seat { landing: flight.landing.clone() });
        }
        let (leader, seat) = self.begin(&mut flights, shard, key, witness);
        (Some(leader), seat)
    }

    /// Tells whether a flight of this key is under way under exactly this witness.
    #[must_use]
    pub fn has(&self, key: &Key, witness: Token) -> bool {
        self.shards[self.shard(key)].lock().get(key).is_some_and(|flight| flight.witness == witness)
    }

    /// Joins the flight of a key, if there is one under exactly this witness.
    #[must_use]
    pub fn join(&self, key: &Key, witness: Token) -> Option<Seat<T>> {
        let flights = self.shards[self.shard(key)].lock();
        let flight = flights.get(key).filter(|flight| flight.witness == witness)?;
        Some(Seat { landing: flight.landing.clone() })
    }

    fn begin(
        &self,
        flights: &mut HashMap<Key, Flight<T>>,
        shard: usize,
        key: &Key,
        witness: Token,
    ) -> (Leader<T>, Seat<T>) {
        let (sender, landing) = watch::channel(None);
        flights.insert(key.clone(), Flight { witness, landing: landing.clone() });
        let leader = Leader { shards: Arc::clone(&self.shards), shard, key: key.clone(), landing: sender };
        (leader, Seat { landing })
    }

    fn shard(&self, key: &Key) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()
    }
}

impl<T: Clone> Default for Flights<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Leader<T> {
    /// Ends the flight with a result for all who have joined.
    pub fn land(self, result: T) {
        self.leave();
        self.landing.send_replace(Some(result));
    }

    /// Takes no more: who has joined so far gets the result, whoever comes from now on does not.
    pub fn leave(&self) {
        let mut flights = self.shards[self.shard].lock();
        let own = self.landing.subscribe();
        if flights.get(&self.key).is_some_and(|flight| flight.landing.same_channel(&own)) {
            flights.remove(&self.key);
        }
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        // Before the sender goes: whoever sees the loss must not find this flight again.
        self.leave();
    }
}

impl<T: Clone> Seat<T> {
    /// Waits for the landing until `deadline`.
    pub async fn landed(&mut self, deadline: Instant) -> Landing<T> {
        match timeout_at(deadline, self.landing.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone().map_or(Landing::Lost, Landing::Landed),
            Ok(Err(_closed)) => Landing::Lost,
            Err(_elapsed) => Landing::TimedOut,
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
    async fn everyone_with_the_witness_gets_the_result() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, mut own) = flights.start(&key(1), witness);
        let mut joined = flights.join(&key(1), witness).unwrap();
        leader.land(7);
        assert_eq!(own.landed(soon()).await, Landing::Landed(7));
        assert_eq!(joined.landed(soon()).await, Landing::Landed(7));
    }

    #[tokio::test]
    async fn nobody_joins_without_the_witness_or_after_the_landing() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, _own) = flights.start(&key(1), witness);
        assert!(flights.join(&key(1), Token::draw()).is_none());
        assert!(flights.join(&key(2), witness).is_none());
        leader.land(7);
        assert!(flights.join(&key(1), witness).is_none());
    }

    #[tokio::test]
    async fn a_lost_leader_tells_its_followers() {
        let flights: Flights<u8> = Flights::new();
        let witness = Token::draw();
        let (leader, _own) = flights.start(&key(1), witness);
        let mut joined = flights.join(&key(1), witness).unwrap();
        drop(leader);
        assert_eq!(joined.landed(soon()).await, Landing::Lost);
        assert!(flights.join(&key(1), witness).is_none());
    }

    #[tokio::test]
    async fn an_overtaken_flight_keeps_its_seats_and_leaves_the_newer_one_alone() {
        let flights = Flights::new();
        let (old, new) = (Token::draw(), Token::draw());
        let (overtaken, mut its_seat) = flights.start(&key(1), old);
        let (_leader, _seat) = flights.start(&key(1), new);
        assert!(flights.join(&key(1), old).is_none());
        overtaken.land(1);
        assert_eq!(its_seat.landed(soon()).await, Landing::Landed(1));
        assert!(flights.join(&key(1), new).is_some());
    }

    #[tokio::test]
    async fn of_many_who_board_one_leads_and_a_flight_that_was_closed_takes_no_more() {
        let flights = Flights::new();
        let witness = Token::draw();
        let (leader, mut first) = flights.board(&key(1), witness);
        let (none, mut second) = flights.board(&key(1), witness);
        assert!(none.is_none());
        let leader = leader.unwrap();
        leader.leave();
        assert!(!flights.has(&key(1), witness));
        let (another, mut late) = flights.board(&key(1), witness);
        leader.land(7);
        assert_eq!(first.landed(soon()).await, Landing::Landed(7));
        assert_eq!(second.landed(soon()).await, Landing::Landed(7));
        another.unwrap().land(8);
        assert_eq!(late.landed(soon()).await, Landing::Landed(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline() {
        let flights: Flights<u8> = Flights::new();
        let (_leader, mut seat) = flights.start(&key(1), Token::draw());
        let deadline = Instant::now() + Duration::from_millis(50);
        assert_eq!(seat.landed(deadline).await, Landing::TimedOut);
        assert_eq!(Instant::now(), deadline);
    }
}
