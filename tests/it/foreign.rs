//! Consumers of the same work queues that use another store.

use crate::support::edge::{Edge, on_rabbit};
use crate::support::eventually;
use crate::support::servers::memcached::{MemcachedServer, on_memcached};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

/// A queue of its own, and processes that use it with these stores.
async fn services<const N: usize>(stores: [&str; N]) -> [Edge; N] {
    let server = RabbitServer::shared().await;
    let queue = on_rabbit(&server.url(&server.vhost().await));
    let start = |store: &str| {
        let settings = format!("[sandbox]\nlatency = \"0ms\"\n{store}{queue}");
        async move { Edge::start_with(&settings).await }
    };
    futures_util::future::join_all(stores.map(start)).await.try_into().ok().unwrap()
}

async fn foreign(edge: &Edge) -> f64 {
    edge.metric("profile_edge_consumer_foreign").await
}

async fn reports(edge: &Edge, count: f64) {
    eventually("a count of foreign consumers", || async { (foreign(edge).await == count).then_some(()) }).await;
}

/// Two processes share a store, and a third one has another.
async fn another_store_is_reported(ours: &str, theirs: &str, empty: impl AsyncFnOnce()) {
    let [one, two, third] = services([ours, ours, theirs]).await;
    for (edge, count) in [(&one, 1.0), (&two, 1.0), (&third, 2.0)] {
        reports(edge, count).await;
        edge.is_without_for("queue", "use another store").await;
        assert_eq!(edge.ready().await["status"], "degraded");
    }
    // An empty store is the same store. Until the third is forgotten, the others compare theirs several times.
    empty().await;
    third.stop().await;
    eventually("nobody is foreign", || async {
        let counts = [foreign(&one).await, foreign(&two).await];
        assert!(counts.iter().all(|count| *count <= 1.0), "{counts:?}");
        (counts == [0.0, 0.0]).then_some(())
    })
    .await;
    for edge in [one, two] {
        edge.is_ready().await;
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_with_different_redis_on_one_set_of_queues_are_reported() {
    let server = RedisServer::start(&[]).await;
    let database = |number: u32| format!("[store]\nkind = \"redis\"\nredis.url = \"{}/{number}\"\n", server.url());
    let empty = async || {
        let mut connection = server.connect().await.unwrap();
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    };
    another_store_is_reported(&database(0), &database(1), empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_with_different_memcached_on_one_set_of_queues_are_reported() {
    let (server, other) = (MemcachedServer::start(&[]).await, MemcachedServer::start(&[]).await);
    let empty = async || assert_eq!(server.command("flush_all").await.trim(), "OK");
    another_store_is_reported(&on_memcached(&[&server]), &on_memcached(&[&other]), empty).await;
}
