//! The embedded queue and the outbox on a full disk: a small one, which only the service sees.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::process::{Ports, Process, configuration};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;
use crate::support::{customer, eventually};

/// The size of the disk.
const MIB: u32 = 24;

/// More arrays than the disk has space for, and the events of each.
const ARRAYS: u32 = 400;
const EVENTS: u32 = 500;

/// The longest until `/readyz` names the disk.
const SHOWN_WITHIN: Duration = Duration::from_secs(3);

/// The longest that the accepted events take to be applied.
const LONGEST: Duration = Duration::from_secs(120);

/// The service and its small disk.
struct SmallDisk {
    directory: TempDir,
    ports: Ports,
    client: Client,
}

impl SmallDisk {
    fn new() -> Self {
        // A client needs a TLS provider, also for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("disk")).unwrap();
        Self { directory, ports: Ports::draw(), client: Client::new() }
    }

    /// Returns a directory on the disk.
    fn path(&self) -> PathBuf {
        self.directory.path().join("disk/queue")
    }

    async fn start(&self, settings: &str) -> Process {
        let directory: &Path = self.directory.path();
        let file = configuration(directory, &format!("{settings}[audit]\nsink = \"none\"\n")).display().to_string();
        let environment = [("PROFILE_EDGE_CONFIG", file.as_str())];
        let process = self.ports.start_on_small_disk(directory, &directory.join("disk"), MIB, &environment);
        self.ports.ready(&self.client).await;
        process
    }

    /// Copies what is on the disk, for the next process: the disk ends with this one.
    fn keep(&self, service: &Process) {
        let kept = self.directory.path().join("disk.kept");
        let copied = std::process::Command::new("cp").arg("-a").arg(self.seen_by(service)).arg(kept).status();
        assert!(copied.unwrap().success());
    }

    async fn post(&self, n: u32) -> u16 {
        let event = |k: u32| json!({ "tenantId": "10001", "customerId": customer(EVENTS * n + k) });
        let events: Vec<Value> = (0..EVENTS).map(event).collect();
        let url = format!("http://127.0.0.1:{}/webhooks/10001", self.ports.public);
        let posted = self.client.post(url).header("X-API-Key", "demo-secret").json(&events).send().await.unwrap();
        posted.status().as_u16()
    }

    /// Posts arrays of events until the disk is full and `/readyz` says so in the reason of `part`; returns how many events
    /// were accepted.
    async fn fill(&self, part: &str) -> u32 {
        let mut accepted = 0;
        while accepted < ARRAYS && self.post(accepted).await == 202 {
            accepted += 1;
        }
        let full = Instant::now();
        assert!((5..ARRAYS).contains(&accepted), "{accepted} arrays were accepted");
        assert_eq!(self.post(accepted).await, 503);
        self.is_named_full(part).await;
        assert!(full.elapsed() < SHOWN_WITHIN, "{:?}", full.elapsed());
        accepted * EVENTS
    }

    async fn is_named_full(&self, part: &str) {
        eventually("the disk is named", || async {
            let ready = self.ports.ready(&self.client).await;
            let reason = ready["reasons"][part].as_str()?;
            reason.contains("the disk of the queue is full").then_some(())
        })
        .await;
    }

    /// Fills the disk with a file of another program.
    fn fill_with_other_files(&self, service: &Process) {
        let mut file = std::fs::File::create(self.seen_by(service).join("other")).unwrap();
        let full = std::iter::repeat_with(|| file.write_all(&[0; 4_096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    /// Returns the path of the disk as this process sees it.
    fn seen_by(&self, service: &Process) -> PathBuf {
        format!("/proc/{}/root{}", service.pid(), self.directory.path().join("disk").display()).into()
    }

    /// Returns whether this many events took effect and none is left. An event whose effect was answered too late is
    /// delivered again, and is a duplicate then.
    async fn took_effect(&self, events: u32) -> bool {
        let metric = async |series: &str| self.ports.metric(&self.client, series).await;
        let outcome = |outcome| format!("profile_edge_consumer_events_total{{kind=\"updated\",outcome=\"{outcome}\"}}");
        let there = metric(&outcome("applied")).await + metric(&outcome("duplicate")).await;
        there >= f64::from(events) && metric("profile_edge_queue_events").await == 0.0
    }

    /// Waits until the accepted events are applied and others are accepted again.
    async fn drains(&self, accepted: u32, service: &mut Process) {
        let began = Instant::now();
        while !self.took_effect(accepted).await {
            assert!(began.elapsed() < LONGEST, "{}", service.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        eventually("events are accepted again", || async { (self.post(ARRAYS).await == 202).then_some(()) }).await;
        assert!(!service.log().contains("the queue's file failed"), "{}", service.log());
        service.signal("TERM");
        assert_eq!(service.ended().await, Some(0));
    }
}

/// While Redis is down, events fill the disk. Then events are refused, and no file fails. Once Redis is back, every accepted
/// event is applied although the disk is still full, and after that events are accepted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_events_and_drains_once_redis_is_back() {
    let (mut redis, disk) = (RedisServer::start(&[]).await, SmallDisk::new());
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = {:?}\n", redis.url());
    let mut service = disk.start(&format!("{store}[queue.embedded]\npath = {:?}\n", disk.path())).await;
    redis.kill().await;
    let accepted = disk.fill("queue").await;
    let oldest = async || disk.ports.metric(&disk.client, "profile_edge_outbox_oldest_seconds").await;
    assert!(oldest().await > 0.0);
    redis.restart().await;
    disk.drains(accepted, &mut service).await;
}

/// The next process starts on the full disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_on_a_full_disk_loses_no_accepted_event() {
    let (mut redis, disk) = (RedisServer::start(&[]).await, SmallDisk::new());
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = {:?}\n", redis.url());
    let settings = format!("{store}[queue.embedded]\npath = {:?}\n", disk.path());
    let mut service = disk.start(&settings).await;
    redis.kill().await;
    let accepted = disk.fill("queue").await;
    disk.keep(&service);
    service.signal("KILL");
    assert_eq!(service.ended().await, None);
    redis.restart().await;
    let mut service = disk.start(&settings).await;
    disk.drains(accepted, &mut service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_that_cannot_be_made_is_logged_and_stops_nothing() {
    let disk = SmallDisk::new();
    let directory = disk.directory.path().join("queue");
    std::fs::create_dir_all(directory.join("queue.reserve")).unwrap();
    let service = disk.start(&format!("[queue.embedded]\npath = {directory:?}\n")).await;
    service.wait_for_log("no space can be reserved").await;
    assert_eq!(disk.post(0).await, 202);
    assert_eq!(disk.ports.ready(&disk.client).await["status"], "ready");
}

/// Starts a service with an outbox on the disk, and with RabbitMQ behind a proxy.
async fn with_outbox(broker: &RabbitServer, disk: &SmallDisk) -> (Proxy, Process) {
    let proxy = Proxy::to(broker.port).await;
    let queue = format!("[queue]\nkind = \"amqp\"\n[queue.amqp]\nurl = \"amqp://guest:guest@{}/%2f\"\n", proxy.address);
    let outbox = format!("[queue.outbox]\nenabled = true\nrate = 1000000\npath = {:?}\n", disk.path());
    let service = disk.start(&format!("{queue}{outbox}")).await;
    (proxy, service)
}

/// The same for the outbox, while RabbitMQ is down.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_outbox_hands_on_once_rabbitmq_is_back() {
    let (broker, disk) = (RabbitServer::start("").await, SmallDisk::new());
    let (proxy, mut service) = with_outbox(&broker, &disk).await;
    proxy.set(Link::Broken);
    let accepted = disk.fill("outbox").await;
    proxy.set(Link::Whole);
    disk.drains(accepted, &mut service).await;
}

/// The outbox holds nothing that would show that RabbitMQ is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_filled_keeps_no_event_from_rabbitmq_once_it_is_back() {
    let (broker, disk) = (RabbitServer::start("").await, SmallDisk::new());
    let (proxy, service) = with_outbox(&broker, &disk).await;
    disk.fill_with_other_files(&service);
    disk.is_named_full("outbox").await;
    proxy.set(Link::Broken);
    eventually("events are refused", || async { (disk.post(0).await == 503).then_some(()) }).await;
    proxy.set(Link::Whole);
    eventually("events are accepted", || async { (disk.post(0).await == 202).then_some(()) }).await;
}
