//! Overload: a slow store and a crowd delay lookups or get them refused early, and cost no call to Genesys.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, interval};

use crate::support::customer;
use crate::support::edge::{Edge, LookupAnswer, with_sandbox_of};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::redis::RedisServer;

/// The answers of this crowd take a throttled Redis several times `store.timeout`.
const CROWD: usize = 300;

/// An application whose Redis can be throttled.
struct Throttled {
    edge: Edge,
    proxy: Proxy,
    /// Kept: it stops when it is dropped.
    _redis: RedisServer,
}

async fn start(deadline: &str) -> Throttled {
    let redis = RedisServer::start(&[]).await;
    let proxy = Proxy::to(redis.port).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"redis://{}\"\n", proxy.address);
    let edge = Edge::start_with(&format!("[lookup]\ndeadline = \"{deadline}\"\n{store}")).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    Throttled { edge, proxy, _redis: redis }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_redis_delays_hits_and_sends_none_of_them_to_genesys() {
    let it = start("20s").await;
    it.proxy.set(Link::Throttled);
    let one = customer(1);
    let answers = join_all((0..CROWD).map(|_| it.edge.look_up(&one))).await;
    for answer in answers {
        assert!(answer.status == 200 && answer.is_hit(), "{} {}", answer.status, answer.cache_status);
    }
    assert_eq!(it.edge.calls().await.0, 1);
    it.edge.stop().await;
}

/// Hits that end within `span`, asked for by clients that wait for each answer.
async fn capacity(edge: &Edge, span: Duration) -> f64 {
    let end = Instant::now() + span;
    let clients = (0..8).map(|_| async {
        let mut hits = 0_u32;
        while Instant::now() < end {
            hits += u32::from(edge.look_up(&customer(1)).await.is_hit());
        }
        hits
    });
    f64::from(join_all(clients).await.into_iter().sum::<u32>()) / span.as_secs_f64()
}

/// The answers to hits that are asked for at this rate, whether or not the earlier ones have been answered.
async fn offer(edge: &Edge, per_second: f64, span: Duration) -> Vec<LookupAnswer> {
    let (one, end) = (customer(1), Instant::now() + span);
    let mut due = interval(Duration::from_secs_f64(1.0 / per_second));
    let (mut asked, mut answers) = (FuturesUnordered::new(), Vec::new());
    loop {
        tokio::select! {
            _ = due.tick(), if Instant::now() < end => asked.push(edge.look_up(&one)),
            Some(answer) = asked.next() => answers.push(answer),
            else => return answers,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_times_the_capacity_leaves_goodput_and_refuses_the_rest_early() {
    let it = start("2s").await;
    it.proxy.set(Link::Throttled);
    let capacity = capacity(&it.edge, Duration::from_secs(2)).await;

    let span = Duration::from_secs(6);
    let answers = offer(&it.edge, 5.0 * capacity, span).await;
    let hits = answers.iter().filter(|answer| answer.is_hit()).count();
    let late = answers.iter().filter(|answer| answer.text.contains("\"deadline\"")).count();
    let shed = answers.iter().filter(|answer| answer.text.contains("\"shed\"")).count();
    let goodput = hits as f64 / span.as_secs_f64() / capacity;
    println!("capacity {capacity:.0}/s; at 5x: goodput {goodput:.2}, shed {shed}, late {late} of {}", answers.len());
    assert!(goodput >= 0.8, "goodput {goodput:.2}");
    assert_eq!(hits + shed, answers.len(), "{late} were answered after the deadline");
    assert_eq!(it.edge.calls().await.0, 1);

    // Nothing of the overload remains.
    it.proxy.set(Link::Whole);
    assert!(it.edge.look_up(&customer(1)).await.is_hit());
    it.edge.stop().await;
}

/// The budget is 60 requests a minute, and half of it may go past the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_redis_leaves_half_of_the_budget_of_genesys() {
    let redis = RedisServer::start(&[]).await;
    let proxy = Proxy::to(redis.port).await;
    let sandbox = Edge::start().await;
    let tenant = with_sandbox_of(sandbox.sandbox_address());
    let tenant = tenant.replace("client_id", "requests_per_minute = 60, client_id");
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"redis://{}\"\n", proxy.address);
    let edge = Edge::start_with(&format!("{store}{tenant}")).await;
    proxy.set(Link::Broken);
    edge.is_without("store").await;
    let mut refused = 0;
    for n in 1..=60 {
        let answer = edge.look_up(&customer(n)).await;
        if answer.status == 503 {
            assert!(
                answer.headers.contains_key("retry-after") && answer.text.contains("budget_spent"),
                "{}",
                answer.text
            );
            refused += 1;
        }
    }
    // One is added every two seconds.
    let (calls, _) = sandbox.calls().await;
    assert!((30..=45).contains(&calls) && refused >= 15, "{calls} calls, {refused} refused");
    assert_eq!(edge.metric("profile_edge_lookup_bypass_refused_total").await, f64::from(refused));

    proxy.set(Link::Whole);
    edge.is_ready().await;
    for n in 101..=110 {
        let answer = edge.look_up(&customer(n)).await;
        assert!(answer.status == 200 && answer.cache_status.contains("stored"), "{}", answer.text);
    }
    edge.stop().await;
    sandbox.stop().await;
}
