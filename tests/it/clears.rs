//! An operator clears a tenant: its records are refreshed, or count as missing, in every process.

use serde_json::{Value, json};

use crate::pairing::on_every_pairing;
use crate::support::command::run;
use crate::support::edge::{Edge, Pairing, with_sandbox_of};
use crate::support::{customer, eventually};

const CLEARED: &str = "profile_edge_refreshes_total{cause=\"cleared\"}";

on_every_pairing!(a_soft_clear_serves_records_while_they_are_refreshed, a_hard_clear_makes_every_record_a_miss_once,);

async fn a_soft_clear_serves_records_while_they_are_refreshed(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    edge.behave(json!({ "events": false })).await;
    for n in [1, 2, 5_000] {
        edge.look_up(&customer(n)).await;
    }
    edge.change(&customer(1), json!({ "firstName": "Augusta" })).await;
    let cleared = run(&edge, &["clear", "--tenant", "10001", "--json"]).await;
    assert_eq!(cleared.json(), json!({ "status": "cleared" }));
    let shown = eventually("the record is refreshed", || async {
        let answer = edge.look_up(&customer(1)).await;
        assert!(answer.is_hit(), "{}", answer.cache_status);
        (answer.json()["firstName"] == "Augusta").then_some(answer)
    })
    .await;
    assert!(shown.is_hit());
    // Negative answers are due as well.
    eventually("all three are refreshed", || async {
        for n in [1, 2, 5_000] {
            edge.look_up(&customer(n)).await;
        }
        (edge.metric(CLEARED).await >= 3.0).then_some(())
    })
    .await;
    eventually("the refreshes have ended", || async { (edge.calls().await.0 == 6).then_some(()) }).await;
    for n in [1, 2, 5_000] {
        edge.look_up(&customer(n)).await;
    }
    assert_eq!((edge.metric(CLEARED).await, edge.calls().await.0), (3.0, 6));
    edge.stop().await;
}

async fn a_hard_clear_makes_every_record_a_miss_once(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    edge.look_up(&customer(1)).await;
    edge.delete(&customer(2)).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(run(&edge, &["clear", "--tenant", "10001", "--hard"]).await.code, Some(0));
    let missed = eventually("the clear is known", || async {
        let answer = edge.look_up(&customer(1)).await;
        (!answer.is_hit()).then_some(answer)
    })
    .await;
    assert_eq!((missed.status, missed.cache_status.as_str()), (200, "profile-edge; fwd=miss; stored"));
    assert!(edge.look_up(&customer(1)).await.is_hit());
    // A deletion is no record that could be out of date.
    assert_eq!(edge.look_up(&customer(2)).await.status, 410);
    let unknown = run(&edge, &["clear", "--tenant", "other"]).await;
    assert!(unknown.code == Some(64) && unknown.err.contains("unknown tenant"), "{:?} {}", unknown.code, unknown.err);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_reaches_every_process_and_a_restart() {
    let shared = Pairing::Redis.settings().await;
    let one = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{shared}")).await;
    let settings = format!("sandbox.enabled = false\n{shared}{}", with_sandbox_of(one.sandbox_address()));
    let other = Edge::start_with(&settings).await;
    for n in 1..=2 {
        one.look_up(&customer(n)).await;
        assert!(other.look_up(&customer(n)).await.is_hit());
    }
    assert_eq!(run(&one, &["clear", "--tenant", "10001", "--hard"]).await.code, Some(0));
    eventually("the other process knows", || async { (!other.look_up(&customer(1)).await.is_hit()).then_some(()) })
        .await;
    // A process that starts knows it before its first lookup.
    let third = Edge::start_with(&settings).await;
    let answer = third.look_up(&customer(2)).await;
    assert_eq!(answer.cache_status, "profile-edge; fwd=miss; stored");
    assert!(third.look_up(&customer(1)).await.is_hit());
    for edge in [third, other, one] {
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_is_recorded_in_the_audit_trail() {
    let edge = Edge::start().await;
    assert_eq!(run(&edge, &["clear", "--tenant", "10001", "--hard"]).await.code, Some(0));
    let records = edge.audit_records();
    edge.stop().await;
    let records: Vec<Value> = records();
    let commands: Vec<_> = records.iter().filter(|record| record["type"] == "operator").collect();
    assert_eq!(commands.len(), 1, "{records:?}");
    assert_eq!((&commands[0]["action"], &commands[0]["outcome"]), (&json!("clear.hard"), &json!("ok")));
    assert_eq!(commands[0]["tenant"], "10001");
}
