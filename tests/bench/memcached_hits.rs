//! Hits through Memcached, against hits through Redis of an otherwise equal service.

use std::sync::Arc;
use std::time::Duration;

use crate::figures::report_figure;
use crate::load::{self, Connection, Round, for_a_while};
use crate::service::{CUSTOMERS, PLAIN, Service, look_up};
use crate::support::servers::memcached::{MemcachedServer, on_memcached};
use crate::support::servers::redis::RedisServer;

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
/// Even, so that each side is first equally often, and the sides end in their order.
const ROUNDS: usize = 8;

pub(crate) async fn compare() {
    let (redis, memcached) = (RedisServer::start(&[]).await, MemcachedServer::start(&[]).await);
    let on_redis = Service::start(&redis.url(), None).await;
    let on_memcached = Service::start_on(&on_memcached(&[&memcached]), None, &PLAIN).await;
    let requests: Vec<Vec<u8>> = (1..=CUSTOMERS).map(look_up).collect();
    for service in [&on_redis, &on_memcached] {
        let mut connection = Connection::open(service.public).await;
        for request in &requests {
            connection.exchange(request).await;
        }
    }
    let requests = Arc::new(requests);
    let mut sides = [(on_redis, Vec::new()), (on_memcached, Vec::new())];
    for _ in 0..ROUNDS {
        for (service, rounds) in &mut sides {
            rounds.push(for_a_while(service.public, CONNECTIONS, &requests, ROUND).await);
        }
        sides.reverse();
    }
    let per_second = |rounds: &[Round]| load::median(rounds.iter().map(|round| round.per_second));
    let [(on_redis, redis_rounds), (on_memcached, memcached_rounds)] = sides;
    let (redis, memcached) = (per_second(&redis_rounds), per_second(&memcached_rounds));
    println!("hits through Memcached: {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?}");
    println!("  Redis {redis:>8.0} /s   Memcached {memcached:>8.0} /s");
    report_figure("ratio of throughput", &format!("{:.2}", memcached / redis), ">= 0.95", memcached / redis >= 0.95);
    println!();
    on_redis.stop().await;
    on_memcached.stop().await;
}
