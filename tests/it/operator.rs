//! The operators' commands, sent to the admin listener of a running service.

use std::process::Command;

use serde_json::Value;

use crate::pairing::on_every_pairing;
use crate::support::command::{CommandOutput, run_with};
use crate::support::customer;
use crate::support::edge::{Edge, Pairing, with_sandbox_of};
use crate::support::servers::redis::Deployment;

on_every_pairing!(
    inspect_shows_the_state_of_an_entry_and_never_its_contents,
    invalidate_evicts_and_force_removes_a_tombstone,
);

/// The one value that a command printed.
fn json(said: &CommandOutput) -> Value {
    assert_eq!(said.code, Some(0), "{}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

async fn inspect_shows_the_state_of_an_entry_and_never_its_contents(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    let one = customer(1);
    let inspect = ["inspect", "--tenant", "10001", "--customer", "-", "--json"];
    assert_eq!(json(&run_with(&edge, &inspect, &one).await)["kind"], "absent");
    let profile = edge.look_up(&one).await.json();
    let output = run_with(&edge, &inspect, &format!("{one}\n")).await;
    let state = json(&output);
    assert_eq!(state["kind"], "profile");
    assert!(state["key"].as_str().unwrap().starts_with("cust:profile:10001:"));
    let printed = output.out;
    for personal in [&one, profile["firstName"].as_str().unwrap(), profile["workEmail"].as_str().unwrap()] {
        assert!(!printed.contains(personal), "{printed}");
    }
    edge.stop().await;
}

async fn invalidate_evicts_and_force_removes_a_tombstone(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    let (one, two) = (customer(1), customer(2));
    edge.look_up(&one).await;
    let output = run_with(&edge, &["invalidate", "--tenant", "10001", "--customer", &one], "").await;
    assert_eq!(output.code, Some(0), "{}", output.err);
    edge.applied("updated", 1.0).await;
    assert!(!edge.look_up(&one).await.is_hit());

    edge.delete(&two).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&two).await.status, 410);
    json(&run_with(&edge, &["invalidate", "--tenant", "10001", "--customer", &two, "--json", "--force"], "").await);
    edge.applied("updated", 2.0).await;
    assert_eq!(edge.look_up(&two).await.status, 404);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_and_invalidate_use_both_keys_during_a_key_change() {
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", Deployment::database().await);
    let before = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}")).await;
    let secret = "a2V5LWtleS1rZXkta2V5LWtleS1rZXkta2V5LWtleS0=";
    let keys = format!("[keys]\nscheme = \"hmac-sha256\"\nsecret = \"{secret}\"\nprevious = \"sha256\"\n");
    let after = Edge::start_with(&format!("{keys}{store}{}", with_sandbox_of(before.sandbox_address()))).await;
    let one = customer(1);
    let inspect = ["inspect", "--tenant", "10001", "--customer", "-", "--json"];
    let kinds = async |edge: &Edge| {
        let state = json(&run_with(edge, &inspect, &one).await);
        [&state, &state["previous"]].map(|state| state["kind"].as_str().unwrap_or("none").to_owned())
    };
    before.look_up(&one).await;
    assert!(after.look_up(&one).await.is_hit(), "the entry under the previous key is served");
    assert_eq!(kinds(&before).await, ["profile", "none"]);
    assert_eq!(kinds(&after).await, ["absent", "profile"]);

    let output = run_with(&after, &["invalidate", "--tenant", "10001", "--customer", &one], "").await;
    assert_eq!(output.code, Some(0), "{}", output.err);
    after.applied("updated", 1.0).await;
    assert_eq!(kinds(&after).await, ["absent", "absent"]);
    assert!(!after.look_up(&one).await.is_hit());
    assert_eq!(kinds(&after).await, ["profile", "absent"], "nothing is written under the previous key");
    after.stop().await;
    before.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_and_outages_have_exit_codes() {
    let edge = Edge::start().await;
    assert_eq!(run_with(&edge, &["healthcheck"], "").await.code, Some(0));
    for arguments in [
        ["inspect", "--tenant", "10002", "--customer", "x"],
        ["inspect", "--tenant", "10001", "--customer", "a/b"],
        ["invalidate", "--tenant", "a b", "--customer", "x"],
    ] {
        let output = run_with(&edge, &arguments, "").await;
        assert_eq!(output.code, Some(64), "{arguments:?}");
        assert!(!output.err.is_empty());
    }
    let listed = run_with(&edge, &["dead-letters", "list"], "").await;
    assert_eq!((listed.code, listed.out.as_str()), (Some(0), ""));
    assert!(listed.err.contains("no dead letters"), "{}", listed.err);
    let listed = run_with(&edge, &["dead-letters", "list", "--json"], "").await;
    assert_eq!((listed.code, listed.out.as_str(), listed.err.as_str()), (Some(0), "", ""));
    let purged = run_with(&edge, &["dead-letters", "purge"], "").await;
    assert_eq!(purged.code, Some(64));
    assert!(purged.err.contains("nothing was removed") && purged.err.contains("--yes"), "{}", purged.err);
    let gone = format!("127.0.0.1:{}", crate::support::process::free_port());
    // A sandbox by itself is asked in the same way.
    for (address, code) in [(gone, 69), (edge.sandbox_address().to_string(), 0)] {
        let output = Command::new(env!("CARGO_BIN_EXE_profile-edge"))
            .args(["healthcheck", "--admin", &format!("http://{address}")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    edge.stop().await;
}
