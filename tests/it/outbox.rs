//! The outbox: webhooks get 202 while RabbitMQ is down, and every event is applied afterwards.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use profile_edge::clock::SystemClock;
use profile_edge::config;
use profile_edge::domain::{Digest, Event, Kind, Shape, Stamps, Timestamp};
use profile_edge::metrics::Metrics;
use profile_edge::queue::open::{self, OpenQueue, QueueKind};
use profile_edge::queue::{Error, Payload, Publisher};
use profile_edge::shutdown::Shutdown;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use crate::support::command::run;
use crate::support::edge::{Edge, flat, on_rabbit};
use crate::support::load::Load;
use crate::support::process::{Ports, configuration};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{PATIENCE, customer, eventually};

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

/// An own virtual host on the broker that these tests share, behind a proxy that can break the link.
struct Broker {
    server: &'static RabbitServer,
    vhost: String,
    proxy: Proxy,
}

impl Broker {
    async fn new() -> Self {
        static SHARED: OnceCell<RabbitServer> = OnceCell::const_new();
        let server = SHARED.get_or_init(|| RabbitServer::start("")).await;
        Self { server, vhost: server.vhost().await, proxy: Proxy::to(server.port).await }
    }

    /// Returns the URL of the service under test.
    fn url(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.proxy.address, self.vhost)
    }

    /// Returns the settings of a consumer whose link is whole.
    fn consumer(&self) -> String {
        format!("{QUICK}{}", on_rabbit(&self.server.url(&self.vhost)))
    }

    fn fails(&self) {
        self.proxy.set(Link::Broken);
    }

    fn is_back(&self) {
        self.proxy.set(Link::Whole);
    }
}

/// The settings of a queue in RabbitMQ with an outbox.
fn with_outbox(url: &str, directory: &Path, more: &str) -> String {
    let path = directory.join("outbox").display().to_string();
    format!("{}[queue.outbox]\nenabled = true\npath = {path:?}\n{more}", on_rabbit(url))
}

/// An event of customer `n` in its own words: which shard it belongs to follows from `n`.
fn event(n: usize) -> Event {
    Event {
        id: n.to_string().parse().unwrap(),
        identity: Digest::from_bytes([7; 16]),
        tenant: "10001".parse().unwrap(),
        keys: vec![Digest::from_bytes([u8::try_from(n % 251).unwrap(); 16])],
        kind: Kind::Updated,
        stamps: Stamps::default(),
        received_at: Timestamp::from_millis(1_741_064_767_500),
        shape: Shape::Flat,
        traceparent: None,
        force: false,
        again: None,
        identifiers: Vec::new(),
    }
}

async fn open(url: &str, directory: &Path, shards: u16, more: &str) -> OpenQueue {
    let mut config = config::from_toml(&with_outbox(url, directory, more)).unwrap().config.queue;
    config.amqp.shards = shards;
    assert_eq!(config.kind, QueueKind::Amqp);
    let (_, shutdown) = Shutdown::new();
    let opened = open::open(&config, SystemClock::shared(), &shutdown, Metrics::new());
    timeout(PATIENCE, opened).await.expect("it opens").unwrap()
}

/// Publishes the events of a range, one after the other.
async fn publish(publisher: &dyn Publisher, range: std::ops::Range<usize>) {
    for n in range {
        timeout(PATIENCE, publisher.publish(&[event(n)])).await.expect("in time").unwrap();
    }
}

/// Takes deliveries until each of `count` events came once; returns their numbers in the order in which they came first.
async fn take(opened: &OpenQueue, count: usize) -> Vec<usize> {
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    while order.len() < count {
        let delivery = timeout(PATIENCE, subscription.next()).await.expect("the next event comes").unwrap();
        let Payload::Event(event) = delivery.payload() else { panic!("{delivery:?} is no event") };
        let n = event.id.as_str().parse().unwrap();
        if seen.insert(n) {
            order.push(n);
        }
        delivery.ack().await.unwrap();
    }
    order
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Killed,
    Alarmed,
    Stopped,
    Broken,
}

/// The broker fails under load in each of its ways; no sender is asked to retry, and every event is applied.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_broker_costs_no_sender_a_retry_and_loses_nothing() {
    let redis = Deployment::start(Setup::Single).await;
    let mut broker = RabbitServer::start("").await;
    let (proxy, directory) = (Proxy::to(broker.port).await, tempfile::tempdir().unwrap());
    let url = format!("amqp://guest:guest@{}/%2f", proxy.address);
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", redis.settings);
    let edge = Edge::start_with(&format!("{QUICK}{store}{}", with_outbox(&url, directory.path(), ""))).await;
    let load = Load::on(&edge).await;
    let story = async {
        // A stream of RabbitMQ 3.10 whose broker is killed soon after its declaration does not start again, so that is last.
        for trouble in [Trouble::Alarmed, Trouble::Stopped, Trouble::Broken, Trouble::Killed] {
            load.accepts(100).await;
            match trouble {
                Trouble::Killed => broker.kill().await,
                Trouble::Alarmed => broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await,
                Trouble::Stopped => broker.pause().await,
                Trouble::Broken => proxy.set(Link::Broken),
            }
            edge.is_without("outbox").await;
            load.accepts(600).await;
            assert!(edge.metric("profile_edge_outbox_events").await > 0.0, "{trouble:?}");
            match trouble {
                Trouble::Killed => broker.restart().await,
                Trouble::Alarmed => broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await,
                Trouble::Stopped => broker.unpause().await,
                Trouble::Broken => proxy.set(Link::Whole),
            }
            // New events keep arriving: the detour ends all the same.
            edge.is_ready().await;
            assert_eq!(edge.metric("profile_edge_outbox_events").await, 0.0, "{trouble:?}");
        }
        load.accepts(100).await;
    };
    load.during(story).await;
    println!("{}", load.summary());
    load.all_were_accepted();
    load.accepted_are_applied(&redis.servers[0].connect().await.unwrap()).await;
    load.answers_are_current().await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

/// Publishing goes on while the outbox is handed on, so this includes the moment when events go to the broker directly again.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_shard_are_handed_on_in_their_order() {
    const SHARDS: u16 = 2;
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let opened = open(&broker.url(), directory.path(), SHARDS, "").await;
    publish(&*opened.publisher, 0..50).await;
    broker.fails();
    publish(&*opened.publisher, 50..400).await;
    let outbox = opened.outbox.as_ref().unwrap();
    assert_eq!(outbox.status().await.events, 350);
    broker.is_back();
    let mut count = 400;
    while outbox.status().await.events > 0 {
        publish(&*opened.publisher, count..count + 1).await;
        count += 1;
    }
    publish(&*opened.publisher, count..count + 50).await;
    let order = take(&opened, count + 50).await;
    for shard in 0..usize::from(SHARDS) {
        let of_shard = |n: &&usize| event(**n).keys[0].as_bytes()[7] as usize % usize::from(SHARDS) == shard;
        let numbers: Vec<usize> = order.iter().filter(of_shard).copied().collect();
        assert!(numbers.len() > 100 && numbers.is_sorted(), "shard {shard}: {numbers:?}");
    }
    opened.closer.close().await.unwrap();
}

/// The process starts without its broker, and takes events.
#[tokio::test(flavor = "multi_thread")]
async fn kills_of_ingest_during_an_outage_lose_no_accepted_event() {
    const KILLS: u32 = 9;
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ports, client) = (Ports::draw(), reqwest::Client::new());
    let settings = with_outbox(&broker.url(), directory.path(), "");
    let file = configuration(directory.path(), &settings).display().to_string();
    let environment = [("PROFILE_EDGE_CONFIG", file.as_str()), ("PROFILE_EDGE__ROLES", "[\"ingest\"]")];
    let mut process = ports.start(directory.path(), &environment);
    ports.ready(&client).await;
    broker.fails();
    let mut posted = 0;
    for kill in 0..=KILLS {
        let posts = (posted + 1..=posted + 25).map(|n| ports.post(&client, n));
        assert_eq!(futures_util::future::join_all(posts).await, [202; 25]);
        posted += 25;
        // The last one is killed while it hands events on.
        if kill == KILLS {
            broker.is_back();
        }
        process.signal("KILL");
        assert_eq!(process.ended().await, None);
        process = ports.start(directory.path(), &environment);
        ports.ready(&client).await;
    }
    eventually("the outbox is empty", || async {
        (ports.metric(&client, "profile_edge_outbox_events").await == 0.0).then_some(())
    })
    .await;
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
    let consumer = Edge::start_with(&broker.consumer()).await;
    consumer.applied("updated", f64::from(posted)).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_refuses_with_503_and_loses_nothing() {
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let settings = with_outbox(&broker.url(), directory.path(), "max_bytes = \"4KiB\"\n");
    let edge = Edge::start_with(&format!("{QUICK}{settings}")).await;
    broker.fails();
    let mut accepted = 0_u32;
    loop {
        let answer = edge.post_event(&flat(&customer(accepted + 1))).await;
        match answer.status().as_u16() {
            202 => accepted += 1,
            status => {
                assert_eq!(status, 503);
                assert_eq!(answer.headers()["retry-after"], "5");
                break;
            }
        }
    }
    assert!((5..=20).contains(&accepted), "{accepted} events are 4 KiB");
    edge.wait_for_metric("profile_edge_outbox_events", f64::from(accepted)).await;
    broker.is_back();
    edge.applied("updated", f64::from(accepted)).await;
    edge.is_ready().await;
    assert_eq!(edge.post_event(&flat(&customer(900))).await.status(), 202);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_full_outbox_are_within_its_limit() {
    const LIMIT: u64 = 8 << 20;
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let opened = open(&broker.url(), directory.path(), 1, &format!("max_bytes = \"{LIMIT}B\"\n")).await;
    broker.fails();
    for batch in 0.. {
        let events: Vec<Event> = (0..100).map(|n| event(100 * batch + n)).collect();
        match timeout(PATIENCE, opened.publisher.publish(&events)).await.expect("in time") {
            Ok(()) => {}
            Err(Error::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let status = opened.outbox.as_ref().unwrap().status().await;
    let events = status.bytes;
    // At the limit, the alert of a nearly full outbox has fired.
    assert!(10 * events > 9 * status.max_bytes, "{events} of {} bytes", status.max_bytes);
    assert!(events > LIMIT / 8 * 5, "only {events} bytes of events");
    let files = std::fs::read_dir(directory.path().join("outbox")).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(size <= LIMIT, "{size} bytes for {events} bytes of events");
    opened.closer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_queue_and_outbox_refuse_is_not_ready() {
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let settings = with_outbox(&broker.url(), directory.path(), "max_bytes = \"1B\"\n");
    let edge = Edge::start_with(&format!("roles = [\"ingest\"]\n{QUICK}{settings}")).await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    broker.fails();
    eventually("not ready", || async { (edge.ready().await["status"] == "unavailable").then_some(()) }).await;
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 503);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_what_waits_and_hand_it_on() {
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    // At this rate the outbox takes minutes to hand on what waits.
    let settings = with_outbox(&broker.url(), directory.path(), "rate = 1\n");
    let edge = Edge::start_with(&format!("{QUICK}{settings}")).await;
    let status = run(&edge, &["outbox", "status", "--json"]).await.json();
    assert_eq!((&status["events"], &status["oldestSeconds"], &status["accepts"]), (&json!(0), &json!(0), &json!(true)));
    broker.fails();
    for chunk in (1..=600).collect::<Vec<u32>>().chunks(50) {
        let posts = chunk.iter().map(|n| async { edge.post_event(&flat(&customer(*n))).await.status().as_u16() });
        assert_eq!(futures_util::future::join_all(posts).await, [202; 50]);
    }
    edge.wait_for_metric("profile_edge_outbox_events", 600.0).await;
    let ready = edge.ready().await;
    assert_eq!(ready["status"], "degraded");
    assert!(ready["reasons"]["outbox"].as_str().unwrap().starts_with("600 events wait"), "{ready}");
    assert!(edge.metric("profile_edge_outbox_bytes").await > 60_000.0);
    edge.wait_for_metric("profile_edge_outbox_oldest_seconds", 0.5).await;
    private(&directory);
    let left = run(&edge, &["outbox", "drain", "--timeout", "1s", "--json"]).await;
    assert_eq!(left.code, Some(69), "{}", left.err);
    assert!(left.err.contains("600 events"), "{}", left.err);
    let left: Value = serde_json::from_str(&left.out).unwrap();
    assert_eq!((&left["status"], &left["events"]), (&json!("remaining"), &json!(600)));

    broker.is_back();
    let drained = run(&edge, &["outbox", "drain", "--timeout", "50s"]).await;
    assert_eq!(drained.code, Some(0), "{}", drained.err);
    assert!(drained.out.contains("drained"), "{}", drained.out);
    edge.applied("updated", 600.0).await;
    edge.is_ready().await;
    edge.stop().await;

    let without = Edge::start_with(QUICK).await;
    let refused = run(&without, &["outbox", "status"]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.err);
    assert!(refused.err.contains("queue.outbox.enabled"), "{}", refused.err);
    without.stop().await;
}

/// Only the owner can read the files.
fn private(directory: &TempDir) {
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let outbox = directory.path().join("outbox");
    let files: Vec<_> = std::fs::read_dir(&outbox).unwrap().map(|file| file.unwrap().path()).collect();
    let modes: Vec<u32> = files.iter().map(|file| mode(file)).collect();
    assert_eq!((mode(&outbox), modes), (0o700, vec![0o600; 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_what_remains_and_the_next_process_hands_it_on() {
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ports, client) = (Ports::draw(), reqwest::Client::new());
    let settings = with_outbox(&broker.url(), directory.path(), "");
    let file = configuration(directory.path(), &settings).display().to_string();
    let environment = [("PROFILE_EDGE_CONFIG", file.as_str()), ("PROFILE_EDGE__SHUTDOWN__DEADLINE", "4s")];
    let mut first = ports.start(directory.path(), &environment);
    ports.ready(&client).await;
    broker.fails();
    for n in 1..=3 {
        assert_eq!(ports.post(&client, n).await, 202);
    }
    let asked = Instant::now();
    first.signal("TERM");
    assert_eq!(first.ended().await, Some(0), "{}", first.log());
    assert!(asked.elapsed() >= Duration::from_secs(2), "it waits for the broker");
    assert!(first.wait_for_log("events remain in the outbox").await.contains("3"), "{}", first.log());

    // Another one, which its broker comes back to while it drains.
    let mut second = ports.start(directory.path(), &[environment[0], ("PROFILE_EDGE__SHUTDOWN__DEADLINE", "60s")]);
    second.wait_for_log("events of an earlier process").await;
    ports.ready(&client).await;
    second.signal("TERM");
    second.wait_for_log("draining").await;
    broker.is_back();
    assert_eq!(second.ended().await, Some(0), "{}", second.log());
    assert!(!second.log().contains("events remain in the outbox"), "{}", second.log());
    let consumer = Edge::start_with(&broker.consumer()).await;
    consumer.applied("updated", 3.0).await;
    consumer.stop().await;
}

/// A refusal of the broker is a mistake of the configuration at the start. Later it is an outage.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_ends_the_start_and_later_fills_the_outbox() {
    let (broker, directory) = (Broker::new().await, tempfile::tempdir().unwrap());
    let queue = format!("/queues/{}/profile-edge.invalidations.0", broker.vhost);
    let classic = json!({ "durable": true, "arguments": { "x-queue-type": "classic" } });
    broker.server.api("PUT", &queue, Some(classic)).await.expect("the queue is declared");
    let settings = with_outbox(&broker.url(), directory.path(), "");
    let file = configuration(directory.path(), &settings).display().to_string();
    let (ports, environment) = (Ports::draw(), [("PROFILE_EDGE_CONFIG", file.as_str())]);
    let mut refused = ports.start(directory.path(), &environment);
    assert_eq!(refused.ended().await, Some(64), "{}", refused.log());

    broker.fails();
    let edge = Edge::start_with(&format!("{QUICK}{settings}")).await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    broker.is_back();
    edge.is_without("outbox").await;
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 202);
    broker.server.api("DELETE", &queue, None).await.expect("the queue is deleted");
    edge.applied("updated", 2.0).await;
    edge.is_ready().await;
    edge.stop().await;
}
