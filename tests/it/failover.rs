//! Servers change behind connections that stay open: a primary is demoted, a name or a master moves.

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use crate::support::edge::{Edge, flat, on_rabbit};
use crate::support::servers::memcached::MemcachedServer;
use crate::support::servers::proxy::Proxy;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, RedisServer, Setup};
use crate::support::{PATIENCE, customer, eventually};

fn on(redis: &str) -> String {
    format!("[sandbox]\nlatency = \"0ms\"\n[store]\nkind = \"redis\"\n[store.redis]\n{redis}")
}

/// Waits until a cached customer is no hit, and checks that it stays so.
async fn serves_no_hits(edge: &Edge) {
    eventually("no hit", || async { (!edge.look_up(&customer(1)).await.is_hit()).then_some(()) }).await;
    for _ in 0..50 {
        let answer = edge.look_up(&customer(1)).await;
        assert!(!answer.is_hit(), "{}", answer.cache_status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_primary_serves_no_hits() {
    let server = RedisServer::start(&[]).await;
    let edge = Edge::start_with(&on(&format!("url = \"{}\"\n", server.url()))).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert!(edge.look_up(&customer(1)).await.is_hit());

    // Its primary cannot be reached, so it keeps its data, and its connections.
    server.order(&["REPLICAOF", "127.0.0.1", "1"]).await;
    serves_no_hits(&edge).await;
    edge.is_without("store").await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);

    server.order(&["REPLICAOF", "NO", "ONE"]).await;
    edge.applied("updated", 1.0).await;
    edge.is_ready().await;
    eventually("hits again", || async { edge.look_up(&customer(1)).await.is_hit().then_some(()) }).await;
    edge.stop().await;
}

/// An address leads to another server, the old one is demoted, and one connection after the other is broken in turn. What
/// the others know of the old server counts no longer once one leads to the new one.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_demoted_primary_follows_an_event_at_the_new_one() {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let mut connections = 1;
    for broken in 0.. {
        if broken >= connections {
            return;
        }
        old.order(&["REPLICAOF", "NO", "ONE"]).await;
        let proxy = Proxy::to(old.port).await;
        let edge = Edge::start_with(&on(&format!("url = \"redis://{}\"\n", proxy.address))).await;
        let customer = customer(u32::try_from(broken).unwrap() + 1);
        edge.look_up(&customer).await;
        assert!(edge.look_up(&customer).await.is_hit());
        connections = proxy.accepted();
        assert!(connections > 2);

        old.order(&["REPLICAOF", "127.0.0.1", "1"]).await;
        proxy.move_to(new.port);
        proxy.close(broken);
        edge.change(&customer, json!({ "firstName": "Moved" })).await;
        edge.applied("updated", 1.0).await;
        let answer = edge.look_up(&customer).await;
        assert_eq!(answer.json()["firstName"], "Moved", "connection {broken} was broken: {}", answer.cache_status);
        edge.stop().await;
    }
}

/// The sentinels agreed on another master, and the old one does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_cut_off_from_its_sentinels_serves_no_hits() {
    let deployment = Deployment::start(Setup::Sentinel).await;
    let edge = Edge::start_with(&on(&deployment.settings)).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert!(edge.look_up(&customer(1)).await.is_hit());

    deployment.promote_unnoticed().await;
    // The other master has nothing, so the first lookup there is a miss that is stored.
    eventually("a miss that is stored", || async {
        edge.look_up(&customer(1)).await.cache_status.contains("stored").then_some(())
    })
    .await;
    deployment.servers[0].order(&["FLUSHALL"]).await;
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.stop().await;
}

/// The sentinels agreed on another master, and the old one does not know. All connections are broken but one, in turn: once
/// the others lead to the new master, that one is of no use.
#[tokio::test(flavor = "multi_thread")]
async fn connections_leave_a_cut_off_master_together() {
    let mut connections = 1;
    for left in 0.. {
        if left >= connections {
            return;
        }
        let deployment = Deployment::start(Setup::Sentinel).await;
        let edge = Edge::start_with(&on(&deployment.settings)).await;
        edge.look_up(&customer(1)).await;
        assert!(edge.look_up(&customer(1)).await.is_hit());
        let old = &deployment.servers[0];
        let clients = old.unnamed_clients().await;
        connections = clients.len();
        assert!(connections > 2);

        deployment.promote_unnoticed().await;
        for (_, id) in clients.iter().enumerate().filter(|(place, _)| *place != left) {
            old.order(&["CLIENT", "KILL", "ID", id]).await;
        }
        eventually("a hit", || async { edge.look_up(&customer(1)).await.is_hit().then_some(()) }).await;
        edge.change(&customer(1), json!({ "firstName": "Moved" })).await;
        edge.applied("updated", 1.0).await;
        let answer = edge.look_up(&customer(1)).await;
        assert_eq!(answer.json()["firstName"], "Moved", "connection {left} was left: {}", answer.cache_status);
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_asked_with_their_own_password() {
    let deployment = Deployment::start(Setup::Sentinel).await;
    deployment.sentinel_server().order(&["ACL", "SETUSER", "default", "resetpass", ">planted"]).await;
    let login = format!("{}sentinel_password = \"planted\"\n", deployment.settings);
    let edge = Edge::start_with(&on(&login)).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.stop().await;
}

/// The name is `localhost`; for new connections it leads to another server from some time on.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_is_followed_and_no_lookup_fails() {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let mut before = Proxy::to(old.port).await;
    let port = before.address.port();
    let settings = format!("url = \"redis://localhost:{port}\"\nmax_connection_age = \"1s\"\n");
    let edge = Edge::start_with(&on(&settings)).await;
    edge.look_up(&customer(1)).await;
    assert!(edge.look_up(&customer(1)).await.is_hit());

    before.retire().await;
    let _after = Proxy::at(("127.0.0.1", port), new.port).await;
    // The new server has nothing, so the first lookup there is a miss that is stored.
    eventually("a miss that is stored", || async {
        let answer = edge.look_up(&customer(1)).await;
        let cache_status = &answer.cache_status;
        assert!(answer.status == 200 && !cache_status.contains("bypass"), "{} {cache_status}", answer.status);
        cache_status.contains("stored").then_some(())
    })
    .await;
    assert!(edge.look_up(&customer(1)).await.is_hit());
    // The connection for events reaches its age on its own.
    eventually("an event takes effect at the new server", || async {
        edge.change(&customer(1), json!({ "firstName": "Moved" })).await;
        (edge.look_up(&customer(1)).await.json()["firstName"] == "Moved").then_some(())
    })
    .await;
    edge.stop().await;
}

/// A name moves, and one connection after the other is broken in turn: those that were not broken follow, so that events
/// take effect where lookups read.
async fn connections_lead_to_one_server(old: u16, new: u16, settings: impl Fn(u16) -> String) {
    let mut connections = 1;
    for broken in 0.. {
        if broken >= connections {
            return;
        }
        let proxy = Proxy::to(old).await;
        let edge = Edge::start_with(&settings(proxy.address.port())).await;
        let customer = customer(u32::try_from(broken).unwrap() + 1);
        edge.look_up(&customer).await;
        assert!(edge.look_up(&customer).await.is_hit());
        connections = proxy.accepted();
        assert!(connections > 1);

        proxy.move_to(new);
        proxy.close(broken);
        for name in [format!("Moved{broken}"), format!("Again{broken}")] {
            eventually("a change is seen", || async {
                edge.change(&customer, json!({ "firstName": name })).await;
                (edge.look_up(&customer).await.json()["firstName"] == name.as_str()).then_some(())
            })
            .await;
        }
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_and_events_follow_a_redis_name_that_moves_together() {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    connections_lead_to_one_server(old.port, new.port, |port| on(&format!("url = \"redis://localhost:{port}\"\n")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_and_events_follow_a_memcached_name_that_moves_together() {
    let (old, new) = (MemcachedServer::start(&[]).await, MemcachedServer::start(&[]).await);
    let settings = |port| {
        let store = format!("[store]\nkind = \"memcached\"\n[store.memcached]\nservers = [\"localhost:{port}\"]\n");
        format!("[sandbox]\nlatency = \"0ms\"\n{store}")
    };
    connections_lead_to_one_server(old.port, new.port, settings).await;
}

/// The name is `localhost`; first it leads to one broker, over new connections all the while, without a failed event, and then to
/// another.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_broker_are_replaced_and_its_name_is_followed() {
    let (old, new) = tokio::join!(RabbitServer::start(""), RabbitServer::start(""));
    let mut before = Proxy::to(old.port).await;
    let port = before.address.port();
    let queue = on_rabbit(&format!("amqp://guest:guest@localhost:{port}/%2f"));
    // A broker that gets no processor time is not the subject.
    let queue = format!("{queue}max_connection_age = \"1s\"\npublish_timeout = \"20s\"\n");
    let settings = format!("[sandbox]\nlatency = \"0ms\"\n{queue}");
    let edge = Edge::start_with(&settings).await;
    let post = async |n: u32| {
        let answer = edge.post_event(&flat(&customer(n))).await;
        let status = answer.status();
        assert_eq!(status, 202, "{}", answer.text().await.unwrap());
        assert_eq!(edge.ready().await["degraded"], json!([]));
    };
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    let mut posted = 0.0;
    // A connection to the broker is two at the proxy, and each of ours is replaced several times.
    let replaced = async {
        while before.accepted() < 20 {
            join_all((1..17).map(&post)).await;
            posted += 16.0;
        }
    };
    timeout(PATIENCE, replaced).await.expect("connections are replaced");
    edge.applied("updated", posted).await;
    assert_eq!(edge.metric(applied).await, posted);
    for outcome in ["retried", "dead_lettered"] {
        assert_eq!(edge.metric(&applied.replace("applied", outcome)).await, 0.0, "{outcome}");
    }

    before.retire().await;
    let after = Proxy::at(("127.0.0.1", port), new.port).await;
    eventually("no connection leads to the old broker", || async {
        // The new broker makes its queues now, and may not confirm at once; a sender posts again.
        edge.post_event(&flat(&customer(1))).await;
        let connections = old.api("GET", "/connections", None).await?;
        // The broker updates its list with a delay; by then each connection was replaced several times.
        (connections == json!([]) && after.accepted() >= 20).then_some(())
    })
    .await;
    drop(old);
    let moved = edge.metric(applied).await;
    for n in 1..17 {
        post(n).await;
    }
    edge.applied("updated", moved + 16.0).await;
    edge.stop().await;
}

/// Announcements only save time: without the permission for their channels nothing else changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_channels_fills_and_evicts() {
    let server = RedisServer::start(&[]).await;
    server.order(&["ACL", "SETUSER", "default", "resetchannels"]).await;
    let edge = Edge::start_with(&on(&format!("url = \"{}\"\n", server.url()))).await;
    assert!(edge.look_up(&customer(1)).await.cache_status.contains("stored"));
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.change(&customer(1), json!({ "firstName": "Quiet" })).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.json()["firstName"], "Quiet");
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.is_ready().await;
    edge.stop().await;
}
