//! Effects that the store lost after their acknowledgement are applied again from the journal.

use profile_edge::domain::KeyHasher;
use serde_json::json;

use crate::support::edge::{Edge, flat, on_rabbit};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// A server that restarts without its last writes has lost the effect of an event: the record that the event deleted is
/// back.
#[tokio::test(flavor = "multi_thread")]
async fn effects_lost_by_a_redis_restart_are_applied_from_the_journal() {
    let mut deployment = Deployment::start(Setup::Single).await;
    let rabbit = RabbitServer::shared().await;
    let vhost = rabbit.vhost().await;
    let edge = Edge::start_with(&format!(
        "[sandbox]\nlatency = \"0ms\"\n[store]\nkind = \"redis\"\n[store.redis]\n{}{}",
        deployment.settings,
        on_rabbit(&rabbit.url(&vhost)),
    ))
    .await;
    let (kept, changed) = (customer(1), customer(2));
    for id in [&kept, &changed] {
        assert_eq!(edge.look_up(id).await.status, 200);
    }
    let mut connection = deployment.servers[0].connect().await.unwrap();
    // From here on nothing is written to the disk.
    let stop = redis::cmd("CONFIG").arg("SET").arg("appendonly").arg("no").exec_async(&mut connection).await;
    stop.unwrap();
    assert_eq!(edge.post_event(&flat(&changed)).await.status(), 202);
    edge.applied("updated", 1.0).await;

    deployment.servers[0].kill().await;
    deployment.servers[0].restart().await;
    edge.applied("updated", 2.0).await;
    assert!(edge.metric("profile_edge_replayed_events_total").await >= 1.0);
    eventually("the store answers", || async { edge.look_up(&kept).await.is_hit().then_some(()) }).await;
    assert!(!edge.look_up(&changed).await.is_hit());
    eventually("ready", || async { (edge.ready().await["degraded"] == json!([])).then_some(()) }).await;
    edge.stop().await;
}

/// A master of a cluster restarts without its last writes, while another one is silent and has no replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_cluster_master_hides_no_loss_of_another() {
    let mut deployment = Deployment::start(Setup::Cluster).await;
    deployment.serve_without_full_coverage().await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings);
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}")).await;
    let tenant = "10001".parse().unwrap();
    let key = |id: &str| KeyHasher::Sha256.identify(&tenant, &id.parse().unwrap()).key().as_str().to_owned();
    let mut of_second = Vec::new();
    for id in (1..=60).map(customer) {
        eventually("a hit", || async { edge.look_up(&id).await.is_hit().then_some(()) }).await;
        if deployment.command::<Vec<String>>(1, &["KEYS", &key(&id)]).await.len() == 1 {
            of_second.push(id);
        }
    }
    let [kept, changed] = &of_second[..2] else { panic!("{of_second:?}") };
    // From here on nothing is written to the disk.
    deployment.command::<String>(1, &["CONFIG", "SET", "appendonly", "no"]).await;
    // The history is read once a second, and must have been read before.
    edge.wait_for_metric("profile_edge_store_operations_total{op=\"lineage\",outcome=\"ok\"}", 2.0).await;
    deployment.servers[0].pause().await;
    edge.is_without("store").await;
    assert_eq!(edge.post_event(&flat(changed)).await.status(), 202);
    edge.applied("updated", 1.0).await;

    deployment.servers[1].kill().await;
    deployment.servers[1].restart().await;
    // What was set is not on its disk.
    deployment.command::<String>(1, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    edge.applied("updated", 2.0).await;
    eventually("the store answers", || async { edge.look_up(kept).await.is_hit().then_some(()) }).await;
    assert!(!edge.look_up(changed).await.is_hit());
    deployment.servers[0].unpause().await;
    edge.is_ready().await;
    edge.stop().await;
}
