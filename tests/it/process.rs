//! The binary as a new user or an operator runs it: start, signals, crashes, a port in use.

use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::faults::Fault;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, timeout};

use crate::pairing::on_every_pairing;
use crate::support::edge::{DEMO_KEY_SHA256, Pairing};
use crate::support::process::{Ports, configuration, free_port};
use crate::support::{PATIENCE, customer, eventually};

on_every_pairing!(
    an_event_that_was_accepted_is_applied_after_a_kill,
    a_drain_that_cannot_finish_ends_at_its_deadline_and_loses_nothing,
);

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configuration_it_shows_the_demo_and_drains_on_interrupt() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let mut process = ports.start(directory.path(), &[]);
    assert_eq!(ports.ready(&client).await["status"], "ready");
    process.wait_for_log("curl").await;
    eventually("four curl lines", || async {
        (process.log().lines().filter(|line| line.trim_start().starts_with("curl ")).count() == 4).then_some(())
    })
    .await;
    process.signal("INT");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
}

async fn an_event_that_was_accepted_is_applied_after_a_kill(pairing: Pairing) {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let settings = configuration(directory.path(), &pairing.settings().await).display().to_string();
    let settings = ("PROFILE_EDGE_CONFIG", settings.as_str());
    let held = ("PROFILE_EDGE_FAULTS", Fault::PauseBeforeApply.as_str());
    let mut first = ports.start(directory.path(), &[settings, held]);
    ports.ready(&client).await;
    for n in 1..=5 {
        assert_eq!(ports.post(&client, n).await, 202);
    }
    first.signal("KILL");
    assert_eq!(first.ended().await, None);

    let mut second = ports.start(directory.path(), &[settings]);
    ports.ready(&client).await;
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    eventually("all five applied", || async { (ports.metric(&client, applied).await == 5.0).then_some(()) }).await;
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0), "{}", second.log());
}

async fn a_drain_that_cannot_finish_ends_at_its_deadline_and_loses_nothing(pairing: Pairing) {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let settings = configuration(directory.path(), &pairing.settings().await).display().to_string();
    let settings = ("PROFILE_EDGE_CONFIG", settings.as_str());
    let held = ("PROFILE_EDGE_FAULTS", Fault::PauseBeforeApply.as_str());
    let hurried = ("PROFILE_EDGE__SHUTDOWN__DEADLINE", "300ms");
    let mut first = ports.start(directory.path(), &[settings, held, hurried]);
    ports.ready(&client).await;
    assert_eq!(ports.post(&client, 1).await, 202);
    let asked = Instant::now();
    first.signal("TERM");
    first.ended().await;
    assert!(asked.elapsed() < Duration::from_secs(10));

    let mut second = ports.start(directory.path(), &[settings]);
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    ports.ready(&client).await;
    eventually("it is applied", || async { (ports.metric(&client, applied).await == 1.0).then_some(()) }).await;
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_a_clear_error() {
    let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
    let _taken = std::net::TcpListener::bind(("127.0.0.1", ports.public)).unwrap();
    let mut process = ports.start(directory.path(), &[]);
    assert_ne!(process.ended().await, Some(0));
    let complaint = process.wait_for_log("http.listen").await;
    assert!(process.log().contains(&ports.public.to_string()), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_queue_is_a_clear_error() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let mut first = ports.start(directory.path(), &[]);
    ports.ready(&client).await;
    let mut second = Ports::draw().start(directory.path(), &[]);
    assert_ne!(second.ended().await, Some(0));
    assert!(second.log().contains("data/queue"), "{}", second.log());
    first.signal("TERM");
    assert_eq!(first.ended().await, Some(0));
}

#[tokio::test]
async fn a_dependency_that_does_not_answer_is_named_with_its_address() {
    let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
    let address = format!("127.0.0.1:{}", free_port());
    let (redis, amqp) = (format!("redis://planted@{address}"), format!("amqp://planted:planted@{address}"));
    for (dependency, settings) in [
        ("the store (Redis)", [("PROFILE_EDGE__STORE__KIND", "redis"), ("PROFILE_EDGE__STORE__REDIS__URL", &redis)]),
        ("the queue (RabbitMQ)", [("PROFILE_EDGE__QUEUE__KIND", "amqp"), ("PROFILE_EDGE__QUEUE__AMQP__URL", &amqp)]),
    ] {
        let settings = [settings[0], settings[1], ("PROFILE_EDGE__STARTUP_TIMEOUT", "500ms")];
        let mut process = ports.start(directory.path(), &settings);
        assert_eq!(process.ended().await, Some(69), "{}", process.log());
        let complaint = process.wait_for_log("cannot start").await;
        for part in [dependency, address.as_str(), "refused", "500ms"] {
            assert!(process.log().contains(part), "{part}: {complaint}");
        }
        assert!(!process.log().contains("planted"), "{}", process.log());
    }
}

/// A signal during the wait for a dependency ends the process like a later signal.
#[tokio::test]
async fn a_signal_during_the_start_ends_the_process_cleanly() {
    let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let store = [("PROFILE_EDGE__STORE__KIND", "redis"), ("PROFILE_EDGE__STORE__REDIS__URL", nobody.as_str())];
    let mut process = ports.start(directory.path(), &store);
    process.wait_for_log("redis cannot be reached").await;
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
}

impl Ports {
    /// Returns the status and the JSON of a probe, over a connection of its own.
    async fn probe(&self, path: &str) -> (u16, Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let answer = client().get(url).timeout(PROMPT).send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Looks a customer up over a connection of its own; returns the status.
    async fn look_up(&self) -> Option<u16> {
        let url = format!("http://127.0.0.1:{}/api/v1/profile", self.public);
        let query = [("tenantId", "10001"), ("customerId", &customer(1))];
        let request = client().get(url).header("X-API-Key", "demo-key").query(&query).timeout(PROMPT);
        Some(request.send().await.ok()?.status().as_u16())
    }

    /// Sends commands that are refused, each with a log line, until the log drops lines.
    async fn fill_the_log(&self, client: &reqwest::Client) {
        let url = format!("http://127.0.0.1:{}/admin/inspect", self.admin);
        let foreign = json!({ "tenantId": "f".repeat(64), "customerId": customer(1) });
        eventually("log lines are dropped", || async {
            let refused = || client.post(&url).timeout(PROMPT).json(&foreign).send();
            for answer in join_all((0..64).map(|_| refused())).await {
                assert_eq!(answer.expect("a command is answered").status(), 404);
            }
            (self.metric(client, LINES_DROPPED).await > 0.0).then_some(())
        })
        .await;
    }
}

/// Far more than an answer takes, and less than a process that hangs.
const PROMPT: Duration = Duration::from_secs(20);

const LINES_DROPPED: &str = "profile_edge_log_lines_dropped_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_no_lookup_no_probe_and_no_drain() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let (mut process, _unread) = ports.start_unread(directory.path(), &[]);
    ports.ready(&client).await;
    ports.fill_the_log(&client).await;
    for _ in 0..64 {
        assert_eq!(ports.look_up().await, Some(200));
    }
    assert_eq!((ports.probe("/livez").await.0, ports.probe("/readyz").await.0), (200, 200));
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_again_reports_its_dropped_lines() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let json = [("PROFILE_EDGE__LOG__FORMAT", "json")];
    let (mut process, unread) = ports.start_unread(directory.path(), &json);
    ports.ready(&client).await;
    ports.fill_the_log(&client).await;
    let mut lines = BufReader::new(unread).lines();
    let reported = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the process runs");
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if line["message"].to_string().contains("log lines were dropped") {
                return line;
            }
        }
    };
    let report = timeout(PATIENCE, reported).await.expect("the log reports the dropped lines");
    assert!(report["lines"].as_u64() > Some(0), "{report}");
    process.signal("TERM");
    let last = async { while lines.next_line().await.unwrap().is_some_and(|line| !line.contains("\"stopped\"")) {} };
    let (code, ()) = tokio::join!(process.ended(), last);
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_is_alive_and_names_what_it_waits_for() {
    let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let store = [("PROFILE_EDGE__STORE__KIND", "redis"), ("PROFILE_EDGE__STORE__REDIS__URL", nobody.as_str())];
    let mut process = ports.start(directory.path(), &store);
    process.wait_for_log("redis cannot be reached").await;
    assert_eq!(ports.probe("/livez").await.0, 200);
    // The queue opens meanwhile.
    eventually("the store alone is awaited", || async {
        let (status, ready) = ports.probe("/readyz").await;
        assert_eq!((status, &ready["status"]), (503, &json!("starting")), "{ready}");
        (ready["awaited"] == json!(["store"])).then_some(())
    })
    .await;
    assert_eq!(ports.probe("/metrics").await.0, 200);
    let (status, refused) = ports.probe("/admin/dead-letters").await;
    assert_eq!((status, &refused["code"]), (503, &json!("starting")));
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_demands_the_admin_key() {
    let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let settings = [
        ("PROFILE_EDGE__STORE__KIND", "redis"),
        ("PROFILE_EDGE__STORE__REDIS__URL", nobody.as_str()),
        ("PROFILE_EDGE__ADMIN__KEY_SHA256", DEMO_KEY_SHA256),
    ];
    let process = ports.start(directory.path(), &settings);
    process.wait_for_log("redis cannot be reached").await;
    assert_eq!(ports.probe("/readyz").await.0, 503);
    assert_eq!(ports.probe("/admin/dead-letters").await.0, 401);
    let request = client().get(format!("http://127.0.0.1:{}/admin/dead-letters", ports.admin));
    assert_eq!(request.bearer_auth("demo-key").send().await.unwrap().status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_signal_connections_are_accepted_for_the_delay() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let mut process = ports.start(directory.path(), &[("PROFILE_EDGE__SHUTDOWN__DELAY", "10m")]);
    ports.ready(&client).await;
    process.signal("TERM");
    process.wait_for_log("draining").await;
    for _ in 0..8 {
        assert_eq!(ports.look_up().await, Some(200));
    }
    let (status, ready) = ports.probe("/readyz").await;
    assert_eq!((status, &ready["status"]), (503, &json!("draining")));
    assert_eq!(ports.probe("/livez").await.0, 200);
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(70), "a second signal ends the process at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_until_the_drain_ends() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let held = [
        ("PROFILE_EDGE_FAULTS", Fault::PauseBeforeApply.as_str()),
        ("PROFILE_EDGE__SHUTDOWN__DELAY", "50ms"),
        ("PROFILE_EDGE__SHUTDOWN__DEADLINE", "10m"),
    ];
    let mut process = ports.start(directory.path(), &held);
    ports.ready(&client).await;
    assert_eq!(ports.post(&client, 1).await, 202);
    let in_flight = "profile_edge_consumer_in_flight";
    eventually("it is taken", || async { (ports.metric(&client, in_flight).await == 1.0).then_some(()) }).await;
    process.signal("TERM");
    eventually("the public listener is closed", || async { ports.look_up().await.is_none().then_some(()) }).await;
    assert_eq!(ports.probe("/livez").await.0, 200);
    let (status, ready) = ports.probe("/readyz").await;
    assert_eq!((status, &ready["status"]), (503, &json!("draining")));
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(70));
}
