//! A caller that may demand a fresh answer gets one; the fetch is shared and spends its budget.

use futures_util::future::join_all;
use serde_json::json;

use crate::pairing::on_every_pairing;
use crate::support::customer;
use crate::support::edge::{Edge, LookupAnswer, Pairing, with_sandbox_of};

on_every_pairing!(no_cache_and_max_age_fetch_anew_and_replace_the_entry,);

async fn demand(edge: &Edge, n: u32, cache_control: &str) -> LookupAnswer {
    edge.look_up_with(&customer(n), |request| request.header("Cache-Control", cache_control)).await
}

async fn no_cache_and_max_age_fetch_anew_and_replace_the_entry(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    edge.behave(json!({ "events": false })).await;
    edge.look_up(&customer(1)).await;
    edge.change(&customer(1), json!({ "firstName": "Augusta" })).await;
    assert_ne!(edge.look_up(&customer(1)).await.json()["firstName"], "Augusta");
    let kept = demand(&edge, 1, "max-age=60").await;
    assert!(kept.is_hit() && kept.json()["firstName"] != "Augusta", "{}", kept.cache_status);
    let fresh = demand(&edge, 1, "no-cache").await;
    assert_eq!((fresh.status, fresh.cache_status.as_str()), (200, "profile-edge; fwd=request; stored"));
    assert_eq!(fresh.json()["firstName"], "Augusta");
    assert_eq!(edge.calls().await.0, 2);
    let hit = edge.look_up(&customer(1)).await;
    assert!(hit.is_hit() && hit.json()["firstName"] == "Augusta");
    assert_eq!(demand(&edge, 1, "max-age=0").await.cache_status, "profile-edge; fwd=request; stored");
    // A miss is a miss, and a negative answer is fetched anew as well.
    assert_eq!(demand(&edge, 2, "no-cache").await.cache_status, "profile-edge; fwd=miss; stored");
    assert_eq!(demand(&edge, 5_000, "no-cache").await.cache_status, "profile-edge; fwd=miss; stored; detail=negative");
    assert_eq!(
        demand(&edge, 5_000, "no-cache").await.cache_status,
        "profile-edge; fwd=request; stored; detail=negative"
    );
    // What may not be served without Genesys is not.
    edge.behave(json!({ "fail_ratio": 1.0 })).await;
    assert_eq!(demand(&edge, 1, "no-cache").await.status, 503);
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_demands_for_a_fresh_answer_cost_one_call() {
    let shared = Pairing::Redis.settings().await;
    let wide = "lookup.deadline = \"20s\"\n";
    let one = Edge::start_with(&format!("{wide}[sandbox]\nlatency = \"0ms\"\n{shared}")).await;
    let settings =
        with_sandbox_of(one.sandbox_address()).replace("fields = [\"*\"]", "fields = [\"*\"]\nmay_refresh = true");
    let other = Edge::start_with(&format!("{wide}sandbox.enabled = false\n{shared}{settings}")).await;
    one.look_up(&customer(1)).await;
    one.behave(json!({ "latency": "1500ms" })).await;
    let before = one.calls().await.0;
    let demands = (0..100).map(|n| demand(if n % 2 == 0 { &one } else { &other }, 1, "no-cache"));
    for answer in join_all(demands).await {
        assert_eq!(answer.status, 200);
        assert!(answer.cache_status.starts_with("profile-edge; fwd=request"), "{}", answer.cache_status);
    }
    assert_eq!(one.calls().await.0 - before, 1);
    for edge in [other, one] {
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_may_not_refresh_is_answered_from_the_cache() {
    let edge = Edge::start().await;
    let plain =
        Edge::start_with(&format!("sandbox.enabled = false\n{}", with_sandbox_of(edge.sandbox_address()))).await;
    plain.look_up(&customer(1)).await;
    assert!(demand(&plain, 1, "no-cache, max-age=0").await.is_hit());
    plain.stop().await;
    edge.stop().await;
}
