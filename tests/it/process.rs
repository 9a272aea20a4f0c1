//! The binary as a new user or an operator runs it: start, signals, crashes, a port in use.

use std::time::Duration;

use profile_edge::faults::Fault;
use tokio::time::Instant;

use crate::pairing::on_every_pairing;
use crate::support::edge::Pairing;
use crate::support::eventually;
use crate::support::process::{Ports, configuration, free_port};

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
