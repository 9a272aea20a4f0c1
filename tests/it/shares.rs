//! A part of Redis that fails, with more events than the consumer may hold: the events of the other parts go on.

use futures_util::future::join_all;
use profile_edge::domain::{KeyHasher, TenantId};

use crate::support::edge::{Edge, flat, on_rabbit};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// Several times what the broker delivers ahead, and what waits for a redelivery.
const FAILING: usize = 2_000;

const HEALTHY: usize = 300;

/// Returns so many customers of the first master of a cluster, and so many of the others.
async fn customers_by_part(deployment: &Deployment) -> (Vec<String>, Vec<String>) {
    let tenant: TenantId = "10001".parse().unwrap();
    let mut connection = deployment.servers[0].connect().await.unwrap();
    let all: Vec<String> = (1..=12_000).map(customer).collect();
    let mut slots = redis::pipe();
    for id in &all {
        let key = KeyHasher::Sha256.identify(&tenant, &id.parse().unwrap()).key();
        slots.cmd("CLUSTER").arg("KEYSLOT").arg(key.as_str());
    }
    let slots: Vec<u16> = slots.query_async(&mut connection).await.unwrap();
    // A third of the slots, as the cluster is created.
    let is_first = |slot: u16| slot <= 5_460;
    let of = |first: bool, count| {
        let found = all.iter().zip(&slots).filter(|(_, slot)| is_first(**slot) == first);
        found.map(|(id, _)| id.clone()).take(count).collect::<Vec<_>>()
    };
    let (failing, healthy) = (of(true, FAILING), of(false, HEALTHY));
    assert_eq!((failing.len(), healthy.len()), (FAILING, HEALTHY));
    (failing, healthy)
}

async fn post(edge: &Edge, ids: &[String]) {
    for chunk in ids.chunks(100) {
        for answer in join_all(chunk.iter().map(|id| async { edge.post_event(&flat(id)).await })).await {
            assert_eq!(answer.status(), 202);
        }
    }
}

async fn a_failing_part_with_many_events(queue: &str) {
    let deployment = Deployment::start(Setup::Cluster).await;
    for server in &deployment.servers {
        let mut connection = server.connect().await.unwrap();
        let mut covered = redis::cmd("CONFIG");
        covered.arg(&["SET", "cluster-require-full-coverage", "no"]).exec_async(&mut connection).await.unwrap();
    }
    let (failing, healthy) = customers_by_part(&deployment).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings);
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}{queue}")).await;
    let done = async || {
        let mut done = 0.0;
        for outcome in ["applied", "duplicate"] {
            let series = format!("profile_edge_consumer_events_total{{kind=\"updated\",outcome=\"{outcome}\"}}");
            done += edge.metric(&series).await;
        }
        done
    };

    deployment.servers[0].pause().await;
    post(&edge, &failing).await;
    post(&edge, &healthy).await;
    let expected = f64::from(u32::try_from(HEALTHY).unwrap());
    eventually("the events of the other parts are applied", || async { (done().await >= expected).then_some(()) })
        .await;
    edge.is_without("store").await;

    deployment.servers[0].unpause().await;
    let all = f64::from(u32::try_from(FAILING + HEALTHY).unwrap());
    eventually("every event is applied", || async { (done().await >= all).then_some(()) }).await;
    let left = || async { (edge.metric("profile_edge_queue_events").await == 0.0).then_some(()) };
    eventually("nothing is left in the queue", left).await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_part_with_many_events_stops_no_other_on_rabbitmq() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    a_failing_part_with_many_events(&on_rabbit(&server.url(&vhost))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_part_with_many_events_stops_no_other_on_the_embedded_queue() {
    a_failing_part_with_many_events("").await;
}
