//! Where the time of a lookup goes: the log line of a slow one, `Server-Timing`, and the audit record.

use std::collections::HashMap;

use futures_util::future::join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::support::customer;
use crate::support::edge::{Edge, with_sandbox_of};
use crate::support::eventually;
use crate::support::process::{Ports, configuration};

/// Parses `Server-Timing`: names and milliseconds.
fn timing(header: &str) -> HashMap<String, f64> {
    let part = |part: &str| {
        let (name, duration) = part.trim().split_once(";dur=").unwrap();
        (name.to_owned(), duration.parse().unwrap())
    };
    header.split(',').map(part).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_may_see_them_gets_the_phases_of_its_lookup() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"60ms\"\n").await;
    let of = async || timing(edge.look_up(&customer(1)).await.headers["server-timing"].to_str().unwrap());
    let miss = of().await;
    // The sandbox delays answers about contacts by 60 ms; a token is needed first.
    assert!(miss["fetch"] >= 59.0 && miss["token"] > 0.0 && miss.contains_key("store"), "{miss:?}");
    let parts: f64 = miss.iter().filter(|(name, _)| *name != "total").map(|(_, time)| time).sum();
    assert!((parts - miss["total"]).abs() < 0.1, "the phases are the whole time: {miss:?}");
    let hit = of().await;
    assert!(hit.contains_key("store") && !hit.contains_key("fetch") && !hit.contains_key("token"), "{hit:?}");
    edge.stop().await;

    let genesys = Edge::start().await;
    let edge = Edge::start_with(&with_sandbox_of(genesys.sandbox_address())).await;
    assert!(!edge.look_up(&customer(1)).await.headers.contains_key("server-timing"), "it is off by default");
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_to_genesys_has_its_own_phase() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"60ms\"\n").await;
    // The requests for and about the token leave a few connections; eight misses at once need more.
    let answers = join_all((1..=8).map(|n| {
        let edge = &edge;
        async move { timing(edge.look_up(&customer(n)).await.headers["server-timing"].to_str().unwrap()) }
    }))
    .await;
    let connected: Vec<_> = answers.iter().filter(|phases| phases.contains_key("connect")).collect();
    assert!(!connected.is_empty(), "{answers:?}");
    for phases in &answers {
        let parts: f64 = phases.iter().filter(|(name, _)| *name != "total").map(|(_, time)| time).sum();
        assert!((parts - phases["total"]).abs() < 0.1 && phases["fetch"] >= 55.0, "{phases:?}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expanded_and_bulk_answers_have_the_phases_too() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"60ms\"\n").await;
    let sent = async |request: RequestBuilder| {
        let answer = request.header("X-API-Key", "demo-key").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        timing(answer.headers()["server-timing"].to_str().unwrap())
    };
    let contact = format!("/api/v2/externalcontacts/contacts/{}?expand=division", customer(1));
    let expanded = sent(edge.client.get(edge.url(&contact))).await;
    let ids = json!({ "entities": [{ "id": customer(2) }, { "id": customer(3) }] });
    let bulk = sent(edge.client.post(edge.url("/api/v2/externalcontacts/bulk/contacts")).json(&ids)).await;
    let ids = json!({ "tenantId": "10001", "customerIds": [customer(4), customer(5)] });
    let batch = edge.url("/api/v1/profiles");
    let many = sent(edge.client.post(&batch).json(&ids)).await;
    for phases in [&expanded, &bulk, &many] {
        let parts: f64 = phases.iter().filter(|(name, _)| *name != "total").map(|(_, time)| time).sum();
        assert!(phases["fetch"] >= 59.0 && phases.contains_key("store"), "{phases:?}");
        assert!((parts - phases["total"]).abs() < 0.1, "the phases are the whole time: {phases:?}");
    }
    let hits = sent(edge.client.post(&batch).json(&ids)).await;
    assert!(hits.contains_key("store") && !hits.contains_key("fetch"), "{hits:?}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_lookup_leaves_one_line_with_its_phases_and_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let settings = "log.format = \"json\"\nlog.slow_lookup = \"300ms\"\naudit.sink = \"file\"\naudit.path = \"audit.jsonl\"\naudit.lookups = \"all\"\n";
    let path = configuration(directory.path(), settings);
    let ports = Ports::draw();
    let mut process = ports.start(
        directory.path(),
        &[("PROFILE_EDGE_CONFIG", path.to_str().unwrap()), ("PROFILE_EDGE__SANDBOX__LATENCY", "400ms")],
    );
    let client = reqwest::Client::new();
    ports.ready(&client).await;
    let look_up = async |id: &str| {
        let url = format!("http://127.0.0.1:{}/api/v1/profile", ports.public);
        let request = client.get(url).header("X-API-Key", "demo-key").header("X-Request-Id", id);
        request.query(&[("tenantId", "10001"), ("customerId", &customer(1))]).send().await.unwrap()
    };
    assert_eq!(look_up("request-slow").await.status(), 200);
    assert_eq!(look_up("request-fast").await.status(), 200);
    process.wait_for_log("a lookup was slow").await;
    let log = process.log();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let slow: Vec<&Value> = lines.iter().filter(|line| line["message"] == "a lookup was slow").collect();
    assert_eq!((slow.len(), &slow[0]["request_id"], &slow[0]["caller"]), (1, &"request-slow".into(), &"demo".into()));
    let millis = |name: &str| slow[0][name].as_f64().unwrap();
    let parts = ["auth_ms", "store_ms", "wait_ms", "token_ms", "connect_ms", "fetch_ms", "fill_ms"].map(millis);
    assert!(millis("fetch_ms") >= 399.0 && (parts.iter().sum::<f64>() - millis("total_ms")).abs() < 0.1, "{}", slow[0]);
    assert!(!log.contains(&customer(1)), "the log names no customer");

    let records = eventually("two audit records", || async {
        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).ok()?;
        let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lookups: Vec<Value> = records.into_iter().filter(|record| record["type"] == "lookup").collect();
        (lookups.len() == 2).then_some(lookups)
    })
    .await;
    let duration = |record: &Value| record["duration_ms"].as_f64().unwrap();
    assert!(duration(&records[0]) >= 399.0 && duration(&records[1]) < duration(&records[0]), "{records:?}");
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0));
}
