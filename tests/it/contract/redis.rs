//! The Redis store under the store's contract: alone, as a cluster, behind a sentinel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use profile_edge::clock::{ManualClock, SharedClock};
use profile_edge::domain::{
    Digest, EventTime, Key, Kind, Modified, Precision, Redelivery, ReplayId, Stamps, Timestamp,
};
use profile_edge::metrics::Metrics;
use profile_edge::reload::Reloadable;
use profile_edge::shutdown::{Controller, Shutdown};
use profile_edge::store::redis::Redis;
use profile_edge::store::redis::config::Config;
use profile_edge::store::sealed::macs::Macs;
use profile_edge::store::{Base, Change, Content, Entry, Filled, Inspect, LeaseAnswer, Record, Store, Token};
use rand::RngExt;
use rand::rngs::StdRng;
use redis::aio::MultiplexedConnection;

use super::sealed::keyring;
use super::store::{Fixture, InMemory, LIFETIMES, identity};
use crate::support::servers::redis::{Deployment, Setup};

pub(crate) type Alone = InRedis<0>;
pub(crate) type Clustered = InRedis<1>;
pub(crate) type BehindSentinel = InRedis<2>;
/// With macs on its tombstones.
pub(crate) type AloneWithMacs = InRedis<3>;

/// A store with its own tenant, on the servers that all tests share.
pub(crate) struct InRedis<const KIND: u8> {
    store: Arc<Redis>,
    clock: Arc<ManualClock>,
    tenant: String,
    servers: Vec<MultiplexedConnection>,
    _running: Controller,
}

#[async_trait]
impl<const KIND: u8> Fixture for InRedis<KIND> {
    async fn new() -> Self {
        let kind = [Setup::Single, Setup::Cluster, Setup::Sentinel, Setup::Single][usize::from(KIND)];
        let deployment = Deployment::shared(kind).await;
        let settings = format!("url = \"\"\n{}", deployment.settings);
        // A single server's settings name the url themselves.
        let settings = if kind == Setup::Single { &deployment.settings } else { &settings };
        let config: Config =
            toml::from_str(&format!("min_replicas = 0\nmax_connection_age = \"5m\"\n{settings}")).unwrap();
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let (running, shutdown) = Shutdown::new();
        let shared = Arc::clone(&clock) as SharedClock;
        let mut store = Redis::open(&config, Duration::from_secs(5), LIFETIMES, shared, &shutdown).unwrap();
        if KIND == 3 {
            store = store.with_macs(Macs::new(Reloadable::new(keyring(&[])), Metrics::new()));
        }
        store.connected().await;
        let mut servers = Vec::new();
        for server in &deployment.servers {
            servers.push(server.connect().await.unwrap());
        }
        let tenant = format!("t-{}", hex::encode(rand::random::<[u8; 8]>()));
        Self { store: Arc::new(store), clock, tenant, servers, _running: running }
    }

    fn tenant(&self) -> String {
        self.tenant.clone()
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::clone(&self.store) as Arc<dyn Inspect>
    }

    fn clock(&self) -> SharedClock {
        Arc::clone(&self.clock) as SharedClock
    }

    fn set_ahead(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Shortens the remaining lifetime of each key of this tenant.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        for server in &self.servers {
            let mut server = server.clone();
            let keys: Vec<String> =
                redis::cmd("KEYS").arg(format!("*{}*", self.tenant)).query_async(&mut server).await.unwrap();
            for key in keys {
                let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut server).await.unwrap();
                assert_ne!(left, -1, "{key} has no expiry");
                // A replica can remove a key, as its master did, once it has named it.
                if left == -2 {
                    continue;
                }
                let left = left - i64::try_from(time.as_millis()).unwrap();
                // A replica follows its master and refuses this.
                let _ = redis::cmd("PEXPIRE").arg(&key).arg(left.max(0)).query_async::<i64>(&mut server).await;
            }
        }
    }

    async fn evict(&self, key: &Key) {
        for server in &self.servers {
            // One node of a cluster has the key; the others redirect.
            let _ = redis::cmd("DEL").arg(key.as_str()).query_async::<i64>(&mut server.clone()).await;
        }
    }
}

/// The scripts decide in Redis what `fence::raise` decides in this process. Both run the same random histories and must
/// give equal answers and states.
#[tokio::test]
async fn scripts_decide_like_the_pure_functions() {
    let (redis, memory) = (Alone::new().await, InMemory::new().await);
    for history in 0..300 {
        let mut random: StdRng = rand::SeedableRng::seed_from_u64(history);
        let key = identity(&redis.tenant(), &format!("customer-{history}")).key();
        let mut history = Vec::new();
        for _ in 0..random.random_range(1..9) {
            let change = any_change(&mut random);
            history.push(change);
            let answers = [apply(&redis, &key, &change).await, apply(&memory, &key, &change).await];
            assert_eq!(answers[0], answers[1], "{history:#?}");
            let states = [state(&redis, &key).await, state(&memory, &key).await];
            assert_eq!(states[0], states[1], "{history:#?}");
            if random.random_bool(0.2) {
                redis.evict(&key).await;
                memory.evict(&key).await;
            }
            if random.random_bool(0.3) {
                let leased = [contend(&redis, &key).await, contend(&memory, &key).await];
                assert_eq!(leased[0], leased[1], "{history:#?}");
            }
            let pause = Duration::from_millis(random.random_range(0..2_000));
            redis.clock.advance(pause);
            memory.clock.advance(pause);
        }
    }
}

/// A tombstone with a seal has the times of the deletion that it is about, so only its presence is compared.
#[tokio::test]
async fn sealed_tombstones_are_where_the_pure_functions_say() {
    let (redis, memory) = (AloneWithMacs::new().await, InMemory::new().await);
    let mut tombstones = 0;
    for number in 0..300 {
        let mut random: StdRng = rand::SeedableRng::seed_from_u64(number);
        let key = identity(&redis.tenant(), &format!("customer-{number}")).key();
        let mut history = Vec::new();
        for _ in 0..random.random_range(1..9) {
            let change = any_change(&mut random);
            history.push(change);
            let answers = [apply(&redis, &key, &change).await, apply(&memory, &key, &change).await];
            assert_eq!(answers[0], answers[1], "{history:#?}");
            if random.random_bool(0.2) {
                redis.evict(&key).await;
                memory.evict(&key).await;
            }
            let leased = [contend(&redis, &key).await, contend(&memory, &key).await];
            assert_eq!(leased[0], leased[1], "{history:#?}");
            let mut found = [None, None];
            for (found, store) in found.iter_mut().zip([redis.store(), memory.store()]) {
                *found = store.get(&key).await.unwrap();
            }
            let is_tombstone = found.map(|entry| matches!(entry, Some(Entry::Tombstone(_))));
            assert_eq!(is_tombstone[0], is_tombstone[1], "{history:#?}");
            tombstones += usize::from(is_tombstone[0]);
            let pause = Duration::from_millis(random.random_range(0..2_000));
            redis.clock.advance(pause);
            memory.clock.advance(pause);
        }
    }
    assert!(tombstones > 100, "{tombstones}");
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_record_in_redis_younger() {
    let (redis, ttl) = (Alone::new().await, Duration::from_secs(300));
    let (identity, token) = (identity(&redis.tenant(), "ada"), Token::draw());
    let key = identity.key();
    let granted = redis.store.lease(&key, &Base::Absent, token, Duration::from_secs(60)).await.unwrap();
    let LeaseAnswer::Granted(lease) = granted else { panic!("nobody else holds the lease") };
    let fetched_at = redis.clock().now();
    let (content, fetch_cost) = (Content::Negative, Duration::ZERO);
    let (grace, settled, generation) = (2 * ttl, true, 0);
    let record = Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled, generation };
    assert_eq!(redis.store.fill(lease, record).await.unwrap(), Filled::Stored);
    redis.pass(ttl).await;
    redis.clock.set_back(Duration::from_secs(3 * 3_600));
    let Some(Entry::Record(record)) = redis.store.get(&key).await.unwrap() else { panic!("it is kept for the grace") };
    let age = redis.clock().now().since(record.fetched_at);
    assert!((ttl..2 * ttl).contains(&age), "{age:?}");
    let together = redis.store.get_together(&[key]).await.expect("one server has all keys").remove(0).unwrap();
    let Some(Entry::Record(record)) = together else { panic!("it is kept for the grace") };
    assert!(redis.clock().now().since(record.fetched_at) >= ttl, "nor if it is read with others");
}

#[tokio::test]
async fn one_unreadable_value_leaves_the_others_of_a_shared_read() {
    let redis = Alone::new().await;
    let keys = ["ada", "list", "nobody"].map(|id| identity(&redis.tenant(), id).key());
    let mut server = redis.servers[0].clone();
    redis::cmd("RPUSH").arg(keys[1].as_str()).arg("x").query_async::<()>(&mut server).await.unwrap();
    let lease = redis.store.lease(&keys[0], &Base::Absent, Token::draw(), Duration::from_secs(60)).await.unwrap();
    assert!(matches!(lease, LeaseAnswer::Granted(_)));
    let entries = redis.store.get_together(&keys).await.expect("one server has all keys");
    let entries: Vec<_> = entries.into_iter().map(Result::unwrap).collect();
    assert!(matches!(entries[..], [Some(Entry::Leased(_)), Some(Entry::Corrupt(_)), None]), "{entries:?}");
}

fn any_change(random: &mut StdRng) -> Change {
    let kind = Kind::ALL[random.random_range(0..Kind::ALL.len())];
    let precision = if random.random_bool(0.5) { Precision::Seconds } else { Precision::Millis };
    let at = random.random_bool(0.8).then(|| {
        let millis = random.random_range(-3_000..3_000);
        EventTime::new(if precision == Precision::Seconds { millis / 1_000 * 1_000 } else { millis }, precision)
    });
    let modified = random.random_bool(0.6).then(|| Modified::from_millis(random.random_range(0..4)));
    let digest = |number: u8| Digest::from_bytes([number; 16]);
    Change {
        // A few events come twice, and a few are replays of others.
        event: digest(random.random_range(0..12)),
        of: random.random_bool(0.2).then(|| digest(random.random_range(0..12))),
        kind,
        stamps: Stamps { modified, at },
        again: random.random_bool(0.4).then(|| any_again(random)),
        force: random.random_bool(0.1),
    }
}

fn any_again(random: &mut StdRng) -> Redelivery {
    [Redelivery::Restored, Redelivery::Redriven, Redelivery::Replayed(ReplayId::fresh())][random.random_range(0..3)]
}

async fn apply(fixture: &impl Fixture, key: &Key, change: &Change) -> String {
    let store = fixture.store();
    let applied = store.apply(key, change).await;
    format!("{:?}", applied.unwrap())
}

/// The entry of a key with its fence and lock, without the random tokens.
async fn state(fixture: &impl Fixture, key: &Key) -> String {
    let found = fixture.inspect().inspect(key).await.unwrap();
    let entry = match found.entry {
        Some(profile_edge::store::Entry::Tombstone(tombstone)) => {
            format!("tombstone {:?} {:?}", tombstone.at, tombstone.written_at)
        }
        Some(profile_edge::store::Entry::Leased(leased)) => format!("leased until {:?}", leased.until),
        other => format!("{other:?}"),
    };
    format!("{entry} {:?} {}", found.fence, found.lock.is_some())
}

/// Requests a lease, and keeps it if it is granted.
async fn contend(fixture: &impl Fixture, key: &Key) -> String {
    let lease = fixture.store().lease(key, &Base::Absent, Token::draw(), Duration::from_secs(60)).await.unwrap();
    match lease {
        LeaseAnswer::Granted(lease) => {
            let granted = format!("granted {:?} {:?}", lease.target(), lease.fence());
            lease.keep_until_it_expires();
            granted
        }
        LeaseAnswer::Held { .. } => "held".to_owned(),
        LeaseAnswer::Changed(_) => "changed".to_owned(),
    }
}
