//! The main job, end to end, on every pairing of adapters: a miss, a hit, a change at Genesys, and the changed
//! profile.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::clock::SystemClock;
use profile_edge::faults::Fault;
use profile_edge::sandbox::{Sandbox, SandboxOptions};
use profile_edge::shutdown::Shutdown;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::pairing::on_every_pairing;
use crate::support::edge::{Edge, Pairing, flat, looked, with_sandbox_of};
use crate::support::process::free_port;
use crate::support::{PATIENCE, customer, eventually};

/// A sandbox without latency.
const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

/// Deadlines for many concurrent lookups on a busy machine.
const PATIENT: &str = "[lookup]\ndeadline = \"20s\"\n";

on_every_pairing!(
    the_next_lookup_shows_a_change_and_hits_cost_no_genesys_call,
    concurrent_lookups_of_a_cold_customer_cost_one_call,
    an_event_posted_fifty_times_has_one_effect,
    a_fill_overtaken_by_an_event_is_refused_and_never_served,
    a_merged_customer_is_cached_canonically_and_evicted_by_either_id,
    an_answer_through_a_pointer_that_an_event_overtook_is_unsettled,
    a_merge_replaces_a_negative_entry_of_the_new_id,
    each_genesys_failure_gets_its_status_within_two_seconds,
    a_stale_profile_is_served_on_failure_but_never_after_an_event,
    a_negative_entry_lasts_until_the_customer_is_created,
    a_thousand_lookups_share_one_token_and_one_renewal,
    refused_genesys_connections_answer_503_until_genesys_returns,
    the_three_lookup_request_forms_answer_alike,
);

async fn the_next_lookup_shows_a_change_and_hits_cost_no_genesys_call(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let one = customer(1);

    let miss = edge.look_up(&one).await;
    assert_eq!((miss.status, miss.cache_status.as_str()), (200, "profile-edge; fwd=miss; stored"));
    let before = edge.calls().await.0;
    for _ in 0..20 {
        let hit = edge.look_up(&one).await;
        assert!(hit.cache_status.starts_with("profile-edge; hit; ttl="), "{}", hit.cache_status);
        assert!(hit.headers.contains_key("age"));
        assert_eq!(hit.text, miss.text);
    }
    assert_eq!(edge.calls().await.0, before);

    edge.change(&one, json!({ "firstName": "Grace" })).await;
    edge.applied("updated", 1.0).await;
    let changed = edge.look_up(&one).await;
    assert_eq!(changed.json()["firstName"], "Grace");
    assert_eq!(changed.cache_status, "profile-edge; fwd=miss; stored");
    assert!(edge.look_up(&one).await.is_hit());

    edge.delete(&one).await;
    edge.applied("deleted", 1.0).await;
    let gone = edge.look_up(&one).await;
    assert_eq!((gone.status, gone.cache_status.as_str()), (410, "profile-edge; hit; detail=tombstone"));
    edge.stop().await;
}

async fn concurrent_lookups_of_a_cold_customer_cost_one_call(pairing: Pairing) {
    let edge = Edge::start_on(pairing, &format!("[sandbox]\nlatency = \"150ms\"\n{PATIENT}")).await;
    let two = customer(2);
    let answers = join_all((0..2000).map(|_| edge.look_up(&two))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text == answers[0].text));
    assert_eq!(edge.calls().await.0, 1);
    let misses = answers.iter().filter(|answer| answer.cache_status.contains("stored")).count();
    assert_eq!(misses, 1);
    edge.stop().await;
}

async fn an_event_posted_fifty_times_has_one_effect(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let event = json!({ "tenantId": "10001", "customerId": customer(3), "eventId": "e-1",
                        "modifyDate": "2026-01-01T00:00:00.000Z" });
    let posts = join_all((0..50).map(|_| edge.post_event(&event))).await;
    assert!(posts.iter().all(|post| post.status() == 202));
    let duplicates = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"duplicate\"}";
    edge.wait_for_metric(duplicates, 49.0).await;
    assert_eq!(edge.metric("profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}").await, 1.0);
    assert_eq!(edge.metric(duplicates).await, 49.0);
    edge.stop().await;
}

async fn a_fill_overtaken_by_an_event_is_refused_and_never_served(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let four = customer(4);
    edge.faults.arm(Fault::PauseBeforeFill);
    let slow = edge.look_up(&four);
    let overtake = async {
        edge.faults.reached(Fault::PauseBeforeFill, 1).await;
        edge.change(&four, json!({ "firstName": "Newer" })).await;
        edge.applied("updated", 1.0).await;
        edge.faults.disarm(Fault::PauseBeforeFill);
    };
    let (late, ()) = tokio::join!(slow, overtake);
    assert_eq!((late.status, late.cache_status.as_str()), (200, "profile-edge; fwd=miss; detail=unsettled"));
    assert_ne!(late.json()["firstName"], "Newer");
    assert_eq!(edge.metric("profile_edge_fills_total{outcome=\"refused\"}").await, 1.0);
    let next = edge.look_up(&four).await;
    assert_eq!(next.json()["firstName"], "Newer");
    edge.stop().await;
}

async fn a_merged_customer_is_cached_canonically_and_evicted_by_either_id(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let (five, six) = (customer(5), customer(6));
    let merge = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged: Value = merge.json(&json!({ "contactIds": [five, six] })).send().await.unwrap().json().await.unwrap();
    let canonical = merged["id"].as_str().unwrap().to_owned();
    // One event names the canonical customer, and one each merged customer.
    eventually("all three events are applied", || async {
        let mut applied = 0.0;
        for outcome in ["applied", "outrun", "duplicate"] {
            let series = format!("profile_edge_consumer_events_total{{kind=\"merged\",outcome=\"{outcome}\"}}");
            applied += edge.metric(&series).await;
        }
        (applied >= 3.0).then_some(())
    })
    .await;
    for alias in [&five, &six] {
        let through = edge.look_up(alias).await;
        assert_eq!(through.json()["id"], canonical.as_str());
    }
    let before = edge.calls().await.0;
    assert!(edge.look_up(&five).await.is_hit());
    assert!(edge.look_up(&canonical).await.is_hit());
    assert_eq!(edge.calls().await.0, before);
    edge.change(&canonical, json!({ "firstName": "Merged" })).await;
    for id in [&five, &six, &canonical] {
        eventually("the changed profile", || async {
            (edge.look_up(id).await.json()["firstName"] == "Merged").then_some(())
        })
        .await;
    }
    edge.stop().await;
}

/// The record of the canonical customer is cached. But the store does not hold that it is the answer.
async fn an_answer_through_a_pointer_that_an_event_overtook_is_unsettled(pairing: Pairing) {
    let edge = Edge::start_on(pairing, &format!("{QUICK}[lookup]\nunsettled_ttl = \"30s\"\n")).await;
    let (nine, ten) = (customer(9), customer(10));
    let merge = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged: Value = merge.json(&json!({ "contactIds": [nine, ten] })).send().await.unwrap().json().await.unwrap();
    let canonical = merged["id"].as_str().unwrap();
    edge.applied("merged", 3.0).await;
    assert_eq!(edge.look_up(canonical).await.status, 200);
    edge.faults.arm(Fault::PauseBeforeFill);
    let overtake = async {
        edge.faults.reached(Fault::PauseBeforeFill, 1).await;
        assert_eq!(edge.post_event(&flat(&nine)).await.status(), 202);
        edge.applied("updated", 1.0).await;
        edge.faults.disarm(Fault::PauseBeforeFill);
    };
    let (late, ()) = tokio::join!(edge.look_up(&nine), overtake);
    assert_eq!((late.status, &late.json()["id"]), (200, &merged["id"]));
    assert_eq!(late.cache_status, "profile-edge; fwd=miss; detail=unsettled");
    edge.stop().await;
}

async fn a_merge_replaces_a_negative_entry_of_the_new_id(pairing: Pairing) {
    // An unsettled negative entry is kept for the longest allowed time.
    let edge = Edge::start_on(pairing, &format!("{QUICK}[lookup]\nunsettled_ttl = \"30s\"\n")).await;
    let (seven, eight) = (customer(7), customer(8));
    edge.behave(json!({ "read_lag": "1h" })).await;
    let merge = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged: Value =
        merge.json(&json!({ "contactIds": [seven, eight] })).send().await.unwrap().json().await.unwrap();
    let canonical = merged["id"].as_str().unwrap();
    edge.applied("merged", 3.0).await;
    let early = edge.look_up(canonical).await;
    assert_eq!((early.status, early.cache_status.contains("negative-unsettled")), (404, true));

    edge.behave(json!({ "read_lag": null })).await;
    for id in [seven.as_str(), &eight, canonical] {
        assert_eq!(edge.look_up(id).await.status, 200);
    }
    edge.stop().await;
}

async fn each_genesys_failure_gets_its_status_within_two_seconds(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n[upstream]\nmax_in_flight = 8\n").await;
    let trouble = [
        (json!({ "fail_ratio": 1, "fail_status": 500 }), 503),
        (json!({ "fail_ratio": 1, "fail_status": 429, "retry_after": 1 }), 503),
        (json!({ "malformed": true }), 502),
        (json!({ "latency": "3s" }), 503),
        (json!({ "fail_ratio": 1, "fail_status": 403 }), 502),
    ];
    for (n, (behaviour, status)) in (10..).zip(trouble) {
        edge.behave(behaviour.clone()).await;
        let started = Instant::now();
        let refused = edge.look_up(&customer(n)).await;
        assert_eq!(refused.status, status, "{behaviour}");
        assert!(started.elapsed() < Duration::from_secs(2), "{behaviour}: {:?}", started.elapsed());
        assert_eq!(refused.headers.contains_key("retry-after"), status == 503, "{behaviour}");
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        let calm: Value = behaviour
            .as_object()
            .unwrap()
            .keys()
            .map(|key| (key.clone(), Value::Null))
            .collect::<serde_json::Map<_, _>>()
            .into();
        edge.behave(calm).await;
        eventually("recovery", || async { (edge.look_up(&customer(n)).await.status == 200).then_some(()) }).await;
    }
    edge.stop().await;
}

async fn a_stale_profile_is_served_on_failure_but_never_after_an_event(pairing: Pairing) {
    let settings = "[sandbox]\nlatency = \"0ms\"\n[lookup]\nttl = \"50ms\"\nttl_jitter = 0.0\n";
    let edge = Edge::start_on(pairing, settings).await;
    let seven = customer(7);
    edge.look_up(&seven).await;
    edge.behave(json!({ "fail_ratio": 1, "fail_status": 500 })).await;
    let stale = eventually("a stale answer", || async {
        let answer = edge.look_up(&seven).await;
        answer.cache_status.contains("stale-if-error").then_some(answer)
    })
    .await;
    assert_eq!(stale.status, 200);
    assert!(stale.cache_status.starts_with("profile-edge; fwd=stale; ttl=-"), "{}", stale.cache_status);
    assert_eq!(edge.post_event(&flat(&seven)).await.status(), 202);
    edge.applied("updated", 1.0).await;
    assert_eq!(edge.look_up(&seven).await.status, 503);
    edge.stop().await;
}

async fn a_negative_entry_lasts_until_the_customer_is_created(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let nobody = "00000000-0000-4000-8000-999999999999";
    let first = edge.look_up(nobody).await;
    assert_eq!((first.status, first.cache_status.as_str()), (404, "profile-edge; fwd=miss; stored; detail=negative"));
    let second = edge.look_up(nobody).await;
    assert_eq!(second.status, 404);
    assert!(second.is_hit(), "{}", second.cache_status);
    let created = json!({ "tenantId": "10001", "customerId": nobody, "eventType": "customer.created" });
    assert_eq!(edge.post_event(&created).await.status(), 202);
    edge.applied("created", 1.0).await;
    assert!(edge.look_up(nobody).await.cache_status.contains("fwd=miss"));
    edge.stop().await;
}

async fn a_thousand_lookups_share_one_token_and_one_renewal(pairing: Pairing) {
    let edge = Edge::start_on(pairing, &format!("{QUICK}{PATIENT}")).await;
    let look_up_all = async |numbers: Range<u32>| {
        let ids: Vec<String> = numbers.map(customer).collect();
        let answers = join_all(ids.iter().map(|id| edge.look_up(id))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
    };
    look_up_all(1..901).await;
    look_up_all(1..101).await;
    assert_eq!(edge.calls().await, (900, 1));
    edge.behave(json!({ "revoke_tokens": true })).await;
    look_up_all(901..1000).await;
    assert_eq!(edge.calls().await.1, 2);
    edge.stop().await;
}

async fn refused_genesys_connections_answer_503_until_genesys_returns(pairing: Pairing) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let settings = with_sandbox_of(address);
    let edge = Edge::start_on(pairing, &settings).await;
    let started = Instant::now();
    let refused = edge.look_up(&customer(1)).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(refused.headers.contains_key("retry-after"));

    let (controller, shutdown) = Shutdown::new();
    let options = SandboxOptions { listen: address.into(), customers: 10, latency: Duration::ZERO, webhook: None };
    Sandbox::start(options, SystemClock::shared(), shutdown).await.unwrap();
    eventually("recovery", || async { (edge.look_up(&customer(1)).await.status == 200).then_some(()) }).await;
    edge.stop().await;
    assert!(controller.drain(PATIENCE).await);
}

async fn the_three_lookup_request_forms_answer_alike(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    let one = customer(1);
    let body = json!({ "tenantId": "10001", "customerId": one });
    let by_query = edge.look_up(&one).await;
    for method in [Method::GET, Method::POST] {
        let request = edge.client.request(method, edge.url("/api/v1/profile")).bearer_auth("demo-key");
        let by_body = looked(request.json(&body).send().await.unwrap()).await;
        assert_eq!((by_body.status, &by_body.text), (200, &by_query.text));
    }
    let etag = by_query.headers["etag"].to_str().unwrap();
    let unchanged = edge.look_up_with(&one, |request| request.header("If-None-Match", etag)).await;
    assert_eq!((unchanged.status, unchanged.text.as_str()), (304, ""));
    let narrowed = edge.look_up_with(&one, |request| request.query(&[("fields", "id,workPhone.e164")])).await;
    let seen = narrowed.json();
    assert_eq!(seen.as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "workPhone"]);
    assert_ne!(narrowed.headers["etag"], by_query.headers["etag"]);
    edge.stop().await;
}
