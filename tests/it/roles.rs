//! One process for each role, on Redis and RabbitMQ.

use reqwest::Method;
use serde_json::json;

use crate::support::edge::{Edge, Pairing, flat, with_sandbox_of};
use crate::support::process::{Process, configuration, free_port};
use crate::support::{customer, eventually};

const APPLIED: &str = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
const DUPLICATE: &str = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"duplicate\"}";

#[tokio::test(flavor = "multi_thread")]
async fn each_role_alone_serves_only_its_part() {
    let shared = Pairing::RedisAndRabbit.settings().await;
    let lookup = Edge::start_with(&format!("roles = [\"lookup\"]\n[sandbox]\nlatency = \"0ms\"\n{shared}")).await;
    let ingest = Edge::start_with(&format!("roles = [\"ingest\"]\nsandbox.enabled = false\n{shared}")).await;
    let consumer = Edge::start_with(&format!("roles = [\"consumer\"]\nsandbox.enabled = false\n{shared}")).await;
    let one = customer(1);

    assert_eq!(lookup.look_up(&one).await.status, 200);
    assert!(lookup.look_up(&one).await.is_hit());
    assert_eq!(ingest.post_event(&flat(&one)).await.status(), 202);
    consumer.wait_for_metric(APPLIED, 1.0).await;
    assert!(!lookup.look_up(&one).await.is_hit());

    assert_eq!(lookup.post_event(&flat(&one)).await.status(), 404);
    for other in [&ingest, &consumer] {
        assert_eq!(other.look_up(&one).await.status, 404);
    }
    for edge in [&lookup, &ingest, &consumer] {
        let ready = json!({ "status": "ready", "degraded": [] });
        eventually("ready", || async { (edge.ready().await == ready).then_some(()) }).await;
    }
    let shows = [
        (&lookup, ["lookup_requests_total", "store_up"], ["queue_up", "consumer_in_flight", "ingest_duration_seconds"]),
        (&ingest, ["ingest_duration_seconds", "queue_up"], ["store_up", "consumer_in_flight", "lookup_requests_total"]),
        (
            &consumer,
            ["consumer_in_flight", "store_up"],
            ["lookup_requests_total", "ingest_duration_seconds", "fills_total"],
        ),
    ];
    for (edge, own, foreign) in shows {
        let url = format!("http://{}/metrics", edge.admin);
        let scrape = edge.client.get(url).send().await.unwrap().text().await.unwrap();
        let has = |name: &str| scrape.contains(&format!("profile_edge_{name}"));
        assert!(own.iter().all(|name| has(name)), "{own:?}: {scrape}");
        assert!(!foreign.iter().any(|name| has(name)), "{foreign:?}: {scrape}");
    }
    // Commands that need a queue are refused where there is none.
    let url = format!("http://{}/admin/dead-letters", lookup.admin);
    let refused = lookup.client.request(Method::GET, url).send().await.unwrap();
    assert_eq!(refused.status(), 409);
    for edge in [consumer, ingest, lookup] {
        edge.stop().await;
    }
}

/// Ten consumers in turn apply 500 events, and are killed before they acknowledge them.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_killed_consumer_are_applied_and_never_dead_lettered() {
    const EVENTS: u32 = 500;
    let shared = Pairing::RedisAndRabbit.settings().await;
    let ingest = Edge::start_with(&format!("roles = [\"ingest\"]\n{shared}")).await;
    let events: Vec<_> = (1..=EVENTS).map(|n| flat(&customer(n))).collect();
    for answer in futures_util::future::join_all(events.iter().map(|event| ingest.post_event(event))).await {
        assert_eq!(answer.status(), 202);
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let own = format!(
        "roles = [\"consumer\"]\nhttp.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:{port}\"\n\
         consumer.concurrency = 512\nsandbox.enabled = false\n"
    );
    let file = configuration(directory.path(), &format!("{own}{shared}{}", with_sandbox_of(ingest.sandbox_address())));
    let file = file.display().to_string();
    let metric = async |series: &str| -> Option<f64> {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let text = ingest.client.get(url).send().await.ok()?.text().await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line?.parse().ok()
    };
    for round in 0..10 {
        let held = [("PROFILE_EDGE_FAULTS", "PauseBeforeAck")];
        let mut consumer = Process::start(directory.path(), &["run", "--config", &file], &held);
        eventually("the consumer holds all events", || async {
            let done = metric(APPLIED).await? + metric(DUPLICATE).await?;
            (done >= f64::from(EVENTS)).then_some(())
        })
        .await;
        let expected = if round == 0 { APPLIED } else { DUPLICATE };
        assert_eq!(metric(expected).await, Some(f64::from(EVENTS)), "round {round}");
        consumer.signal("KILL");
        consumer.ended().await;
    }
    let mut last = Process::start(directory.path(), &["run", "--config", &file], &[]);
    eventually("all events are acknowledged", || async {
        (metric(DUPLICATE).await? >= f64::from(EVENTS) && metric("profile_edge_queue_events").await? == 0.0)
            .then_some(())
    })
    .await;
    assert_eq!(metric("profile_edge_dead_letters").await, Some(0.0));
    last.signal("TERM");
    assert_eq!(last.ended().await, Some(0), "{}", last.log());
    ingest.stop().await;
}
