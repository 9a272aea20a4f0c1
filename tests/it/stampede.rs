//! Stampedes over several processes: however many lookups, Genesys gets one request.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Client;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::support::edge::{DEMO_KEYS, Edge, LookupAnswer, flat, looked, with_sandbox_of};
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

const PROCESSES: usize = 3;
const CROWD: usize = 10_000;
/// The most concurrent requests of one connection (HTTP/2, the server's limit).
const STREAMS: usize = 200;

/// Two crowds at once would be one of twenty thousand.
static ONE_CROWD: Mutex<()> = Mutex::const_new(());

/// A customer that Genesys does not know.
const NOBODY: &str = "00000000-0000-4000-8000-999999999999";

/// Three processes that look up, on one Redis; another ingests and consumes, and has the sandbox.
struct Crowded {
    deployment: Deployment,
    edge: Edge,
    processes: Vec<(Process, u16)>,
    /// For each process, connections enough for its share of the crowd.
    clients: Vec<Vec<Client>>,
    /// The requests to Genesys before the test started.
    before: u64,
    _alone: MutexGuard<'static, ()>,
    _directories: Vec<TempDir>,
}

impl Crowded {
    async fn start(latency: &str, deadline: &str) -> Self {
        let alone = ONE_CROWD.lock().await;
        let deployment = Deployment::start(Setup::Single).await;
        // The limits are wide, since the test is not about the load of this machine.
        let store = "[store]\nkind = \"redis\"\ntimeout = \"5s\"\n[store.redis]\n";
        let store = format!("{store}{}", deployment.settings);
        let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}")).await;
        let (mut processes, mut directories) = (Vec::new(), Vec::new());
        for _ in 0..PROCESSES {
            let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
            let own = format!(
                "roles = [\"lookup\"]\nhttp.listen = \"127.0.0.1:{port}\"\nadmin.listen = \"127.0.0.1:0\"\n\
                 sandbox.enabled = false\nlookup.deadline = \"{deadline}\"\n{DEMO_KEYS}{store}{}lookup_by = [\"customerId\", \"phone\"]\n",
                with_sandbox_of(edge.sandbox_address())
            );
            let file = configuration(directory.path(), &own).display().to_string();
            let process = Process::start(directory.path(), &["run", "--config", &file], &[]);
            process.wait_for_log("ready").await;
            processes.push((process, port));
            directories.push(directory);
        }
        let connections = CROWD.div_ceil(PROCESSES).div_ceil(STREAMS);
        let client = || Client::builder().http2_prior_knowledge().build().unwrap();
        let clients = (0..PROCESSES).map(|_| (0..connections).map(|_| client()).collect()).collect();
        let mut crowded =
            Self { deployment, edge, processes, clients, before: 0, _alone: alone, _directories: directories };
        // Redis knows the scripts from here on.
        let warm = (0..PROCESSES).map(|process| crowded.look_up(process, 0, NOBODY));
        assert!(join_all(warm).await.iter().all(|answer| answer.status == 404));
        crowded.edge.behave(json!({ "latency": latency })).await;
        crowded.before = crowded.edge.calls().await.0;
        crowded
    }

    /// Returns the number of requests to Genesys.
    async fn calls(&self) -> u64 {
        self.edge.calls().await.0 - self.before
    }

    async fn look_up(&self, process: usize, number: usize, customer: &str) -> LookupAnswer {
        self.look_up_by(process, number, ("customerId", customer)).await
    }

    async fn look_up_by(&self, process: usize, number: usize, by: (&str, &str)) -> LookupAnswer {
        let clients = &self.clients[process];
        let url = format!("http://127.0.0.1:{}/api/v1/profile", self.processes[process].1);
        let request = clients[number % clients.len()].get(url).header("X-API-Key", "demo-key");
        looked(request.query(&[("tenantId", "10001"), by]).send().await.unwrap()).await
    }

    /// Sends all lookups at once.
    async fn crowd(&self, by: (&str, &str)) {
        let all = (0..CROWD).map(|n| self.look_up_by(n % PROCESSES, n / PROCESSES, by));
        for answer in join_all(all).await {
            assert_eq!(answer.status, 200, "{} {}", answer.cache_status, answer.text);
            assert_eq!(answer.json()["id"], json!(customer(1)));
            assert!(!answer.cache_status.contains("bypass"), "{}", answer.cache_status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_lookups_in_three_processes_cost_one_call() {
    // The last of ten thousand may wait long for a busy machine.
    let crowded = Crowded::start("300ms", "30s").await;
    let one = customer(1);
    crowded.crowd(("customerId", &one)).await;
    assert_eq!(crowded.calls().await, 1);

    // The event arrives at some moment of the next lookups: one more call, whenever it is. It has the time of its change,
    // as Genesys' events do: a fill after an event without one is unsettled, and is fetched again after two seconds.
    let mut stamped = flat(&one);
    stamped["modifyDate"] = json!("2020-01-01T00:00:00.000Z");
    let event = async { crowded.edge.post_event(&stamped).await.status() };
    let ((), status) = tokio::join!(crowded.crowd(("customerId", &one)), event);
    assert_eq!(status, 202);
    crowded.edge.applied("updated", 1.0).await;
    crowded.crowd(("customerId", &one)).await;
    assert_eq!(crowded.calls().await, 2);
    crowded.edge.stop().await;
}

/// Nobody knows whose number it is before Genesys has answered, so one request finds the customer and one fills its entry.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_lookups_of_a_cold_number_cost_two_calls() {
    const NUMBER: &str = "+12025550171";
    // Each of them reads the store twice, and the last ones wait long for a busy machine.
    let crowded = Crowded::start("300ms", "60s").await;
    let by_number = ("phone", NUMBER);
    crowded.edge.change(&customer(1), json!({ "workPhone": { "e164": NUMBER } })).await;
    crowded.edge.applied("updated", 1.0).await;
    crowded.crowd(by_number).await;
    assert_eq!(crowded.calls().await, 2);

    // The event names the number, so its pointer is gone; but every process knows where it led, and one request is enough.
    crowded.edge.change(&customer(1), json!({ "cellPhone": null })).await;
    crowded.edge.applied("updated", 2.0).await;
    crowded.crowd(by_number).await;
    assert_eq!(crowded.calls().await, 3);
    crowded.edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_lease_holder_delays_lookups_by_at_most_the_lease_ttl() {
    let mut crowded = Crowded::start("1500ms", "1500ms").await;
    let one = customer(1);
    tokio::select! {
        answer = crowded.look_up(0, 0, &one) => panic!("answered before Genesys did: {answer:?}"),
        () = eventually("the request is at Genesys", || async { (crowded.calls().await == 1).then_some(()) }) => {}
    }
    crowded.processes[0].0.signal("KILL");
    let killed = Instant::now();
    crowded.edge.behave(json!({ "latency": "0ms" })).await;
    let served = eventually("another process serves", || async {
        let asked = Instant::now();
        let answer = crowded.look_up(1, 0, &one).await;
        assert!(matches!(answer.status, 200 | 503), "{}", answer.text);
        // The lookup's own deadline is 1.5 s; no caller waits beyond Architect's two.
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        (answer.status == 200).then(Instant::now)
    })
    .await;
    // The lease lasts 2 s from the start of the fetch.
    assert!(served - killed < Duration::from_secs(4), "{:?}", served - killed);
    assert_eq!(crowded.calls().await, 2);
    crowded.processes[0].0.ended().await;
    crowded.edge.stop().await;
}

/// A lookup that waits for the fetch of another process is woken by the announcement, and sends few commands to Redis.
#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_waiting_for_another_process_sends_few_redis_commands() {
    let crowded = Crowded::start("700ms", "1500ms").await;
    let one = customer(1);
    let counted = crate::redis::count_commands(&crowded.deployment, async {
        let leads = crowded.look_up(0, 0, &one);
        let follows = async {
            eventually("the request is at Genesys", || async { (crowded.calls().await == 1).then_some(()) }).await;
            crowded.look_up(1, 0, &one).await
        };
        let (led, followed) = tokio::join!(leads, follows);
        assert_eq!((led.status, followed.status), (200, 200));
        assert!(followed.cache_status.contains("collapsed"), "{}", followed.cache_status);
    })
    .await;
    // The leader sends a read, the lease and the fill.
    let all: u32 = counted.values().sum();
    assert!(all - 3 < 10, "{counted:?}");
    assert_eq!(counted["SUBSCRIBE"], 1, "{counted:?}");
    assert_eq!(crowded.calls().await, 1);
    crowded.edge.stop().await;
}
