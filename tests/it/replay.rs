//! Replays of the journal, and redriven and purged dead letters.

use profile_edge::domain::{KeyHasher, Timestamp};
use profile_edge::faults::Fault;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::pairing::on_every_pairing;
use crate::support::command::{command, ended, run};
use crate::support::edge::{Edge, Pairing, flat, on_rabbit};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::{PATIENCE, customer, eventually};

on_every_pairing!(
    a_replay_evicts_again_and_new_fills_stay_settled,
    a_replay_neither_restores_nor_forgets_deleted_customers,
);

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

/// Changes this many customers at Genesys, and waits until their events are applied.
async fn changed(edge: &Edge, count: u32) {
    for n in 1..=count {
        edge.change(&customer(n), json!({ "firstName": format!("Changed {n}") })).await;
    }
    edge.applied("updated", count.into()).await;
}

async fn a_replay_evicts_again_and_new_fills_stay_settled(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    changed(&edge, 3).await;
    let warm = async || {
        for n in 1..=3 {
            edge.look_up(&customer(n)).await;
            assert!(edge.look_up(&customer(n)).await.is_hit());
        }
    };
    warm().await;

    let progress = run(&edge, &["replay", "--since", "1h", "--dry-run", "--json"]).await.json();
    assert_eq!(
        (&progress["matched"], &progress["replayed"], &progress["status"]),
        (&json!(3), &json!(0), &json!("done"))
    );
    assert_eq!(progress["kinds"], json!({ "updated": 3 }));
    let elsewhere = ["replay", "--since", "2020-01-01T00:00:00+01:00", "--until", "2h", "--json"];
    assert_eq!(run(&edge, &elsewhere).await.json()["matched"], 0);
    assert!(
        edge.look_up(&customer(1)).await.is_hit(),
        "a dry run and a replay of another time span must evict nothing"
    );

    // The deduplication must not drop the events of a second replay.
    for round in 1..=2 {
        let progress = run(&edge, &["replay", "--since", "1h", "--tenant", "10001", "--json"]).await.json();
        assert_eq!((&progress["matched"], &progress["replayed"]), (&json!(3), &json!(3)));
        edge.applied("updated", f64::from(3 + 3 * round)).await;
        for n in 1..=3 {
            let looked = edge.look_up(&customer(n)).await;
            assert!(looked.cache_status.contains("fwd=miss"), "{}", looked.cache_status);
            assert!(!looked.cache_status.contains("unsettled"), "{}", looked.cache_status);
            assert_eq!(looked.json()["firstName"], format!("Changed {n}"));
        }
        warm().await;
    }
    assert_eq!(edge.metric("profile_edge_replayed_events_total").await, 6.0);
    let lag = edge.metric("profile_edge_invalidation_lag_seconds_count").await;
    assert!((lag - 3.0).abs() < f64::EPSILON, "replayed events must not count for the lag: {lag}");
    edge.stop().await;
}

async fn a_replay_neither_restores_nor_forgets_deleted_customers(pairing: Pairing) {
    let edge = Edge::start_on(pairing, QUICK).await;
    changed(&edge, 2).await;
    edge.delete(&customer(2)).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&customer(2)).await.status, 410);
    run(&edge, &["replay", "--since", "1h", "--json"]).await.json();
    edge.applied("deleted", 2.0).await;
    edge.applied("updated", 4.0).await;
    assert_eq!(edge.look_up(&customer(2)).await.status, 410);
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    edge.stop().await;
}

/// Starts a replay that takes a minute, and waits for its first event.
async fn slow_replay(edge: &Edge) -> tokio::process::Child {
    changed(edge, 60).await;
    let child = command(edge, &["replay", "--since", "1h", "--rate", "1"]).spawn().unwrap();
    edge.wait_for_metric("profile_edge_replayed_events_total", 1.0).await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replay_runs_at_a_time_and_ends_with_its_client() {
    let edge = Edge::start_with(QUICK).await;
    let child = slow_replay(&edge).await;
    let refused = run(&edge, &["replay", "--since", "1h"]).await;
    assert_eq!(refused.code, Some(64));
    assert!(refused.err.contains("another replay"), "{}", refused.err);
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status();
    assert!(interrupted.unwrap().success());
    let said = ended(child).await;
    assert_eq!(said.code, Some(130), "{}", said.err);
    assert!(said.err.contains("interrupted; ") && said.err.contains("continue with --since 20"), "{}", said.err);
    eventually("another replay can start", || async {
        let said = run(&edge, &["replay", "--since", "1h", "--dry-run"]).await;
        (said.code == Some(0)).then_some(())
    })
    .await;
    assert!(edge.metric("profile_edge_replayed_events_total").await < 60.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_may_follow_the_end_of_another_at_once() {
    let edge = Edge::start_with(QUICK).await;
    let url = format!("http://{}/admin/replay", edge.admin);
    for round in 0..5_000 {
        let order = json!({ "since": "1h", "tenantId": "10001", "dryRun": true });
        let answer = edge.client.post(&url).json(&order).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert_eq!(status, 200, "round {round}: {text}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ended_by_a_drain_reports_where_to_continue() {
    let edge = Edge::start_with(QUICK).await;
    let child = slow_replay(&edge).await;
    edge.stop().await;
    let said = ended(child).await;
    assert_eq!(said.code, Some(69), "{}", said.err);
    assert!(said.err.contains("the service drains; "), "{}", said.err);
    assert!(said.err.contains("continue with --since 20"), "{}", said.err);
    assert!(said.out.contains("of 60 events replayed"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_waits_for_queued_events() {
    let edge = Edge::start_with(&format!("{QUICK}[consumer]\nconcurrency = 1\n")).await;
    changed(&edge, 1).await;
    edge.faults.arm(Fault::PauseBeforeApply);
    for batch in 0..6 {
        let events: Vec<Value> = (0..1_000)
            .map(|n| {
                let mut event = flat(&customer(2));
                event["eventId"] = format!("waiting-{batch}-{n}").into();
                event
            })
            .collect();
        let request = edge.client.post(edge.url("/webhooks/10001")).header("X-API-Key", "demo-secret");
        assert_eq!(request.json(&events).send().await.unwrap().status(), 202);
    }
    let mut child = command(&edge, &["replay", "--since", "1h", "--json"]).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let mut waited = false;
    while !waited {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().expect("the replay continues");
        let progress: Value = serde_json::from_str(&line).unwrap();
        waited = progress["status"] == "waiting";
        assert_eq!(progress["replayed"], 0);
    }
    edge.faults.disarm(Fault::PauseBeforeApply);
    while timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().is_some() {}
    assert!(child.wait().await.unwrap().success());
    assert!(edge.metric("profile_edge_replayed_events_total").await >= 1.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_replay_and_dead_letter_commands_name_the_mistake() {
    let without = format!("{QUICK}[queue.embedded]\njournal_max_bytes = \"0B\"\n");
    let (edge, bare) = (Edge::start_with(QUICK).await, Edge::start_with(&without).await);
    for (edge, arguments, says) in [
        (&edge, &["replay", "--since", "yesterday"][..], "since: expected how long ago"),
        (&edge, &["replay", "--since", "1h", "--until", "2h"], "until: expected a time after since"),
        (&edge, &["replay", "--since", "1h", "--rate", "0"], "rate: expected a number"),
        (&edge, &["replay", "--since", "1h", "--rate", "many"], "--rate"),
        (&edge, &["replay", "--since", "1h", "--tenant", "a b"], "--tenant"),
        (&edge, &["replay", "--since", "1h", "--tenant", "20002"], "unknown tenant"),
        (&edge, &["replay"], "--since"),
        (&edge, &["dead-letters", "redrive"], "ID"),
        (&edge, &["dead-letters", "redrive"], "--all"),
        (&edge, &["dead-letters", "purge"], "--yes"),
        (&edge, &["dead-letters", "redrive", "1", "--all"], "--all"),
        (&edge, &["dead-letters", "redrive", "1"], "no such dead letter"),
        (&edge, &["dead-letters", "purge", "1", "--yes"], "no such dead letter"),
        (&bare, &["replay", "--since", "1h"], "keeps no journal"),
    ] {
        let said = run(edge, arguments).await;
        assert_eq!(said.code, Some(64), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(says), "{arguments:?}: {}", said.err);
    }
    for body in [json!({}), json!({ "ids": ["1"], "all": true })] {
        let url = format!("http://{}/admin/dead-letters/purge", edge.admin);
        let answer = edge.client.post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert!(answer.text().await.unwrap().contains("ids"));
    }
    edge.stop().await;
    bare.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redriven_deletions_write_no_tombstone_and_purge_removes_the_rest() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let edge = Edge::start_with(&format!("{QUICK}{}", on_rabbit(&server.url(&vhost)))).await;
    let event = |id: &str, n: u32, kind: &str| {
        let tenant = "10001".parse().unwrap();
        let key = KeyHasher::Sha256.identify(&tenant, &customer(n).parse().unwrap()).digest();
        let at = Timestamp::from_millis(1_741_064_767_500);
        json!({ "v": 1, "id": id, "tenant": "10001", "keys": [key.to_string()], "kind": kind, "at": at,
                "at_precision": "ms", "received_at": at, "shape": "flat" })
    };
    for letter in [event("e-1", 1, "updated"), event("e-2", 2, "deleted"), event("e-3", 3, "updated"), json!("junk")] {
        server.publish(&vhost, "amq.default", "profile-edge.dead-letters", letter.to_string().as_bytes()).await;
    }
    let letters = async || {
        let said = run(&edge, &["dead-letters", "list", "--json"]).await;
        said.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    eventually("four dead letters", || async { (letters().await.len() == 4).then_some(()) }).await;
    for n in 1..=3 {
        edge.look_up(&customer(n)).await;
    }
    let said = run(&edge, &["dead-letters", "redrive", "--all"]).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "3 put back, 1 kept because they hold no event (see `dead-letters list`)\n")
    );
    edge.applied("updated", 2.0).await;
    edge.applied("deleted", 1.0).await;
    for n in 1..=3 {
        let looked = edge.look_up(&customer(n)).await;
        // The customer may have been created again since.
        assert!(looked.status == 200 && !looked.is_hit(), "{}", looked.cache_status);
    }
    let left = letters().await;
    assert_eq!((left.len(), left[0]["eventId"].as_str()), (1, None));
    let junk = left[0]["id"].as_str().unwrap();
    let said = run(&edge, &["dead-letters", "redrive", junk]).await;
    assert_eq!(said.code, Some(64));
    assert!(said.err.contains("holds no event"), "{}", said.err);
    let said = run(&edge, &["dead-letters", "purge", "--yes"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "1 removed\n"));
    assert!(letters().await.is_empty());
    edge.stop().await;
}
