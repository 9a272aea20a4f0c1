//! The whole application on Memcached: several servers, outages, restarts, encryption and users.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;

use crate::support::edge::{Edge, flat};
use crate::support::servers::memcached::{MemcachedServer, on_memcached};
use crate::support::tls::certificates;
use crate::support::{customer, eventually};

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";

async fn on(servers: &[&MemcachedServer], more: &str) -> Edge {
    Edge::start_with(&format!("{QUICK}{}{more}", on_memcached(servers))).await
}

/// Looks a customer up until the answer is a hit.
async fn is_cached(edge: &Edge, customer: &str) {
    eventually("a hit", || async { edge.look_up(customer).await.is_hit().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memcached_restart_is_found_and_events_are_applied_again() {
    let mut server = MemcachedServer::start(&[]).await;
    let edge = on(&[&server], "").await;
    let (one, two) = (customer(1), customer(2));
    is_cached(&edge, &one).await;
    assert_eq!(edge.post_event(&flat(&two)).await.status(), 202);
    edge.applied("updated", 1.0).await;
    // The history is read once a second, and must have been read before.
    edge.wait_for_metric("profile_edge_store_operations_total{op=\"lineage\",outcome=\"ok\"}", 2.0).await;

    server.restart().await;
    edge.applied("updated", 2.0).await;
    edge.is_ready().await;
    is_cached(&edge, &one).await;
    edge.change(&one, json!({ "firstName": "Grace" })).await;
    edge.applied("updated", 3.0).await;
    assert_eq!(edge.look_up(&one).await.json()["firstName"], "Grace");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_memcached_is_found_like_a_restart() {
    let server = MemcachedServer::start(&[]).await;
    let edge = on(&[&server], "").await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    edge.applied("updated", 1.0).await;
    edge.is_ready().await;
    // The history is read once a second, and must have been read before.
    edge.wait_for_metric("profile_edge_store_operations_total{op=\"lineage\",outcome=\"ok\"}", 2.0).await;
    assert_eq!(server.command("flush_all").await, "OK");
    edge.applied("updated", 2.0).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memcached_that_is_down_does_not_hide_the_restart_of_another() {
    let mut servers = [MemcachedServer::start(&[]).await, MemcachedServer::start(&[]).await];
    let edge = on(&servers.each_ref(), "").await;
    for n in 1..=12 {
        assert_eq!(edge.post_event(&flat(&customer(n))).await.status(), 202);
    }
    edge.applied("updated", 12.0).await;
    // The history is read once a second, and must have been read before.
    edge.wait_for_metric("profile_edge_store_operations_total{op=\"lineage\",outcome=\"ok\"}", 2.0).await;
    servers[0].kill().await;
    edge.is_without("store").await;
    servers[1].restart().await;
    // Those of the second server take effect again, those of the first must wait.
    edge.applied("updated", 13.0).await;
    servers[0].restart().await;
    edge.applied("updated", 24.0).await;
    edge.is_ready().await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_memcached_servers_fails_alone() {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(MemcachedServer::start(&[]).await);
    }
    let edge = on(&servers.iter().collect::<Vec<_>>(), "").await;
    let customers: Vec<String> = (1..=24).map(customer).collect();
    for id in &customers {
        is_cached(&edge, id).await;
    }
    let held = servers[1].keys("cust:profile:").await.iter().filter(|key| key.starts_with("cust:")).count();
    servers[1].kill().await;
    edge.is_without("store").await;
    let mut answers: BTreeMap<bool, Vec<&String>> = BTreeMap::new();
    for id in &customers {
        let answer = edge.look_up(id).await;
        assert_eq!(answer.status, 200, "{}", answer.cache_status);
        assert!(answer.is_hit() || answer.cache_status.contains("store-unavailable"), "{}", answer.cache_status);
        answers.entry(answer.is_hit()).or_default().push(id);
    }
    let (kept, lost) = (&answers[&true], &answers[&false]);
    assert_eq!(lost.len(), held, "those on the server that is down");

    // An event of a customer there waits; others are applied.
    for id in [lost[0], kept[0]] {
        assert_eq!(edge.post_event(&flat(id)).await.status(), 202);
    }
    edge.applied("updated", 1.0).await;
    assert!(edge.look_up(kept[0]).await.cache_status.contains("fwd=miss"));
    servers[1].restart().await;
    edge.applied("updated", 2.0).await;
    edge.is_ready().await;
    is_cached(&edge, lost[0]).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_memcached_delays_lookups_by_its_timeout_once() {
    let server = MemcachedServer::start(&[]).await;
    let edge = on(&[&server], "").await;
    is_cached(&edge, &customer(1)).await;
    server.pause().await;
    edge.is_without("store").await;
    for _ in 0..3 {
        let answer = edge.look_up(&customer(1)).await;
        assert_eq!(answer.status, 200);
        assert!(answer.cache_status.contains("store-unavailable"), "{}", answer.cache_status);
    }
    server.unpause().await;
    edge.is_ready().await;
    is_cached(&edge, &customer(1)).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_memcached_reads_its_files_anew() {
    let directory = TempDir::new().unwrap();
    certificates(directory.path());
    // The server gives up its rights before it reads its files.
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("users"), "edge:first\n").unwrap();
    let ssl = format!("ssl_chain_cert={},ssl_key={}", path("server.pem"), path("server.key"));
    let mut server = MemcachedServer::start(&["-Z", "-o", &ssl, "-Y", &path("users")]).await;
    std::fs::write(path("password"), "first\n").unwrap();
    let more = format!(
        "username = \"edge\"\npassword_file = {:?}\n[store.memcached.tls]\nca = {:?}\n",
        path("password"),
        path("ca.pem")
    );
    let edge = on(&[&server], &more).await;
    is_cached(&edge, &customer(1)).await;

    std::fs::write(path("users"), "edge:second\n").unwrap();
    server.restart().await;
    edge.is_without("store").await;
    std::fs::write(path("password"), "second\n").unwrap();
    edge.is_ready().await;
    is_cached(&edge, &customer(1)).await;

    // The certificates are read again too.
    std::fs::copy(path("ca.pem"), path("kept.pem")).unwrap();
    let other = TempDir::new().unwrap();
    certificates(other.path());
    std::fs::copy(other.path().join("ca.pem"), path("ca.pem")).unwrap();
    server.restart().await;
    edge.is_without("store").await;
    std::fs::copy(path("kept.pem"), path("ca.pem")).unwrap();
    edge.is_ready().await;
    edge.stop().await;
}
