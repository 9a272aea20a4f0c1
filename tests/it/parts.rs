//! One master or one slot of a Redis Cluster fails: the lookups and the events of the others go on, at once and however many
//! wait.

use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::domain::{KeyHasher, TenantId};
use serde_json::json;
use tokio::time::Instant;

use crate::support::edge::{Edge, LookupAnswer, flat, on_rabbit};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// Several times what the broker delivers ahead, and what waits for a redelivery.
const FAILING: usize = 2_000;

const HEALTHY: usize = 300;

/// The share of the events that is applied while one master of three fails; two thirds could be.
const SHARE: f64 = 0.6;

/// A cluster whose masters go on without each other, a service on it, and customers by the part that has them.
struct Site {
    deployment: Deployment,
    edge: Edge,
    /// Those of the first master.
    failing: Vec<String>,
    healthy: Vec<String>,
}

impl Site {
    async fn start(queue: &str) -> Self {
        Self::on(Deployment::start(Setup::Cluster).await, queue).await
    }

    async fn on(deployment: Deployment, queue: &str) -> Self {
        deployment.serve_without_full_coverage().await;
        let (failing, healthy) = customers_by_part(&deployment).await;
        let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings);
        let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}{queue}")).await;
        Self { deployment, edge, failing, healthy }
    }

    async fn post(&self, customers: &[String]) {
        for chunk in customers.chunks(100) {
            for answer in join_all(chunk.iter().map(|id| async { self.edge.post_event(&flat(id)).await })).await {
                assert_eq!(answer.status(), 202);
            }
        }
    }

    async fn wait_until_applied(&self, what: &str, least: usize) {
        let least = f64::from(u32::try_from(least).unwrap());
        eventually(what, || async { (self.edge.updates_in_effect().await >= least).then_some(()) }).await;
    }

    /// Waits until this many events were applied and none is left, then stops.
    async fn ends_with(self, events: usize) {
        self.wait_until_applied("every event is applied", events).await;
        let left = || async { (self.edge.metric("profile_edge_queue_events").await == 0.0).then_some(()) };
        eventually("nothing is left in the queue", left).await;
        assert_eq!(self.edge.metric("profile_edge_dead_letters").await, 0.0);
        self.edge.stop().await;
    }
}

/// Returns customers of the first master of a cluster, and some of the others.
async fn customers_by_part(deployment: &Deployment) -> (Vec<String>, Vec<String>) {
    let tenant: TenantId = "10001".parse().unwrap();
    let all: Vec<String> = (1..=12_000).map(customer).collect();
    let key = |id: &String| KeyHasher::Sha256.identify(&tenant, &id.parse().unwrap()).key().as_str().to_owned();
    let slots = deployment.slots_of(&all.iter().map(key).collect::<Vec<_>>()).await;
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

/// Returns those that the sandbox has: the first thousand.
fn known(ids: &[String]) -> Vec<String> {
    ids.iter().filter(|id| **id <= customer(1_000)).cloned().collect()
}

async fn a_failing_part_with_many_events(queue: &str) {
    let site = Site::start(queue).await;
    site.deployment.servers[0].pause().await;
    site.post(&site.failing).await;
    site.post(&site.healthy).await;
    site.wait_until_applied("the events of the other parts are applied", HEALTHY).await;
    site.edge.is_without("store").await;
    site.deployment.servers[0].unpause().await;
    site.ends_with(FAILING + HEALTHY).await;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Killed,
    Stopped,
    /// The move of one slot to another master does not end.
    Moving,
}

/// One event and one lookup of each part in turn, as fast as they are answered, from the first moment of the failure.
async fn one_part_fails(trouble: Trouble) {
    let mut site = Site::start("").await;
    let (mut failing, healthy) = (known(&site.failing), known(&site.healthy));
    for id in &healthy {
        assert_eq!(site.edge.look_up(id).await.status, 200);
    }
    let looked_up: Vec<String> = healthy.iter().take(20).cloned().collect();
    let posted_to: Vec<String> = healthy.iter().skip(20).cloned().collect();
    match trouble {
        Trouble::Killed => site.deployment.servers[0].kill().await,
        Trouble::Stopped => site.deployment.servers[0].pause().await,
        Trouble::Moving => {
            // The only entry of the first master is that of its slot.
            failing.truncate(1);
            let stored = async || site.edge.look_up(&failing[0]).await.is_hit().then_some(());
            eventually("a hit", stored).await;
            assert_eq!(site.deployment.begin_to_move_a_slot().await.len(), 1);
        }
    }
    let (began, mut posted, mut hits, mut lookups) = (Instant::now(), 0_usize, 0_u32, 0_u32);
    while began.elapsed() < Duration::from_secs(3) {
        let of = |ids: &[String], step: usize| ids[step % ids.len()].clone();
        let events = [of(&failing, posted), of(&posted_to, posted), of(&posted_to, posted + 1)];
        site.post(&events).await;
        posted += events.len();
        lookups += 1;
        hits += u32::from(site.edge.look_up(&of(&looked_up, posted)).await.is_hit());
    }
    let applied = site.edge.updates_in_effect().await / f64::from(u32::try_from(posted).unwrap());
    println!("{trouble:?}: {applied:.2} of {posted} events applied, {hits} of {lookups} lookups were hits");
    assert!(applied >= SHARE, "{trouble:?}: {applied} of {posted} events were applied within 3 s");
    assert_eq!(hits, lookups, "{trouble:?}: lookups of the other masters are hits");
    match trouble {
        Trouble::Killed => site.deployment.servers[0].restart().await,
        Trouble::Stopped => site.deployment.servers[0].unpause().await,
        Trouble::Moving => site.deployment.end_to_move_the_slot().await,
    }
    site.edge.is_ready().await;
    site.ends_with(posted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_delays_no_event_and_no_hit_of_the_others() {
    one_part_fails(Trouble::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_master_delays_no_event_and_no_hit_of_the_others() {
    one_part_fails(Trouble::Stopped).await;
}

/// A third of the events are of one slot: soon more than the consumer applies at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_for_ever_delays_no_event_and_no_hit_of_the_others() {
    one_part_fails(Trouble::Moving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_other_nodes_of_a_cluster_close_nothing() {
    let site = Site::start("").await;
    let (healthy, failing) = (&site.healthy[0], &site.failing[0]);
    for id in [healthy, failing] {
        assert_eq!(site.edge.look_up(id).await.status, 200);
    }
    site.deployment.servers[0].pause().await;
    site.edge.is_without("store").await;
    for _ in 0..50 {
        assert!(site.edge.look_up(healthy).await.is_hit());
        let answer = site.edge.look_up(failing).await;
        assert!(answer.cache_status.contains("detail=store-unavailable"), "{}", answer.cache_status);
    }
    site.edge.is_without("store").await;
    site.deployment.servers[0].unpause().await;
    site.edge.is_ready().await;
    assert!(site.edge.look_up(failing).await.is_hit());
    site.ends_with(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_cluster_master_that_wakes_serves_nothing_old() {
    let site = Site::on(Deployment::cluster(1).await, "").await;
    let ids: Vec<String> = known(&site.failing).into_iter().take(20).collect();
    for id in &ids {
        assert_eq!(site.edge.look_up(id).await.status, 200);
    }
    site.deployment.servers[0].pause().await;
    for id in &ids {
        site.edge.change(id, json!({ "firstName": "Newer" })).await;
    }
    // The replica takes over, and what it may have lost is replayed: until then, events that wait are not in effect.
    site.edge.updates_took_effect(ids.len() as f64).await;
    for id in &ids {
        let answer =
            eventually("a hit", || async { Some(site.edge.look_up(id).await).filter(LookupAnswer::is_hit) }).await;
        assert_eq!(answer.json()["firstName"], "Newer");
    }
    site.deployment.servers[0].unpause().await;
    eventually("the old master is a replica", || async {
        for id in &ids {
            assert_eq!(site.edge.look_up(id).await.json()["firstName"], "Newer");
        }
        let role: String = site.deployment.command(0, &["INFO", "replication"]).await;
        role.contains("role:slave").then_some(())
    })
    .await;
    site.edge.is_ready().await;
    site.ends_with(ids.len()).await;
}
