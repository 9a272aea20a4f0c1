//! Gaps in the notifications: what was missed is searched in the audits of Genesys, and a gap is noticed at once.

use serde_json::{Value, json};

use crate::notifications::{LONG, World, settings_of};
use crate::support::edge::{Edge, Pairing};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::{customer, eventually};

const GAP: &str = "profile_edge_source_gap_seconds{tenant=\"10001\"}";
const COMPLETE: &str = "profile_edge_source_catch_ups_total{outcome=\"complete\"}";
const REFUSED: &str = "profile_edge_source_catch_ups_total{outcome=\"refused\"}";
const REPLAYED: &str = "profile_edge_replayed_events_total";

/// What the OAuth client may do if gaps are to be searched.
fn with_audits() -> Value {
    json!({ "permissions": ["externalContacts:contact:view", "audits:audit:view"] })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gap_missed_is_found_in_the_audits() {
    let world = World::start().await;
    world.genesys.behave(with_audits()).await;
    for n in 1..=2 {
        world.watched_hit(&customer(n)).await;
    }
    // The first search, after the start, finds nothing.
    world.edge.wait_for_metric(COMPLETE, 1.0).await;
    world.genesys.behave(json!({ "sockets": false })).await;
    world.misses("changes are not received since").await;
    world.genesys.change(&customer(1), json!({ "title": "missed" })).await;
    world.genesys.delete(&customer(2)).await;
    // Nobody has looked this one up, so nobody watches it.
    world.genesys.change(&customer(3), json!({ "title": "missed" })).await;
    assert_eq!(world.edge.metric(REPLAYED).await, 0.0);

    // Genesys fails at first: the search waits, and says so.
    world.genesys.behave(json!({ "sockets": true, "fail_status": 503 })).await;
    let reason = world.misses("are searched in the audits of genesys").await;
    assert!(reason.contains("changes since 20"), "{reason}");
    eventually("the age of the gap", || async { (world.edge.metric(GAP).await > 0.0).then_some(()) }).await;
    assert_eq!(world.edge.metric("profile_edge_source_up{tenant=\"10001\"}").await, 1.0);
    world.genesys.behave(json!({ "fail_status": null })).await;
    world.edge.is_ready().await;
    world.edge.wait_for_metric(COMPLETE, 2.0).await;
    assert_eq!((world.edge.metric(REPLAYED).await, world.edge.metric(GAP).await), (3.0, 0.0));
    world.edge.applied("deleted", 1.0).await;
    assert_eq!(world.edge.look_up(&customer(2)).await.status, 404);
    world.shows(&customer(1), "missed").await;

    let records = world.edge.audit_records();
    world.stop().await;
    let records = records();
    let of = |action: &str| -> Vec<&Value> { records.iter().filter(|record| record["action"] == action).collect() };
    let (started, ended) = (of("replay.after_gap"), of("replay.ended"));
    assert!(started.len() == ended.len() && started.iter().all(|start| start["tenant"] == "10001"), "{records:#?}");
    assert_eq!(ended.iter().filter_map(|end| end["count"].as_u64()).sum::<u64>(), 3, "{ended:#?}");
    let is_started = |record: &Value| started.iter().any(|start| start["replay"] == record["replay"]);
    assert!(ended.iter().all(|end| is_started(end)), "{ended:#?}");
    let mut events = records.iter().filter(|record| record["type"] == "event" && record["replayed"] == true);
    assert!(events.any(is_started), "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_permission_a_gap_is_only_invalidated() {
    let world = World::start().await;
    let one = customer(1);
    world.watched_hit(&one).await;
    world.edge.wait_for_metric(REFUSED, 1.0).await;
    world.genesys.behave(json!({ "sockets": false })).await;
    world.misses("changes are not received since").await;
    world.genesys.change(&one, json!({ "title": "missed" })).await;
    world.genesys.behave(json!({ "sockets": true })).await;
    world.edge.wait_for_metric(REFUSED, 2.0).await;
    world.shows(&one, "missed").await;
    world.edge.is_ready().await;
    assert_eq!((world.edge.metric(GAP).await, world.edge.metric(REPLAYED).await), (0.0, 0.0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_searches_what_its_predecessor_missed() {
    let genesys = Edge::start().await;
    genesys.behave(with_audits()).await;
    // So long that nothing but an event makes a profile anew.
    let long = LONG.replace("unwatched_ttl = \"1s\"", "unwatched_ttl = \"1h\"");
    let settings = settings_of(genesys.sandbox_address(), &long) + &Pairing::Redis.settings().await;
    let (one, two) = (customer(1), customer(2));
    let before = Edge::start_with(&settings).await;
    before.look_up(&one).await;
    before.wait_for_metric(COMPLETE, 1.0).await;
    before.stop().await;
    genesys.change(&one, json!({ "title": "nobody listened" })).await;

    let edge = Edge::start_with(&settings).await;
    assert_ne!(edge.look_up(&one).await.json()["title"], "nobody listened");
    // The first customer to be watched opens a channel, and the search begins.
    edge.look_up(&two).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(edge.look_up(&one).await.json()["title"], "nobody listened");
    edge.stop().await;
    genesys.stop().await;
}

/// A world whose Genesys is behind a proxy, and whose lane waits for its turn to subscribe the sixth customer.
async fn waiting_for_its_turn() -> (World, Proxy) {
    let genesys = Edge::start().await;
    let proxy = Proxy::to(genesys.sandbox_address().port()).await;
    // A tenth of it is for channels: six requests at once, and then one every ten seconds.
    let slow = settings_of(proxy.address, LONG).replace("requests_per_minute = 100000", "requests_per_minute = 60");
    let edge = Edge::start_with(&format!("{slow}[shutdown]\ndeadline = \"3s\"\n")).await;
    let world = World { genesys, edge };
    for n in 1..=5 {
        world.edge.look_up(&customer(n)).await;
        eventually("a subscription", || async { (world.channels().await["topics"] == n).then_some(()) }).await;
    }
    world.edge.look_up(&customer(6)).await;
    (world, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_socket_is_noticed_while_its_lane_waits() {
    let (world, _proxy) = waiting_for_its_turn().await;
    world.genesys.behave(json!({ "sockets": false })).await;
    world.misses("changes are not received since").await;
    assert_eq!(world.edge.metric("profile_edge_source_watched{tenant=\"10001\"}").await, 0.0);
    // The turn has not come meanwhile.
    assert_eq!(world.channels().await["topics"], 5);
    world.stop().await;
}

/// A channel is of no use after its token, although its socket stays open.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_token_is_noticed_while_its_lane_waits() {
    let genesys = Edge::start().await;
    genesys.behave(json!({ "token_lifetime": 4 })).await;
    // A channel is replaced every second, which takes two requests: after six, the lane waits for ten seconds.
    let slow = settings_of(genesys.sandbox_address(), LONG);
    let slow = slow.replace("requests_per_minute = 100000", "requests_per_minute = 60");
    let world = World { edge: Edge::start_with(&slow).await, genesys };
    world.edge.look_up(&customer(1)).await;
    world.misses("the token of the channel has ended").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_waits_for_genesys_ends_with_the_drain() {
    let (world, proxy) = waiting_for_its_turn().await;
    // Whatever the lane asks from now on has no answer for longer than the drain may take.
    proxy.set(Link::Stalled);
    world.stop().await;
}
