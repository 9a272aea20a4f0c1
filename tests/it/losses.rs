//! Effects that the store lost after their acknowledgement are applied again from the journal.

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
