//! Overload: a slow store and a crowd delay lookups, and cost no call to Genesys.

use futures_util::future::join_all;

use crate::support::customer;
use crate::support::edge::Edge;
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::redis::RedisServer;

/// The answers of this crowd take a throttled Redis several times `store.timeout`.
const CROWD: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_redis_delays_hits_and_sends_none_of_them_to_genesys() {
    let redis = RedisServer::start(&[]).await;
    let proxy = Proxy::to(redis.port).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"redis://{}\"\n", proxy.address);
    let edge = Edge::start_with(&format!("[lookup]\ndeadline = \"20s\"\n{store}")).await;
    let one = customer(1);
    assert_eq!(edge.look_up(&one).await.status, 200);

    proxy.set(Link::Throttled);
    let answers = join_all((0..CROWD).map(|_| edge.look_up(&one))).await;
    for answer in answers {
        assert!(answer.status == 200 && answer.is_hit(), "{} {}", answer.status, answer.cache_status);
    }
    assert_eq!(edge.calls().await.0, 1);
    edge.stop().await;
}
