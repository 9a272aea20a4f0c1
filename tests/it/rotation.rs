//! Key rotation under load, in several processes on one Redis and one RabbitMQ. No lookup fails, no answer is older than
//! an applied event, and entries under the old key are still served.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use profile_edge::domain::{KeyHasher, TenantId, Timestamp};
use profile_edge::ingest::shapes::{self, PostedEvent};
use rand::RngExt;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, flat, looked, on_rabbit, with_sandbox_of};
use crate::support::process::{Ports, Process, configuration};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::Deployment;
use crate::support::{customer, eventually};

const FAILURES: &str = "profile_edge_seal_failures_total";

/// Customers that do not change, customers that change, and a deleted customer.
const STEADY: std::ops::Range<u32> = 1..11;
const CHANGING: std::ops::Range<u32> = 11..21;
const DELETED: u32 = 30;

/// The secret of the `hmac-sha256` scheme.
const SECRET: [u8; 32] = [7; 32];

fn keyed() -> KeyHasher {
    KeyHasher::HmacSha256(SECRET.to_vec().into())
}

fn key_of(hasher: &KeyHasher, n: u32) -> String {
    let identity = hasher.identify(&"10001".parse().unwrap(), &customer(n).parse().unwrap());
    identity.key().as_str().to_owned()
}

/// A process with all three flows.
struct FleetProcess {
    directory: TempDir,
    ports: Ports,
    process: Process,
    client: Client,
}

impl FleetProcess {
    async fn start(settings: &str) -> Self {
        let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), Client::new());
        let file: PathBuf = configuration(directory.path(), settings);
        let process = ports.start(directory.path(), &[("PROFILE_EDGE_CONFIG", &file.display().to_string())]);
        ports.ready(&client).await;
        Self { directory, ports, process, client }
    }

    /// Writes other settings, and waits until the process has reloaded them.
    async fn reload(&self, settings: &str, outcome: &str) {
        let series = format!("profile_edge_config_reloads_total{{outcome=\"{outcome}\"}}");
        let before = self.metric(&series).await;
        configuration(self.directory.path(), settings);
        self.process.signal("HUP");
        eventually(&series, || async { (self.metric(&series).await > before).then_some(()) }).await;
    }

    async fn metric(&self, series: &str) -> f64 {
        self.ports.metric(&self.client, series).await
    }

    async fn drain(mut self) {
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await, Some(0), "{}", self.process.log());
    }
}

/// The lookups and changes that run while keys are rotated.
struct RotationTraffic {
    /// The ports of the processes. A read lock is held during each request, so that a process drains before it ends.
    ports: RwLock<Vec<u16>>,
    genesys: Edge,
    redis: MultiplexedConnection,
    client: Client,
    stop: AtomicBool,
    /// Whether lookups of unchanged customers must be hits.
    steady_hit: AtomicBool,
    answered: AtomicU32,
    rounds: AtomicU32,
}

impl RotationTraffic {
    async fn look_up(&self, port: u16, n: u32) -> LookupAnswer {
        let request = self.client.get(format!("http://127.0.0.1:{port}/api/v1/profile"));
        let request = request.header("X-API-Key", "demo-key");
        looked(request.query(&[("tenantId", "10001"), ("customerId", &customer(n))]).send().await.unwrap()).await
    }

    /// Sends lookups without a pause.
    async fn look_up_always(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let ports = self.ports.read().await;
            let n = rand::rng().random_range(STEADY.start..CHANGING.end);
            let port = ports[rand::rng().random_range(0..ports.len())];
            let must_hit = STEADY.contains(&n) && self.steady_hit.load(Ordering::SeqCst);
            let answer = self.look_up(port, n).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert!(answer.is_hit() || !must_hit, "customer {n}: {}", answer.cache_status);
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Changes one customer after another. After the event is applied, every process must show the change.
    async fn change_always(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let round = self.rounds.load(Ordering::Relaxed);
            let n = CHANGING.start + round % 10;
            let name = format!("Name {round}");
            self.genesys.change(&customer(n), json!({ "firstName": name })).await;
            self.announce(n, "customer.updated", round).await;
            let ports = self.ports.read().await;
            for port in ports.iter() {
                let answer = self.look_up(*port, n).await;
                assert_eq!(answer.json()["firstName"], name, "round {round}: {}", answer.cache_status);
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Posts an event to one process, and waits until it is applied at every key that it names.
    async fn announce(&self, n: u32, kind: &str, number: u32) {
        let event = json!({ "tenantId": "10001", "customerId": customer(n), "eventType": kind,
                            "eventId": format!("{kind}-{number}") });
        let ports = self.ports.read().await;
        let url = format!("http://127.0.0.1:{}/webhooks/10001", ports[number as usize % ports.len()]);
        let answer = self.client.post(url).header("X-API-Key", "demo-secret").json(&event).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        drop(ports);
        let named = seen_keys(&event);
        eventually("the event is applied", || async {
            for marks in &named {
                if self.redis.clone().exists::<_, usize>(marks).await.unwrap() == marks.len() {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// Waits for 12 more changes and 50 more lookups.
    async fn continues(&self) {
        let (rounds, answered) = (self.rounds.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed));
        eventually("changes and lookups continue", || async {
            let more = self.rounds.load(Ordering::Relaxed) >= rounds + 12;
            (more && self.answered.load(Ordering::Relaxed) >= answered + 50).then_some(())
        })
        .await;
    }

    async fn holds(&self, hasher: &KeyHasher, n: u32) -> bool {
        self.redis.clone().exists(key_of(hasher, n)).await.unwrap()
    }
}

/// Returns the `seen` keys of an event, for each key scheme that the accepting process may have used.
fn seen_keys(event: &Value) -> Vec<Vec<String>> {
    let (plain, keyed, tenant): (_, _, TenantId) = (KeyHasher::Sha256, keyed(), "10001".parse().unwrap());
    let ways = [vec![plain.clone()], vec![plain.clone(), keyed.clone()], vec![keyed.clone(), plain], vec![keyed]];
    let of = |hashers: &[KeyHasher]| {
        let read = shapes::read_flat(event.to_string().as_bytes());
        let Ok(PostedEvent::Announced(announced)) = read.map(|mut posted| posted.items.remove(0)) else {
            panic!("{event} is not an event");
        };
        let event = announced.into_event(&tenant, hashers, Timestamp::from_millis(0));
        event.keys().map(|key| format!("seen:{{{key}}}:{}", event.dedup_digest())).collect()
    };
    ways.iter().map(|hashers| of(hashers)).collect()
}

/// A sandbox, a Redis, a RabbitMQ, two processes, and the traffic.
struct Fleet {
    members: Vec<FleetProcess>,
    traffic: Arc<RotationTraffic>,
    tasks: Vec<JoinHandle<()>>,
    /// The settings that all processes share.
    common: String,
}

impl Fleet {
    /// Starts both processes with these settings and the common ones, fills the cache, and starts the traffic.
    async fn start(settings: &str) -> Self {
        let genesys = Edge::start().await;
        let (store, rabbit) = (Deployment::database().await, RabbitServer::shared().await);
        let url = store.split('"').nth(1).unwrap().to_owned();
        let redis = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let (rabbit, genesys_url) =
            (rabbit.url(&rabbit.vhost().await), format!("http://{}", genesys.sandbox_address()));
        // Long timeouts, so that a busy machine causes no failure.
        let common = format!(
            r#"
            lookup = {{ ttl = "1h", deadline = "30s", lease_ttl = "20s" }}
            upstream.timeout = "10s"
            store.timeout = "5s"
            store.kind = "redis"
            store.redis.{store}
            {}
            publish_timeout = "10s"
            [[tenant]]
            id = "10001"
            upstream = {{ api_url = "{genesys_url}", login_url = "{genesys_url}", client_id = "sandbox", client_secret = "sandbox", requests_per_minute = 1000000 }}
            webhook = [{{ scheme = "api-key", secrets = ["demo-secret"] }}]
            [[caller]]
            name = "desktop"
            key_sha256 = "{DEMO_KEY_SHA256}"
            tenants = ["10001"]
            fields = ["*"]
            "#,
            on_rabbit(&rabbit)
        );
        let traffic = Arc::new(RotationTraffic {
            ports: RwLock::default(),
            genesys,
            redis,
            client: Client::new(),
            stop: AtomicBool::new(false),
            steady_hit: AtomicBool::new(true),
            answered: AtomicU32::new(0),
            rounds: AtomicU32::new(0),
        });
        let mut fleet = Self { members: Vec::new(), tasks: Vec::new(), traffic, common };
        for _ in 0..2 {
            let member = FleetProcess::start(&fleet.with(settings)).await;
            fleet.traffic.ports.write().await.push(member.ports.public);
            fleet.members.push(member);
        }
        for n in STEADY.start..CHANGING.end {
            assert_eq!(fleet.traffic.look_up(fleet.members[0].ports.public, n).await.status, 200);
        }
        for _ in 0..3 {
            let traffic = Arc::clone(&fleet.traffic);
            fleet.tasks.push(tokio::spawn(async move { traffic.look_up_always().await }));
        }
        let traffic = Arc::clone(&fleet.traffic);
        fleet.tasks.push(tokio::spawn(async move { traffic.change_always().await }));
        fleet.traffic.continues().await;
        fleet
    }

    fn with(&self, settings: &str) -> String {
        format!("{settings}\n{}", self.common)
    }

    /// Replaces a process as a rolling deployment does: the old process ends after its last request.
    async fn replace(&mut self, number: usize, settings: &str) {
        let next = FleetProcess::start(&self.with(settings)).await;
        self.traffic.ports.write().await[number] = next.ports.public;
        std::mem::replace(&mut self.members[number], next).drain().await;
        self.traffic.continues().await;
    }

    async fn failures(&self) -> f64 {
        self.members[0].metric(FAILURES).await + self.members[1].metric(FAILURES).await
    }

    /// Stops the traffic and the processes; panics if a lookup failed.
    async fn end(self) {
        self.traffic.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no lookup failed and none was stale");
        }
        for member in self.members {
            member.drain().await;
        }
    }
}

/// Returns the setting `store.sealing` with keys of these names, of which `active` seals.
fn sealing(active: &str, names: &[&str]) -> String {
    let key = |name: &&str| format!("{name} = \"{}\"", STANDARD.encode([name.as_bytes()[1]; 32]));
    let keys: Vec<String> = names.iter().map(key).collect();
    format!("store.sealing = {{ active = \"{active}\", keys = {{ {} }} }}", keys.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_key_rotation_fails_no_lookup_and_keeps_old_entries() {
    let fleet = Fleet::start(&sealing("k1", &["k1"])).await;
    let traffic = Arc::clone(&fleet.traffic);
    let sealed_under = async |n: u32, name: &str| {
        let value: Vec<u8> = traffic.redis.clone().get(key_of(&KeyHasher::Sha256, n)).await.unwrap();
        value.windows(3).any(|window| window == [2, name.as_bytes()[0], name.as_bytes()[1]])
    };
    for (active, number) in [("k1", 0), ("k1", 1), ("k2", 0), ("k2", 1)] {
        fleet.members[number].reload(&fleet.with(&sealing(active, &["k1", "k2"])), "ok").await;
        traffic.continues().await;
    }
    // New fills use the new key. Older entries remain under the old key and are hits.
    assert!(sealed_under(STEADY.start, "k1").await);
    eventually("the new key seals", || async { sealed_under(CHANGING.start, "k2").await.then_some(()) }).await;
    assert_eq!(fleet.failures().await, 0.0);

    // A configuration without the active key is refused and changes nothing.
    for member in &fleet.members {
        member.reload(&fleet.with(&sealing("k3", &["k1", "k2"])), "error").await;
        let log = member.process.log();
        assert!(log.contains("store.sealing.active") && !log.contains("need a restart"), "{log}");
    }
    traffic.continues().await;
    assert_eq!(fleet.failures().await, 0.0);

    // The old key is removed before its entries expire: each of them is one counted miss, and no lookup fails.
    traffic.steady_hit.store(false, Ordering::SeqCst);
    for member in &fleet.members {
        member.reload(&fleet.with(&sealing("k2", &["k2"])), "ok").await;
    }
    for n in STEADY {
        eventually("the entry is under the new key", || async { sealed_under(n, "k2").await.then_some(()) }).await;
    }
    assert!(fleet.failures().await >= 10.0);
    traffic.continues().await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_entry_at_the_previous_key_is_never_served_after_an_event() {
    let times = "[lookup]\nttl = \"50ms\"\nttl_jitter = 0.0\n";
    let store = format!("{times}[store]\nkind = \"redis\"\n[store.redis]\n{}", Deployment::database().await);
    let before = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}")).await;
    let secret = STANDARD.encode(SECRET);
    let keys = format!("[keys]\nscheme = \"hmac-sha256\"\nsecret = \"{secret}\"\nprevious = \"sha256\"\n");
    let after = Edge::start_with(&format!("{keys}{store}{}", with_sandbox_of(before.sandbox_address()))).await;
    let seven = customer(7);
    let kept = before.look_up(&seven).await.text;
    before.behave(json!({ "fail_ratio": 1, "fail_status": 500 })).await;
    let stale = eventually("a stale answer", || async {
        let answer = after.look_up(&seven).await;
        answer.cache_status.contains("stale-if-error").then_some(answer)
    })
    .await;
    assert_eq!((stale.status, stale.text), (200, kept));
    assert_eq!(before.post_event(&flat(&seven)).await.status(), 202);
    before.applied("updated", 1.0).await;
    assert_eq!(after.look_up(&seven).await.status, 503);
    after.stop().await;
    before.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn customer_key_rotation_fails_no_lookup_and_keeps_old_entries() {
    let secret = STANDARD.encode(SECRET);
    let before = "keys.scheme = \"sha256\"";
    let both = format!("{before}\nkeys.previous = \"{secret}\"");
    let after = format!("keys.scheme = \"hmac-sha256\"\nkeys.secret = \"{secret}\"");
    let swapped = format!("{after}\nkeys.previous = \"sha256\"");
    let mut fleet = Fleet::start(before).await;
    let traffic = Arc::clone(&fleet.traffic);
    // The event of this deletion names only the old key.
    traffic.genesys.delete(&customer(DELETED)).await;
    traffic.announce(DELETED, "customer.deleted", 0).await;

    // First every process names both keys in its events. Then, one by one, the processes look up under the new key.
    for settings in [&both, &swapped] {
        for number in 0..2 {
            fleet.replace(number, settings).await;
        }
    }
    for n in STEADY {
        let kept = (traffic.holds(&KeyHasher::Sha256, n).await, traffic.holds(&keyed(), n).await);
        assert_eq!(kept, (true, false), "customer {n} must stay at its old key");
    }
    eventually("the new key is filled", || async { traffic.holds(&keyed(), CHANGING.start).await.then_some(()) }).await;
    for member in &fleet.members {
        let answer = traffic.look_up(member.ports.public, DELETED).await;
        assert_eq!((answer.status, answer.cache_status.as_str()), (410, "profile-edge; hit; detail=tombstone"));
    }

    // Finally no process knows the old key.
    traffic.steady_hit.store(false, Ordering::SeqCst);
    for number in 0..2 {
        fleet.replace(number, &after).await;
    }
    for n in STEADY {
        eventually("the new key is filled", || async { traffic.holds(&keyed(), n).await.then_some(()) }).await;
    }
    fleet.end().await;
}
