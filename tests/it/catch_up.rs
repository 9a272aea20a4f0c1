//! Catch-up: `profile-edge replay --from-genesys` finds changes whose events were lost, in the audits of Genesys.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::pairing::on_every_pairing;
use crate::support::command::{command, ended, run};
use crate::support::edge::{Edge, Pairing, with_sandbox_of};
use crate::support::{PATIENCE, customer, eventually};

on_every_pairing!(changes_whose_events_were_lost_are_found);

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

const VIEW: &str = "externalContacts:contact:view";
const AUDITS: &str = "audits:audit:view";

/// Starts with a Genesys whose events are lost, and whose audits may be read.
async fn without_events(pairing: Pairing) -> Edge {
    let edge = Edge::start_on(pairing, QUICK).await;
    edge.behave(json!({ "events": false, "permissions": [VIEW, AUDITS] })).await;
    edge
}

async fn changed(edge: &Edge, count: u32) {
    for n in 1..=count {
        edge.change(&customer(n), json!({ "firstName": format!("Changed {n}") })).await;
    }
}

/// Returns how many queries about audits the sandbox got.
async fn queries(edge: &Edge) -> u64 {
    let calls = edge.sandbox(reqwest::Method::GET, "/sandbox/calls").send().await.unwrap();
    calls.json::<Value>().await.unwrap()["audits"].as_u64().unwrap()
}

/// Starts a command that prints its progress as lines of JSON.
fn started(edge: &Edge, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command(edge, arguments).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// Waits for a line of progress.
async fn progress(lines: &mut Lines<BufReader<ChildStdout>>, is_wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().expect("the replay continues");
        let progress: Value = serde_json::from_str(&line).unwrap();
        if is_wanted(&progress) {
            return progress;
        }
    }
}

async fn changes_whose_events_were_lost_are_found(pairing: Pairing) {
    let edge = without_events(pairing).await;
    for n in 1..=3 {
        edge.look_up(&customer(n)).await;
    }
    changed(&edge, 1).await;
    edge.delete(&customer(2)).await;
    for n in 1..=3 {
        assert!(edge.look_up(&customer(n)).await.is_hit(), "the events were lost");
    }

    let replay = ["replay", "--from-genesys", "--since", "1h", "--tenant", "10001", "--json"];
    let dry = run(&edge, &[&replay[..], &["--dry-run"]].concat()).await.json();
    assert_eq!((&dry["matched"], &dry["replayed"], &dry["status"]), (&json!(2), &json!(0), &json!("done")));
    assert_eq!((&dry["kinds"], &dry["fromGenesys"]), (&json!({ "deleted": 1, "updated": 1 }), &json!(true)));
    assert!(edge.look_up(&customer(1)).await.is_hit(), "a dry run evicts nothing");

    let done = run(&edge, &replay).await.json();
    assert_eq!((&done["matched"], &done["replayed"], &done["unreadable"]), (&json!(2), &json!(2), &json!(0)));
    edge.applied("updated", 1.0).await;
    edge.applied("deleted", 1.0).await;
    let found = edge.look_up(&customer(1)).await;
    assert_eq!((found.status, found.json()["firstName"].as_str()), (200, Some("Changed 1")));
    assert_eq!(edge.look_up(&customer(2)).await.status, 404);
    assert!(edge.look_up(&customer(3)).await.is_hit(), "what did not change stays");

    let records = edge.audit_records();
    edge.stop().await;
    let records = records();
    let operator = |action: &str| records.iter().filter(|record| record["action"] == action).count();
    assert_eq!((operator("replay.from_genesys"), operator("replay.from_genesys.dry_run")), (1, 1), "{records:#?}");
    assert_eq!(operator("replay.ended"), 1);
    let replayed = records.iter().filter(|record| record["type"] == "event" && record["replayed"] == true).count();
    assert_eq!(replayed, 2, "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_of_the_audits_are_read() {
    let edge = without_events(Pairing::Embedded).await;
    changed(&edge, 250).await;
    let done = run(&edge, &["replay", "--from-genesys", "--since", "30m", "--json"]).await.json();
    assert_eq!((&done["read"], &done["matched"], &done["replayed"]), (&json!(250), &json!(250), &json!(250)));
    // The first asks whether Genesys answers, the others read three pages.
    assert_eq!(queries(&edge).await, 4);
    assert_eq!(edge.metric("profile_edge_replay_queries_total{outcome=\"ok\"}").await, 4.0);
    edge.applied("updated", 250.0).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_a_catch_up_is_named() {
    let edge = Edge::start_with(QUICK).await;
    let refused = async |arguments: &[&str], says: &str| {
        let said = run(&edge, &[&["replay", "--from-genesys"], arguments].concat()).await;
        assert_eq!(said.code, Some(64), "{}", said.err);
        assert!(said.err.contains(says), "{says}: {}", said.err);
    };
    refused(&["--since", "1h"], "needs the permission audits:audit:view").await;
    refused(&["--since", "1h", "--dry-run"], "needs the permission audits:audit:view").await;
    refused(&["--since", "15days"], "the last 14 days").await;
    refused(&["--since", "1h", "--tenant", "20002"], "unknown tenant").await;
    edge.behave(json!({ "permissions": [VIEW, AUDITS, "externalContacts:contact:edit"], "revoke_tokens": true })).await;
    refused(&["--since", "1h"], "externalContacts:contact:edit").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_catch_up_continues_where_it_was() {
    let edge = without_events(Pairing::Embedded).await;
    changed(&edge, 30).await;
    let arguments = ["replay", "--from-genesys", "--since", "5h", "--rate", "1", "--json"];
    let (child, mut lines) = started(&edge, &arguments);
    progress(&mut lines, |progress| progress["replayed"].as_u64() > Some(0)).await;
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status();
    assert!(interrupted.unwrap().success());
    while timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().is_some() {}
    let said = ended(child).await;
    assert_eq!(said.code, Some(130), "{}", said.err);
    let (_, hint) = said.err.split_once("continue with --since ").unwrap();
    let since = hint.split_whitespace().next().unwrap();
    assert!(hint.contains("--from-genesys"), "{hint}");

    // The empty hours before are not read again. The service needs a moment to notice the disconnection.
    let again = ["replay", "--from-genesys", "--since", since, "--json"];
    let done = eventually("the continued replay", || async {
        let said = run(&edge, &again).await;
        (said.code == Some(0)).then(|| said.json())
    })
    .await;
    assert_eq!((&done["matched"], &done["status"]), (&json!(30), &json!("done")));
    let (since, asked): (jiff::Timestamp, _) = (since.parse().unwrap(), done["until"].as_str().unwrap());
    let hours = asked.parse::<jiff::Timestamp>().unwrap().duration_since(since).as_hours();
    assert!((1..5).contains(&hours), "{hours} h");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_up_waits_while_genesys_fails() {
    let edge = without_events(Pairing::Embedded).await;
    changed(&edge, 3).await;
    edge.behave(json!({ "fail_status": 503 })).await;
    let (child, mut lines) = started(&edge, &["replay", "--from-genesys", "--since", "1h", "--json"]);
    let waiting = progress(&mut lines, |progress| progress["status"] == "waiting").await;
    assert_eq!(waiting["read"], 0);
    edge.behave(json!({ "fail_status": null })).await;
    let done = progress(&mut lines, |progress| progress["status"] == "done").await;
    assert_eq!(done["replayed"], 3);
    assert_eq!(ended(child).await.code, Some(0));
    // The failures of the audit service do not count against the profiles.
    assert_eq!(edge.metric("profile_edge_upstream_breaker_state").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_up_leaves_lookups_their_share_of_the_budget() {
    let genesys = without_events(Pairing::Embedded).await;
    let settings = with_sandbox_of(genesys.sandbox_address());
    let edge = Edge::start_with(&settings.replace("client_id", "requests_per_minute = 8, client_id")).await;
    // Two weeks take more queries than a minute's budget has.
    let (child, mut lines) = started(&edge, &["replay", "--from-genesys", "--since", "14days", "--json"]);
    progress(&mut lines, |progress| progress["status"] == "waiting").await;
    let asked = queries(&genesys).await;
    assert!((2..=6).contains(&asked), "{asked} queries");
    for n in 1..=2 {
        assert_eq!(edge.look_up(&customer(n)).await.status, 200);
    }
    drop(child);
    edge.stop().await;
    genesys.stop().await;
}
