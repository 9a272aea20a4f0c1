//! A Redis that answers and takes no writes: readiness, metric and log name the reason, once, and all recovers.

use redis::aio::MultiplexedConnection;

use crate::support::process::{Ports, Process};
use crate::support::servers::redis::RedisServer;
use crate::support::{customer, eventually};

/// How many keys a server loads slowly, one in a millisecond.
const SLOW_KEYS: u32 = 20_000;

/// The real binary on a Redis of its own.
struct Refused {
    server: RedisServer,
    ports: Ports,
    process: Process,
    client: reqwest::Client,
    /// Removed when this is dropped.
    _directory: tempfile::TempDir,
}

async fn ordered(connection: &mut MultiplexedConnection, words: &[&str]) {
    redis::cmd(words[0]).arg(&words[1..]).exec_async(connection).await.unwrap();
}

impl Refused {
    async fn start(more: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (server, directory) = (RedisServer::start(more).await, tempfile::tempdir().unwrap());
        let (ports, client) = (Ports::draw(), reqwest::Client::new());
        let url = server.url();
        let settings = [("PROFILE_EDGE__STORE__KIND", "redis"), ("PROFILE_EDGE__STORE__REDIS__URL", url.as_str())];
        let process = ports.start(directory.path(), &settings);
        ports.ready(&client).await;
        Self { server, ports, process, client, _directory: directory }
    }

    fn lines(&self, parts: &[&str]) -> usize {
        let log = self.process.log();
        log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    async fn is_degraded(&self, expected: bool) {
        eventually("readiness follows the store", || async {
            let degraded = self.ports.ready(&self.client).await["degraded"].to_string().contains("store");
            (degraded == expected).then_some(())
        })
        .await;
        let up = f64::from(u8::from(!expected));
        eventually("the metric follows the store", || async {
            (self.ports.metric(&self.client, "profile_edge_store_up").await == up).then_some(())
        })
        .await;
    }

    /// Posts an event while the store takes none: it pauses the consumer, for the reason that the server gives.
    async fn refuses_an_event(&self, reason: &str) {
        self.is_degraded(true).await;
        assert_eq!(self.ports.post(&self.client, 1).await, 202);
        eventually("the consumer is paused", || async {
            (self.lines(&["pausing the consumer", reason]) == 1).then_some(())
        })
        .await;
        assert_eq!(self.lines(&["dependency does not work", reason]), 1, "{}", self.process.log());
    }

    /// After the trouble: the event is applied, and each change was logged once.
    async fn recovers(mut self) {
        self.is_degraded(false).await;
        eventually("the event is applied", || async {
            let outcomes = ["applied", "duplicate"]
                .map(|outcome| format!("profile_edge_consumer_events_total{{kind=\"updated\",outcome=\"{outcome}\"}}"));
            let mut done = 0.0;
            for series in outcomes {
                done += self.ports.metric(&self.client, &series).await;
            }
            (done >= 1.0).then_some(())
        })
        .await;
        let once =
            ["dependency does not work", "pausing the consumer", "dependency works again", "resuming the consumer"];
        for line in once {
            // A state is shown before its line is written.
            self.process.wait_for_log(line).await;
        }
        for line in once {
            assert_eq!(self.lines(&[line]), 1, "{line}: {}", self.process.log());
        }
        assert_eq!(self.ports.metric(&self.client, "profile_edge_dead_letters").await, 0.0);
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await, Some(0), "{}", self.process.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_its_replicas_is_named() {
    let it = Refused::start(&[]).await;
    it.server.order(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    it.refuses_an_event("NOREPLICAS").await;
    it.server.order(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    it.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_replica_is_named() {
    let it = Refused::start(&[]).await;
    it.server.order(&["REPLICAOF", "127.0.0.1", "1"]).await;
    it.refuses_an_event("READONLY").await;
    it.server.order(&["REPLICAOF", "NO", "ONE"]).await;
    it.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_writes_are_named() {
    let it = Refused::start(&[]).await;
    it.server.order(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    it.refuses_an_event("CLIENT PAUSE").await;
    it.server.order(&["CLIENT", "UNPAUSE"]).await;
    it.recovers().await;
}

/// Snapshots fail, because a directory has the name of their file.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_persist_is_named() {
    let it = Refused::start(&[]).await;
    let file = it.server.directory().join("dump.rdb");
    std::fs::create_dir(&file).unwrap();
    it.server.order(&["CONFIG", "SET", "save", "3600 1"]).await;
    it.server.order(&["BGSAVE"]).await;
    it.refuses_an_event("MISCONF").await;
    it.server.order(&["CONFIG", "SET", "save", ""]).await;
    it.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_named() {
    let it = Refused::start(&[]).await;
    let mut busy = it.server.connect().await.unwrap();
    let mut other = it.server.connect().await.unwrap();
    ordered(&mut other, &["CONFIG", "SET", "busy-reply-threshold", "50"]).await;
    let endless =
        tokio::spawn(async move { redis::cmd("EVAL").arg("while true do end").arg(0).exec_async(&mut busy).await });
    it.refuses_an_event("BUSY").await;
    ordered(&mut other, &["SCRIPT", "KILL"]).await;
    assert!(endless.await.unwrap().is_err());
    it.recovers().await;
}

/// After a restart the connection is refused at first; then the server loads its data.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_its_data_is_named() {
    let slowly = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let mut it = Refused::start(&slowly).await;
    let mut connection = it.server.connect().await.unwrap();
    let mut keys = redis::pipe();
    for n in 0..SLOW_KEYS {
        keys.set(format!("other-{n}"), customer(n)).ignore();
    }
    keys.exec_async(&mut connection).await.unwrap();
    it.server.relaunch().await;
    it.process.wait_for_log("LOADING").await;
    it.is_degraded(true).await;
    eventually("the server loads faster", || async {
        let mut connection = it.server.connect().await?;
        redis::cmd("CONFIG").arg(&["SET", "key-load-delay", "0"]).exec_async(&mut connection).await.ok()
    })
    .await;
    it.is_degraded(false).await;
    assert_eq!(it.ports.post(&it.client, 1).await, 202);
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    eventually("the event is applied", || async { (it.ports.metric(&it.client, applied).await >= 1.0).then_some(()) })
        .await;
    it.process.signal("TERM");
    assert_eq!(it.process.ended().await, Some(0), "{}", it.process.log());
}
