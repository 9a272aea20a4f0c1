//! The oracle with notifications in place of webhooks.
//!
//! Two processes with all roles share a store; each watches what it fetches. Their sockets are cut and refused, channels
//! expire, and each process is killed; meanwhile changes are lost for good. No event bounds the age of an answer then, so it
//! is judged by the time of the change ([`ages`]): an answer may be older for `lookup.unwatched_ttl`, and as long as a
//! change takes on its way. No record expires within a run. At the end every customer is read once more: each answer must
//! show the last version.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::bounds;
use super::history::{Recorder, RunHistory, RunMicros};
use super::http::OracleClient;
use super::judge::age::{AnswerAges, ages};
use super::judge::{Judgement, judge};
use super::load::{ProfileWriter, RoundState, read, read_all};
use super::world::{READ_LAG, RunDirectory, ServiceProcess, UNSETTLED_TTL, UPSTREAM_TIMEOUT, loopback};
use crate::notifications::settings_of;
use crate::support::eventually;
use crate::support::process::{Process, configuration};
use crate::support::servers::redis::RedisServer;

const READERS: usize = 12;
const WRITERS: u32 = 3;
const CUSTOMERS: u32 = 200;

/// `lookup.unwatched_ttl`.
const UNWATCHED_TTL: Duration = Duration::from_secs(1);

/// How long a change may be on its way to its effect, or a lost socket unnoticed, on a busy machine.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// The time between two disturbances.
const CALM: Duration = Duration::from_millis(2_000);

/// The lifetime of a channel; it is replaced before.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(9);

/// What is done to the processes and their sockets, in this order.
const DISTURBANCES: [Disturbance; 6] = [
    Disturbance::CutSockets,
    Disturbance::Kill(0),
    Disturbance::RefuseSockets(Duration::from_secs(2)),
    Disturbance::Kill(1),
    Disturbance::AnnounceClosing,
    // So long that every channel expires.
    Disturbance::RefuseSockets(CHANNEL_LIFETIME),
];

#[derive(Clone, Copy, Debug)]
enum Disturbance {
    CutSockets,
    RefuseSockets(Duration),
    AnnounceClosing,
    Kill(usize),
}

/// The processes of the run.
struct NotifiedWorld {
    sandbox: SocketAddr,
    lookups: [SocketAddr; 2],
    processes: [ServiceProcess; 2],
    recorder: Arc<Recorder>,
    _genesys: Process,
    _redis: RedisServer,
    directory: RunDirectory,
}

impl NotifiedWorld {
    async fn start() -> Self {
        let redis = RedisServer::start(&["--appendfsync", "no"]).await;
        let [sandbox, one, other] = [(); 3].map(|()| loopback());
        let directory = RunDirectory::new();
        let file = configuration(directory.path(), &settings(sandbox, &redis)).display().to_string();
        let genesys = ["sandbox", "--listen", &sandbox.to_string(), "--customers", "1000", "--latency", "10ms"];
        let process = |public: SocketAddr, queue: &str| {
            let queue = directory.path().join(queue).display().to_string();
            let process = ServiceProcess::new("ingest,consumer,lookup", &file, public, "");
            process.with("PROFILE_EDGE__QUEUE__EMBEDDED__PATH", &queue)
        };
        let mut world = Self {
            sandbox,
            lookups: [one, other],
            processes: [process(one, "one"), process(other, "other")],
            recorder: Arc::new(Recorder::new()),
            _genesys: Process::start(directory.path(), &genesys, &[]),
            _redis: redis,
            directory,
        };
        eventually("the sandbox", || async {
            OracleClient::new(sandbox, "").send("GET", "/sandbox/behaviour", "").await.ok()
        })
        .await;
        world
            .behave(json!({
                "read_lag": format!("{}ms", READ_LAG.as_millis()), "event_lag": "5ms", "channel_lifetime": CHANNEL_LIFETIME.as_secs(),
                "permissions": ["externalContacts:contact:view", "audits:audit:view"],
            }))
            .await;
        for process in &mut world.processes {
            process.start(world.directory.path(), &world.recorder).await;
        }
        world
    }

    async fn behave(&self, behaviour: Value) {
        let mut client = OracleClient::new(self.sandbox, "");
        let reply = client.send("POST", "/sandbox/behaviour", &behaviour.to_string()).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    async fn disturb(&mut self, how: Disturbance) {
        match how {
            Disturbance::CutSockets => self.behave(json!({ "cut_sockets": true })).await,
            Disturbance::AnnounceClosing => self.behave(json!({ "announce_closing": true })).await,
            Disturbance::RefuseSockets(time) => {
                self.behave(json!({ "sockets": false })).await;
                sleep(time).await;
                self.behave(json!({ "sockets": true })).await;
            }
            Disturbance::Kill(n) => {
                self.processes[n].kill().await;
                sleep(Duration::from_millis(500)).await;
                self.processes[n].start(self.directory.path(), &self.recorder).await;
            }
        }
    }

    /// Waits until no process has anything to do about a gap; returns how many changes each found in the audits.
    async fn recovered(&self) -> Vec<f64> {
        let mut found = Vec::new();
        for process in &self.processes {
            let ask = async |path| OracleClient::new(process.admin, "").send("GET", path, "").await.unwrap().body;
            eventually("no gap is left", || async { ask("/readyz").await.contains("\"degraded\":[]").then_some(()) })
                .await;
            let metrics = ask("/metrics").await;
            let refused = "profile_edge_source_catch_ups_total{outcome=\"refused\"} 0";
            assert!(metrics.lines().any(|line| line == refused), "{metrics}");
            let replayed = metrics.lines().find_map(|line| line.strip_prefix("profile_edge_replayed_events_total "));
            found.push(replayed.unwrap().parse().unwrap());
        }
        found
    }
}

fn settings(sandbox: SocketAddr, redis: &RedisServer) -> String {
    let [timeout, unsettled, unwatched] =
        [UPSTREAM_TIMEOUT, UNSETTLED_TTL, UNWATCHED_TTL].map(|time| format!("{}ms", time.as_millis()));
    format!(
        r#"
        sandbox.enabled = false
        upstream = {{ timeout = "{timeout}", max_in_flight = 256 }}
        [lookup]
        ttl = "1h"
        unwatched_ttl = "{unwatched}"
        negative_ttl = "1s"
        unsettled_ttl = "{unsettled}"
        lease_ttl = "1200ms"
        [audit]
        lookups = "denied"
        [store]
        kind = "redis"
        redis.url = "{}"
        {}
        "#,
        redis.url(),
        settings_of(sandbox, "")
    )
}

/// Runs the load and all disturbances; returns what both judges say.
async fn run(world: &mut NotifiedWorld) -> (Judgement, AnswerAges) {
    let stage = Arc::new(RoundState::new(&world.recorder, 1, CUSTOMERS));
    let readers: Vec<_> = (0..READERS)
        .map(|_| tokio::spawn(read(Arc::clone(&stage), world.lookups, Duration::from_millis(20))))
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| ProfileWriter::new(&stage, world.sandbox, (n..CUSTOMERS).step_by(WRITERS as usize)))
        .map(|writer| tokio::spawn(writer.write(Duration::from_millis(100))))
        .collect();
    for how in DISTURBANCES {
        sleep(CALM).await;
        world.disturb(how).await;
    }
    sleep(CALM).await;
    stage.over.store(true, Ordering::Relaxed);
    let changes = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    let mut answers: Vec<_> = join_all(readers).await.into_iter().flat_map(Result::unwrap).collect();

    let found = world.recovered().await;
    assert!(found.iter().all(|found| *found > 0.0), "changes that were lost are found: {found:?}");
    // After this time every lookup must show the last version.
    sleep(bound() + READ_LAG).await;
    answers.extend(read_all(&stage, world.lookups).await);
    let customers = stage.customers.read().clone();
    let history = RunHistory { customers, changes, applies: world.recorder.finish(), answers };
    let micros = RunMicros::try_from(bound().as_micros()).unwrap();
    (judge(&history, bounds()), ages(&history, bounds(), micros))
}

fn bound() -> Duration {
    UNWATCHED_TTL + UPSTREAM_TIMEOUT + ON_THE_WAY
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_outlives_its_bound_whatever_becomes_of_sockets() {
    let (started, mut world) = (Instant::now(), NotifiedWorld::start().await);
    let (judgement, ages) = run(&mut world).await;
    let AnswerAges { longest, too_old, described } = ages;
    println!("\n{judgement}\nolder than a change for   {} ms at most", longest / 1_000);
    println!("took                      {} s", started.elapsed().as_secs());
    assert_eq!(judgement.faults, [], "{judgement}");
    assert_eq!(too_old, 0, "{described:#?}");
    assert!(judgement.answers > 1_000, "{judgement}");
}
