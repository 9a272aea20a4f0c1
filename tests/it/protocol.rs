//! The promises of the protocol step by step, through the HTTP interface of the real application. The test decides what
//! happens at Genesys and which events arrive, in which order.

use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::faults::Fault;
use reqwest::Method;
use serde_json::{Value, json};

use crate::pairing::on_every_pairing;
use crate::support::edge::{Edge, LookupAnswer, Pairing};
use crate::support::{customer, eventually};

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

on_every_pairing!(
    a_deleted_customer_stays_deleted_despite_older_events,
    a_recreated_customer_is_served_despite_a_late_deletion,
    an_event_for_the_canonical_customer_updates_every_alias,
    an_event_between_fetch_and_fill_of_an_alias_is_not_lost,
    reordered_duplicate_updates_end_with_the_newer_profile,
    outdated_reads_of_genesys_are_labelled_and_short_lived,
);

/// An application whose sandbox posts no events: the test sends them.
async fn own_events(pairing: Pairing, settings: &str) -> Edge {
    let edge = Edge::start_on(pairing, &format!("{QUICK}{settings}")).await;
    edge.behave(json!({ "events": false })).await;
    edge
}

/// Posts an event of a kind that happened this many seconds after noon, and waits until it was applied.
async fn post_event(edge: &Edge, customer: &str, kind: &str, second: u32) {
    let short = kind.strip_prefix("customer.").unwrap();
    let before = effects(edge, short).await;
    let event = json!({ "tenantId": "10001", "customerId": customer, "eventType": kind,
                        "occurredAt": format!("2026-01-01T12:00:{second:02}Z") });
    assert_eq!(edge.post_event(&event).await.status(), 202);
    eventually(kind, || async { (effects(edge, short).await > before).then_some(()) }).await;
}

/// Returns how many events of a kind had an effect, in any order.
async fn effects(edge: &Edge, kind: &str) -> f64 {
    let series = |outcome| format!("profile_edge_consumer_events_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}");
    edge.metric(&series("applied")).await + edge.metric(&series("outrun")).await
}

async fn a_deleted_customer_stays_deleted_despite_older_events(pairing: Pairing) {
    let edge = own_events(pairing, "").await;
    let one = customer(1);
    assert_eq!(edge.look_up(&one).await.status, 200);
    post_event(&edge, &one, "customer.deleted", 10).await;
    post_event(&edge, &one, "customer.updated", 5).await;
    let before = edge.calls().await.0;
    let answers = join_all((0..300).map(|_| edge.look_up(&one))).await;
    let others: Vec<_> = answers.iter().filter(|answer| answer.status != 410).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(edge.calls().await.0, before);
    edge.stop().await;
}

async fn a_recreated_customer_is_served_despite_a_late_deletion(pairing: Pairing) {
    let edge = own_events(pairing, "").await;
    let (one, two) = (customer(1), customer(2));
    post_event(&edge, &one, "customer.deleted", 10).await;
    assert_eq!(edge.look_up(&one).await.status, 410);
    post_event(&edge, &one, "customer.created", 20).await;
    assert_eq!(edge.look_up(&one).await.status, 200);

    assert_eq!(edge.look_up(&two).await.status, 200);
    post_event(&edge, &two, "customer.created", 20).await;
    post_event(&edge, &two, "customer.deleted", 10).await;
    // The late deletion deletes the entry, and writes no tombstone.
    let again = edge.look_up(&two).await;
    assert_eq!(again.status, 200);
    assert!(again.cache_status.contains("fwd=miss"), "{}", again.cache_status);
    edge.stop().await;
}

/// Merges two customers at Genesys, and returns the canonical one.
async fn merge(edge: &Edge, one: &str, other: &str) -> String {
    let request = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let response = request.json(&json!({ "contactIds": [one, other] })).send().await.unwrap();
    let merged: Value = response.json().await.unwrap();
    merged["id"].as_str().unwrap().to_owned()
}

async fn an_event_for_the_canonical_customer_updates_every_alias(pairing: Pairing) {
    let edge = own_events(pairing, "").await;
    let (a, b) = (customer(1), customer(2));
    let c = merge(&edge, &a, &b).await;
    for id in [&a, &b, &c] {
        assert_eq!(edge.look_up(id).await.json()["id"], c.as_str());
    }
    edge.change(&c, json!({ "firstName": "Changed" })).await;
    post_event(&edge, &c, "customer.updated", 10).await;
    let before = edge.calls().await.0;
    for id in [&a, &b, &c] {
        assert_eq!(edge.look_up(id).await.json()["firstName"], "Changed");
    }
    assert_eq!(edge.calls().await.0, before + 1);
    edge.stop().await;
}

async fn an_event_between_fetch_and_fill_of_an_alias_is_not_lost(pairing: Pairing) {
    let edge = own_events(pairing, "").await;
    let (a, b) = (customer(1), customer(2));
    let c = merge(&edge, &a, &b).await;
    edge.faults.arm(Fault::PauseBeforeFill);
    let slow = edge.look_up(&a);
    let overtake = async {
        edge.faults.reached(Fault::PauseBeforeFill, 1).await;
        edge.change(&c, json!({ "firstName": "Changed" })).await;
        post_event(&edge, &c, "customer.updated", 10).await;
        edge.faults.disarm(Fault::PauseBeforeFill);
    };
    let (through, ()) = tokio::join!(slow, overtake);
    assert_eq!(through.json()["firstName"], "Changed");
    for id in [&a, &b, &c] {
        assert_eq!(edge.look_up(id).await.json()["firstName"], "Changed");
    }
    edge.stop().await;
}

/// Changes a customer at Genesys and returns its event.
async fn changed(edge: &Edge, id: &str, name: &str) -> Value {
    let path = format!("/api/v2/externalcontacts/contacts/{id}");
    let response = edge.sandbox(Method::PATCH, &path).json(&json!({ "firstName": name })).send().await.unwrap();
    let body: Value = response.json().await.unwrap();
    json!({ "tenantId": "10001", "customerId": id, "eventId": name, "modifyDate": body["modifyDate"] })
}

fn is_unsettled(answer: &LookupAnswer) -> bool {
    answer.cache_status.contains("detail=unsettled")
}

async fn reordered_duplicate_updates_end_with_the_newer_profile(pairing: Pairing) {
    let edge = own_events(pairing, "[lookup]\nunsettled_ttl = \"200ms\"\n").await;
    let one = customer(1);
    assert_eq!(edge.look_up(&one).await.status, 200);
    // Reads at Genesys lag behind its writes.
    edge.behave(json!({ "read_lag": "700ms" })).await;
    let (first, second) = (changed(&edge, &one, "First").await, changed(&edge, &one, "Second").await);
    assert_eq!(edge.post_event(&second).await.status(), 202);
    eventually("the newer", || async { (effects(&edge, "updated").await >= 1.0).then_some(()) }).await;
    // From here on only the newer one is returned without the label.
    for event in [&first, &second, &first] {
        assert_eq!(edge.post_event(event).await.status(), 202);
        let seen = edge.look_up(&one).await;
        assert!(is_unsettled(&seen) || seen.json()["firstName"] == "Second", "{}", seen.cache_status);
    }
    eventually("both", || async { (effects(&edge, "updated").await >= 2.0).then_some(()) }).await;
    let last = eventually("the newer one, settled", || async {
        let seen = edge.look_up(&one).await;
        let settled = !is_unsettled(&seen);
        assert!(!settled || seen.json()["firstName"] == "Second", "{}", seen.cache_status);
        settled.then_some(seen)
    })
    .await;
    assert_eq!(last.json()["firstName"], "Second");
    assert!(edge.look_up(&one).await.is_hit());
    edge.stop().await;
}

async fn outdated_reads_of_genesys_are_labelled_and_short_lived(pairing: Pairing) {
    let edge = own_events(pairing, "[lookup]\nunsettled_ttl = \"200ms\"\n").await;
    let one = customer(1);
    let old = edge.look_up(&one).await.json()["firstName"].clone();
    edge.behave(json!({ "read_lag": "1h" })).await;
    let event = changed(&edge, &one, "Newer").await;
    assert_eq!(edge.post_event(&event).await.status(), 202);
    edge.applied("updated", 1.0).await;
    let before = edge.calls().await.0;
    let labelled = edge.look_up(&one).await;
    assert_eq!(labelled.json()["firstName"], old);
    assert!(is_unsettled(&labelled), "{}", labelled.cache_status);
    // It is stored and looked up repeatedly: each copy is labelled, and none is served for long.
    eventually("several reads", || async {
        assert!(is_unsettled(&edge.look_up(&one).await));
        (edge.calls().await.0 >= before + 4).then_some(())
    })
    .await;
    edge.behave(json!({ "read_lag": "0ms" })).await;
    let new = eventually("the newer one", || async {
        let seen = edge.look_up(&one).await;
        (seen.json()["firstName"] == "Newer").then_some(seen)
    })
    .await;
    assert!(!is_unsettled(&new), "{}", new.cache_status);
    edge.stop().await;
}

/// A customer in steady demand is refreshed before its record expires: no lookup waits, and each refresh is one call.
#[tokio::test(flavor = "multi_thread")]
async fn no_lookup_waits_for_the_refresh_of_a_customer_in_demand() {
    let settings = "[lookup]\nttl = \"3s\"\nttl_jitter = 0.0\n[sandbox]\nlatency = \"300ms\"\n";
    let edge = Edge::start_with(settings).await;
    let one = customer(1);
    assert_eq!(edge.look_up(&one).await.status, 200);
    let refreshes = "profile_edge_refreshes_total{cause=\"early\"}";
    let askers = (0..8).map(|_| async {
        while edge.metric(refreshes).await < 2.0 {
            for _ in 0..50 {
                let answer = edge.look_up(&one).await;
                assert!(answer.is_hit(), "{}", answer.cache_status);
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(20), join_all(askers)).await.expect("two refreshes");
    eventually("one call for each", || async {
        (edge.calls().await.0 as f64 >= 1.0 + edge.metric(refreshes).await).then_some(())
    })
    .await;
    assert_eq!(edge.calls().await.0 as f64, 1.0 + edge.metric(refreshes).await);
    edge.stop().await;
}
