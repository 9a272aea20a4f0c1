//! Clients that take all they can get and read nothing: what they hold is bounded, and ends.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::edge::{DEMO_KEY_SHA256, Edge, looked};
use crate::support::http2::{DATA, Http2, RST_STREAM};
use crate::support::tls::client_trusting;
use crate::support::{customer, eventually};

const CHANGES: &str = "/api/v1/changes?tenantId=10001";
const STREAMS: &str = "profile_edge_change_streams";

/// Two callers; the key of the second is `other-key`.
fn two_callers() -> String {
    let other = hex::encode(Sha256::digest("other-key"));
    let caller = |name: &str, key: &str| {
        format!("[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n")
    };
    format!("[sandbox]\nlatency = \"0ms\"\n{}{}", caller("one", DEMO_KEY_SHA256), caller("other", &other))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_cannot_take_all_streams_of_changes() {
    let edge = Edge::start_with(&format!("http.max_change_streams = 8\n{}", two_callers())).await;
    let open = async |key: &str| edge.client.get(edge.url(CHANGES)).header("X-API-Key", key).send().await.unwrap();
    let mut streams = Vec::new();
    let refused = loop {
        let answer = open("demo-key").await;
        if answer.status() != 200 {
            break looked(answer).await;
        }
        assert!(streams.len() < 8, "it has all of them");
        streams.push(answer);
    };
    assert_eq!((streams.len(), refused.status, &refused.json()["code"]), (4, 503, &json!("shed")));
    assert!(refused.headers.contains_key("retry-after"));
    for _ in 0..2 {
        let answer = open("other-key").await;
        assert_eq!(answer.status(), 200, "another caller finds a stream");
        streams.push(answer);
    }
    // Whoever ends some gets others.
    streams.drain(..2);
    eventually("free streams", || async { (edge.metric(STREAMS).await < 5.0).then_some(()) }).await;
    assert_eq!(open("demo-key").await.status(), 200);
    drop(streams);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_is_reset_and_the_others_go_on() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n[http.limits]\nidle_timeout = \"700ms\"\n").await;
    let mut client = Http2::connect(edge.public).await;
    let unread = client.ask(CHANGES, "demo-key", "").await;
    client.answered(unread).await;
    edge.wait_for_metric(STREAMS, 1.0).await;
    let read = client.ask(CHANGES, "demo-key", "").await;
    client.take(read, 60_000).await;
    let reset = client.find(|frame| frame.kind == RST_STREAM || frame.ends_the_stream()).await.expect("it is ended");
    assert_eq!((reset.kind, reset.stream), (RST_STREAM, unread));
    eventually("one is left", || async { (edge.metric(STREAMS).await <= 1.0).then_some(()) }).await;
    // The other stream hears changes, and the connection takes requests.
    let event = json!({ "tenantId": "10001", "customerId": customer(1) });
    assert_eq!(edge.post_event(&event).await.status(), 202);
    let is_change = |payload: &[u8]| payload.windows(13).any(|text| text == b"event: change");
    client
        .find(|frame| frame.kind == DATA && frame.stream == read && is_change(&frame.payload))
        .await
        .expect("a change");
    let next = client.ask("/openapi.json", "demo-key", "").await;
    client.answered(next).await;
    edge.stop().await;
}

/// Of a body that is known at once, and of one that is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_a_client_that_reads_nothing() {
    let edge = Edge::start().await;
    let mut client = Http2::connect(edge.public).await;
    for path in [CHANGES, "/openapi.json"] {
        let unread = client.ask(path, "demo-key", "").await;
        client.answered(unread).await;
    }
    let drained = tokio::time::timeout(Duration::from_secs(15), edge.stop());
    assert!(drained.await.is_ok(), "the drain waits for the client");
}

/// Makes the profile of customer `n` large.
async fn enlarge(edge: &Edge, n: u32, bytes: usize) {
    edge.change(&customer(n), json!({ "title": "x".repeat(bytes) })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_answers_that_are_not_read_are_bounded_and_end() {
    let settings = "http.body_budget = \"4MiB\"\nhttp.limits.idle_timeout = \"5s\"\n";
    let edge = Edge::start_with(&format!("{settings}{}", two_callers())).await;
    // A connection that is kept could be closed as idle while a request is on its way.
    let fresh = client_trusting(&[]).pool_max_idle_per_host(0).build().unwrap();
    for n in 1..=4 {
        enlarge(&edge, n, 400_000).await;
    }
    for (path, body) in [
        ("/api/v1/profiles", json!({ "tenantId": "10001", "customerIds": (1..=4).map(customer).collect::<Vec<_>>() })),
        (
            "/api/v2/externalcontacts/bulk/contacts",
            json!({ "entities": (1..=4).map(|n| json!({ "id": customer(n) })).collect::<Vec<_>>() }),
        ),
    ] {
        let ask = async |key: &str| {
            let request = fresh.post(edge.url(path)).bearer_auth(key).json(&body);
            looked(request.send().await.unwrap()).await
        };
        assert_eq!(ask("demo-key").await.status, 200, "{path}");
        let mut client = Http2::connect(edge.public).await;
        let unread = client.ask(path, "demo-key", &body.to_string()).await;
        client.answered(unread).await;
        // What is left is enough for another caller, and not for this one.
        let refused = ask("demo-key").await;
        assert_eq!(refused.status, 503, "{path}");
        assert_eq!(ask("other-key").await.status, 200, "{path}");
        client.find(|frame| frame.kind == RST_STREAM && frame.stream == unread).await.expect("it is ended");
        eventually("the bytes are free", || async { (ask("demo-key").await.status == 200).then_some(()) }).await;
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_that_is_repeated_in_a_batch_is_looked_up_once() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n[http]\nbody_budget = \"4MiB\"\n").await;
    enlarge(&edge, 1, 300_000).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    let reads = async || edge.metric("profile_edge_store_operations_total{op=\"get\",outcome=\"ok\"}").await;
    let before = reads().await;
    let ids = vec![customer(1); 20];
    let request = edge.client.post(edge.url("/api/v1/profiles")).header("X-API-Key", "demo-key");
    let request = request.json(&json!({ "tenantId": "10001", "customerIds": ids }));
    let answer = looked(request.send().await.unwrap()).await;
    assert_eq!(answer.headers["content-length"], answer.text.len().to_string().as_str());
    // One value of the budget's four megabytes serves them all.
    assert_eq!((answer.status, answer.text.len() > 5_000_000), (200, true));
    let json = answer.json();
    let results = json["results"].as_array().unwrap();
    assert!(results.len() == 20 && results.iter().all(|result| result["profile"]["id"] == customer(1).as_str()));
    assert!(reads().await - before < 10.0, "each repetition is read");
    edge.stop().await;
}
