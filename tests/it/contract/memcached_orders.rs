//! Orders of commands at Memcached that break the promise unless the adapter prevents it. The model (`tests/it/model/memcached/`)
//! has every order; these are on a real server, behind a gate that holds one command.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use profile_edge::clock::{ManualClock, SharedClock};
use profile_edge::domain::{
    Digest, EventTime, IdentifierMarks, Identity, Kind, Modified, ProfileBody, Stamps, Timestamp,
};
use profile_edge::shutdown::{Controller, Shutdown};
use profile_edge::store::memcached::Memcached;
use profile_edge::store::memcached::config::Config;
use profile_edge::store::{Applied, Base, Change, Content, Entry, Error, Filled, Found, Lease, LeaseAnswer, Record};
use profile_edge::store::{Store, Token};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::store::{LIFETIMES, identity};
use crate::support::PATIENCE;
use crate::support::servers::memcached::MemcachedServer;

/// Lets the held command pass; if it is dropped, the connection is closed instead.
type Held = oneshot::Sender<()>;

/// The beginnings of commands that are waited for, in this order. The last one is held.
type Wanted = Arc<Mutex<VecDeque<&'static str>>>;

/// A proxy that holds commands.
struct Gate {
    address: SocketAddr,
    wanted: Wanted,
    arrivals: mpsc::UnboundedReceiver<Held>,
}

impl Gate {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, wanted) = (listener.local_addr().unwrap(), Wanted::default());
        let (arrive, arrivals) = mpsc::unbounded_channel();
        let waited_for = Arc::clone(&wanted);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (far, wanted, arrive) =
                    (TcpStream::connect(("127.0.0.1", port)), waited_for.clone(), arrive.clone());
                tokio::spawn(async move {
                    let ((near_read, mut near_write), (mut far_read, mut far_write)) =
                        (near.into_split(), far.await.unwrap().into_split());
                    let commands = async {
                        let mut near = BufReader::new(near_read);
                        while let Some((line, bytes)) = read_command(&mut near).await {
                            if let Some(held) = held(&wanted, &line, &arrive)
                                && held.await.is_err()
                            {
                                return;
                            }
                            far_write.write_all(&bytes).await.unwrap();
                        }
                    };
                    tokio::select! {
                        () = commands => {}
                        _ = copy(&mut far_read, &mut near_write) => {}
                    }
                });
            }
        });
        Self { address, wanted, arrivals }
    }

    fn hold(&self, commands: &[&'static str]) {
        *self.wanted.lock() = commands.iter().copied().collect();
    }

    async fn held(&mut self) -> Held {
        timeout(PATIENCE, self.arrivals.recv()).await.expect("the command arrives").unwrap()
    }
}

/// Returns what a command must wait for, if it is the last one that is waited for.
fn held(wanted: &Wanted, line: &str, arrive: &mpsc::UnboundedSender<Held>) -> Option<oneshot::Receiver<()>> {
    let mut wanted = wanted.lock();
    line.starts_with(*wanted.front()?).then_some(())?;
    wanted.pop_front();
    let (go, gone) = oneshot::channel();
    wanted.is_empty().then(|| arrive.send(go).unwrap())?;
    Some(gone)
}

/// Reads a command with its value.
async fn read_command(from: &mut BufReader<OwnedReadHalf>) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    from.read_until(b'\n', &mut bytes).await.ok().filter(|count| *count > 0)?;
    let line = String::from_utf8(bytes.clone()).unwrap();
    if line.starts_with("ms ") {
        let length: usize = line.split([' ', '\r']).nth(2)?.parse().unwrap();
        let mut value = vec![0; length + 2];
        from.read_exact(&mut value).await.ok()?;
        bytes.append(&mut value);
    }
    Some((line, bytes))
}

/// One customer, a store behind a gate, and one that goes straight to the server.
struct Scene {
    gate: Gate,
    gated: Arc<Memcached>,
    direct: Memcached,
    identity: Identity,
    clock: SharedClock,
    _server: MemcachedServer,
    _running: Controller,
}

impl Scene {
    async fn new() -> Self {
        let server = MemcachedServer::start(&[]).await;
        let gate = Gate::to(server.port).await;
        let clock: SharedClock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let (running, shutdown) = Shutdown::new();
        let open = async |address: String| {
            let config: Config = toml::from_str(&format!("servers = [{address:?}]")).unwrap();
            let store = Memcached::open(&config, PATIENCE, LIFETIMES, Arc::clone(&clock), &shutdown).unwrap();
            store.connected().await;
            store
        };
        let (gated, direct) = (Arc::new(open(gate.address.to_string()).await), open(server.address()).await);
        let identity = identity("10001", "ada");
        Self { gate, gated, direct, identity, clock, _server: server, _running: running }
    }

    /// Applies an event through the gate.
    fn begin(&self, change: Change) -> JoinHandle<Result<Applied, Error>> {
        let (store, key) = (Arc::clone(&self.gated), self.identity.key());
        tokio::spawn(async move { apply(&store, &key, &change).await })
    }

    async fn apply(&self, change: Change) -> Applied {
        apply(&self.direct, &self.identity.key(), &change).await.unwrap()
    }

    async fn entry(&self) -> Option<Entry> {
        self.direct.get(&self.identity.key()).await.unwrap()
    }

    async fn lease(&self, base: Base) -> Lease {
        let ttl = Duration::from_secs(60);
        match self.direct.lease(&self.identity.key(), &base, Token::draw(), ttl).await.unwrap() {
            LeaseAnswer::Granted(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Requests a lease beside what is at K.
    async fn lease_beside(&self) -> Lease {
        self.lease(Base::Token(self.entry().await.unwrap().token().unwrap())).await
    }

    /// Fills a profile that was modified at this second.
    async fn fill(&self, lease: Lease, modified: i64) -> Filled {
        let body = ProfileBody::new(bytes::Bytes::from_static(b"{}"));
        let modified = Some(Modified::from_millis(modified * 1_000));
        let found = Found { validator: body.validator(), body, modified, identifiers: IdentifierMarks::default() };
        let record = Record {
            identity: self.identity.clone(),
            token: lease.token(),
            content: Content::Found(found),
            fetched_at: self.clock.now(),
            fetch_cost: Duration::ZERO,
            ttl: Duration::from_secs(300),
            grace: Duration::ZERO,
            settled: true,
            generation: 0,
        };
        self.direct.fill(lease, record).await.unwrap()
    }
}

async fn apply(store: &Memcached, key: &profile_edge::domain::Key, change: &Change) -> Result<Applied, Error> {
    store.apply(key, change).await
}

/// An event of this second.
fn event(kind: Kind, at: i64) -> Change {
    let modified = Modified::from_millis(at * 1_000);
    let at = Some(EventTime::from_modified(modified));
    let stamps = Stamps { modified: (kind != Kind::Deleted).then_some(modified), at };
    Change { event: Digest::from_bytes(rand::random()), of: None, kind, stamps, again: None, force: false }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_overtaken_hides_nobody_meanwhile() {
    let mut scene = Scene::new().await;
    scene.gate.hold(&["ms fence:", "ms cust:profile:"]);
    let deletion = scene.begin(event(Kind::Deleted, 20));
    let go = scene.gate.held().await;
    assert_eq!(scene.apply(event(Kind::Created, 30)).await, Applied::Applied { had_entry: false });
    // It removes what it wrote.
    scene.gate.hold(&["md cust:profile:"]);
    go.send(()).unwrap();
    let go = scene.gate.held().await;
    let entry = scene.entry().await;
    assert!(!matches!(entry, Some(Entry::Tombstone(_))), "{entry:?}, and the process may stop here");
    go.send(()).unwrap();
    deletion.await.unwrap().unwrap();
    assert!(scene.entry().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_does_not_overrule_a_deletion_that_stopped_halfway() {
    let mut scene = Scene::new().await;
    let lease = scene.lease(Base::Absent).await;
    assert_eq!(scene.fill(lease, 10).await, Filled::Stored);
    let change = event(Kind::Deleted, 20);
    scene.gate.hold(&["ms fence:", "md lock:"]);
    let stopped = scene.begin(change);
    drop(scene.gate.held().await);
    stopped.await.unwrap().unwrap_err();
    // Genesys still shows the customer.
    let lease = scene.lease_beside().await;
    assert_eq!(scene.fill(lease, 10).await, Filled::Stored);
    scene.apply(change).await;
    let entry = scene.entry().await;
    assert!(matches!(entry, Some(Entry::Tombstone(_))), "{entry:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_event_voids_a_verification_that_began_during_it() {
    let mut scene = Scene::new().await;
    scene.apply(event(Kind::Deleted, 20)).await;
    scene.gate.hold(&["md lock:", "mg cust:profile:"]);
    let update = scene.begin(event(Kind::Updated, 10));
    let go = scene.gate.held().await;
    let lease = scene.lease_beside().await;
    go.send(()).unwrap();
    update.await.unwrap().unwrap();
    // What was fetched before the event was applied.
    assert_eq!(scene.fill(lease, 30).await, Filled::Refused);
}
