//! The Memcached store under the store's contract: on one server, and on three.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use profile_edge::clock::{Clock, ManualClock, SharedClock};
use profile_edge::domain::{Digest, IdentifierMarks, Identity, Key, Kind, Modified, ProfileBody, Stamps, Timestamp};
use profile_edge::metrics::Metrics;
use profile_edge::reload::Reloadable;
use profile_edge::shutdown::{Controller, Shutdown};
use profile_edge::store::changes::{ChangeFeed, FeedItem, FeedReader};
use profile_edge::store::memcached::Memcached;
use profile_edge::store::memcached::config::Config;
use profile_edge::store::sealed::macs::Macs;
use profile_edge::store::{Base, Change, Content, Entry, Filled, Found, Inspect, LeaseAnswer, Record, Store, Token};
use rand::RngExt;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::sealed::keyring;
use super::store::{Fixture, LIFETIMES, identity};
use crate::support::servers::memcached::MemcachedServer;
use crate::support::{PATIENCE, eventually};

pub(crate) type OnOneServer = InMemcached<0>;
pub(crate) type OnThreeServers = InMemcached<1>;
/// With macs on its tombstones.
pub(crate) type OnOneServerWithMacs = InMemcached<2>;

/// A store with its own tenant, on the servers that all tests share.
pub(crate) struct InMemcached<const KIND: u8> {
    store: Arc<Memcached>,
    clock: Arc<ManualClock>,
    tenant: String,
    servers: &'static [MemcachedServer],
    _running: Controller,
}

async fn servers() -> &'static [MemcachedServer] {
    static SERVERS: OnceCell<Vec<MemcachedServer>> = OnceCell::const_new();
    let start = async || {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(MemcachedServer::start(&[]).await);
        }
        servers
    };
    SERVERS.get_or_init(start).await
}

/// Opens a store on servers.
pub(crate) async fn open(servers: &[&MemcachedServer], clock: SharedClock, shutdown: &Shutdown) -> Memcached {
    let addresses: Vec<String> = servers.iter().map(|server| server.address()).collect();
    let config: Config = toml::from_str(&format!("servers = {addresses:?}")).unwrap();
    let store = Memcached::open(&config, Duration::from_secs(5), LIFETIMES, clock, shutdown).unwrap();
    store.connected().await;
    store
}

#[async_trait]
impl<const KIND: u8> Fixture for InMemcached<KIND> {
    async fn new() -> Self {
        let all = servers().await;
        let servers = if KIND == 1 { all } else { &all[..1] };
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let (running, shutdown) = Shutdown::new();
        let used: Vec<&MemcachedServer> = servers.iter().collect();
        let mut store = open(&used, Arc::clone(&clock) as SharedClock, &shutdown).await;
        if KIND == 2 {
            store = store.with_macs(Macs::new(Reloadable::new(keyring(&[])), Metrics::new()));
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
        for server in self.servers {
            for key in server.keys(&self.tenant).await {
                let left = server.command(&format!("mg {key} t")).await;
                let Some(left) = left.strip_prefix("HD t") else { continue };
                let left: i64 = left.parse().unwrap();
                assert!(left >= 0, "{key} has no expiry");
                let left = left - i64::try_from(time.as_secs()).unwrap();
                let shorten = if left > 0 { format!("mg {key} T{left}") } else { format!("md {key}") };
                server.command(&shorten).await;
            }
        }
    }

    async fn evict(&self, key: &Key) {
        for server in self.servers {
            // One of them has it.
            server.command(&format!("md {}", key.as_str())).await;
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_record_in_memcached_younger() {
    let (memcached, ttl) = (OnOneServer::new().await, Duration::from_secs(300));
    let (identity, token) = (identity(&memcached.tenant(), "ada"), Token::draw());
    let key = identity.key();
    let granted = memcached.store.lease(&key, &Base::Absent, token, Duration::from_secs(60)).await.unwrap();
    let LeaseAnswer::Granted(lease) = granted else { panic!("nobody else holds the lease") };
    let fetched_at = memcached.clock().now();
    let (content, fetch_cost) = (Content::Negative, Duration::ZERO);
    let (grace, settled, generation) = (2 * ttl, true, 0);
    let record = Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled, generation };
    assert_eq!(memcached.store.fill(lease, record).await.unwrap(), Filled::Stored);
    // As if the ttl had passed at the server, which measures time by itself.
    let touched = memcached.servers[0].command(&format!("mg {} T{}", key.as_str(), 2 * ttl.as_secs())).await;
    assert_eq!(touched, "HD");
    memcached.clock.set_back(Duration::from_secs(3 * 3_600));
    let Some(Entry::Record(record)) = memcached.store.get(&key).await.unwrap() else {
        panic!("it is kept for the grace")
    };
    let age = memcached.clock().now().since(record.fetched_at);
    assert!(age + Duration::from_secs(3) >= ttl && age < 2 * ttl, "{age:?}");
}

/// Customers whose version at Genesys is a number.
struct Customers {
    identities: Vec<Identity>,
    current: Vec<AtomicI64>,
    /// The newest version whose event was applied.
    applied: Vec<AtomicI64>,
}

impl Customers {
    fn of(count: usize) -> Arc<Self> {
        let numbers = || (0..count).map(|_| AtomicI64::new(0)).collect();
        let identities = (0..count).map(|n| identity("10001", &format!("customer-{n}"))).collect();
        Arc::new(Self { identities, current: numbers(), applied: numbers() })
    }

    async fn change(&self, store: &Memcached, customer: usize) {
        let version = self.current[customer].fetch_add(1, Ordering::SeqCst) + 1;
        let stamps = Stamps { modified: Some(Modified::from_millis(version)), at: None };
        let event = Digest::from_bytes(rand::random());
        let change = Change { event, of: None, kind: Kind::Updated, stamps, again: None, force: false };
        store.apply(&self.identities[customer].key(), &change).await.unwrap();
        self.applied[customer].fetch_max(version, Ordering::SeqCst);
    }

    /// Checks that what is cached is as new as every applied event, and fills it if nothing is.
    async fn look_up(&self, store: &Memcached, customer: usize, now: Timestamp) {
        let least = self.applied[customer].load(Ordering::SeqCst);
        let (identity, key) = (&self.identities[customer], self.identities[customer].key());
        match store.get(&key).await.unwrap() {
            Some(Entry::Record(Record { content: Content::Found(found), .. })) => {
                let version = found.modified.unwrap().as_millis();
                assert!(version >= least, "version {version} of customer {customer} is older than {least}");
                return;
            }
            Some(_) => return,
            None => {}
        }
        let answer = store.lease(&key, &Base::Absent, Token::draw(), Duration::from_secs(60)).await.unwrap();
        let LeaseAnswer::Granted(lease) = answer else { return };
        let version = self.current[customer].load(Ordering::SeqCst);
        let body = ProfileBody::new(Bytes::from(vec![b'x'; 8 << 10]));
        let content = Content::Found(Found {
            validator: [0; 16],
            body,
            modified: Some(Modified::from_millis(version)),
            identifiers: IdentifierMarks::default(),
        });
        let (identity, token, ttl) = (identity.clone(), lease.token(), Duration::from_secs(300));
        let (fetched_at, fetch_cost, grace) = (now, Duration::ZERO, Duration::ZERO);
        let (settled, generation) = (true, 0);
        let record = Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled, generation };
        store.fill(lease, record).await.unwrap();
    }
}

/// Opens a store on one server, and a reader of its changes.
async fn followed(server: &MemcachedServer, shutdown: &Shutdown) -> (Arc<Memcached>, FeedReader) {
    let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
    let store = Arc::new(open(&[server], clock, shutdown).await);
    // Takes the first number.
    Customers::of(1).change(&store, 0).await;
    let feed = ChangeFeed::new(false);
    store.follow_changes(&feed, shutdown);
    assert!(feed.hears(PATIENCE, shutdown).await);
    (store, feed.read())
}

async fn heard(reader: &mut FeedReader) -> FeedItem {
    timeout(PATIENCE, reader.next()).await.expect("something is heard").unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_of_a_burst_at_memcached_is_missed() {
    const TASKS: usize = 8;
    const EACH: usize = 1_000;
    let server = MemcachedServer::start(&[]).await;
    let (_running, shutdown) = Shutdown::new();
    let (store, mut reader) = followed(&server, &shutdown).await;
    let customers = Customers::of(TASKS * 50);
    let tasks = (0..TASKS).map(|task| {
        let (store, customers) = (Arc::clone(&store), Arc::clone(&customers));
        tokio::spawn(async move {
            for n in 0..EACH {
                customers.change(&store, task * 50 + n % 50).await;
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    for n in 0..TASKS * EACH {
        assert!(matches!(heard(&mut reader).await, FeedItem::Change(_)), "a gap after {n} changes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_value_where_changes_take_numbers_stops_no_event() {
    let server = MemcachedServer::start(&[]).await;
    let (_running, shutdown) = Shutdown::new();
    let (store, mut reader) = followed(&server, &shutdown).await;
    assert_eq!(server.command("ms cust:changes 1\r\nx").await, "HD");
    let (key, event) = (identity("10001", "ada").key(), Digest::from_bytes(rand::random()));
    let stamps = Stamps { modified: Some(Modified::from_millis(1)), at: None };
    let change = Change { event, of: None, kind: Kind::Updated, stamps, again: None, force: false };
    eventually("the event is applied", || async { store.apply(&key, &change).await.ok() }).await;
    assert!(matches!(heard(&mut reader).await, FeedItem::Gap));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memcached_that_evicts_all_the_time_serves_nothing_old() {
    const CUSTOMERS: usize = 400;
    let server = MemcachedServer::start(&["-m", "2"]).await;
    let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
    let (_running, shutdown) = Shutdown::new();
    let store = Arc::new(open(&[&server], Arc::clone(&clock) as SharedClock, &shutdown).await);
    let customers = Customers::of(CUSTOMERS);
    let tasks = (0..8).map(|_| {
        let (store, customers, clock) = (Arc::clone(&store), Arc::clone(&customers), Arc::clone(&clock));
        tokio::spawn(async move {
            for _ in 0..2_000 {
                // Half of the work is at a few customers.
                let most = if rand::random() { CUSTOMERS } else { 4 };
                let customer = rand::rng().random_range(0..most);
                if rand::rng().random_bool(0.3) {
                    customers.change(&store, customer).await;
                } else {
                    customers.look_up(&store, customer, clock.now()).await;
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert!(server.statistic("evictions").await > 0);
}
