//! Overload: hits at once, twice and five times the rate that a throttled Redis can answer.
//!
//! The rate does not depend on the answers (an open loop), as with callers who do not know of each other.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until};

use crate::figures::{Scrape, report_figure};
use crate::load::{Connection, for_a_while};
use crate::service::{Service, look_up};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::redis::RedisServer;

const SPAN: Duration = Duration::from_secs(6);

/// The customers that are asked for; all are in the cache.
const HOT: u32 = 50;

/// As long as any lookup takes, at most; longer than `lookup.deadline`.
const TURN: Duration = Duration::from_secs(2);

/// The answers at one rate.
struct Offered {
    asked: usize,
    hits: usize,
    late: usize,
    /// How long the refused ones took.
    shed: Vec<Duration>,
}

pub(crate) async fn measure() {
    let redis = RedisServer::start(&[]).await;
    let proxy = Proxy::to(redis.port).await;
    let service = Service::start(&format!("redis://{}", proxy.address), None).await;
    let requests: Vec<Vec<u8>> = (1..=HOT).map(look_up).collect();
    let mut connection = Connection::open(service.public).await;
    for request in &requests {
        connection.exchange(request).await;
    }
    proxy.set(Link::Throttled);
    let requests = std::sync::Arc::new(requests);
    let capacity = for_a_while(service.public, 8, &requests, SPAN).await.per_second;
    println!("overload: {HOT} customers, a Redis that answers {capacity:.0} lookups per second, {SPAN:?} each");

    let calls = async || Scrape::of(service.admin).await.sum("profile_edge_upstream_requests_total");
    let (mut best, mut last) = (0.0_f64, 0.0);
    for times in [1.0, 2.0, 5.0] {
        let before = calls().await;
        let mut offered = offer(&service, &requests, times * capacity).await;
        let (ended, mut served) = (Instant::now(), 0);
        // The load is over when as many lookups in a row are hits.
        while served < 20 {
            let (status, _) = connection.ask(&requests[0]).await;
            served = if status == 200 { served + 1 } else { 0 };
            sleep(Duration::from_millis(5)).await;
        }
        let recovery = ended.elapsed();
        let made = calls().await - before;
        offered.shed.sort_unstable();
        let refusal = offered.shed.get(offered.shed.len() / 2).copied().unwrap_or_default();
        last = offered.hits as f64 / SPAN.as_secs_f64() / capacity;
        best = best.max(last);
        println!(
            "  {times} x   asked {:>5}   goodput {last:.2}   shed {:>5} (p50 {refusal:.2?})   late {:>4}   calls {made}   \
             recovery {recovery:.2?}",
            offered.asked,
            offered.shed.len(),
            offered.late,
        );
        report_figure("late", &offered.late.to_string(), "0", offered.late == 0);
        report_figure("calls to Genesys", &made.to_string(), "0", made == 0.0);
        report_figure("recovery", &format!("{recovery:.2?}"), "< 2 s", recovery < Duration::from_secs(2));
    }
    let kept = last / best;
    report_figure("goodput at 5 x, of the highest", &format!("{kept:.2}"), ">= 0.8", kept >= 0.8);
    println!();
    service.stop().await;
}

/// Sends lookups at this rate, on as many connections as they may need.
async fn offer(service: &Service, requests: &[Vec<u8>], per_second: f64) -> Offered {
    let connections = (per_second * TURN.as_secs_f64()).ceil() as usize;
    let mut connections = join_all((0..connections).map(|_| Connection::open(service.public))).await;
    let (began, count) = (Instant::now(), connections.len());
    let workers = connections.iter_mut().enumerate().map(|(worker, connection)| async move {
        let mut offered = Offered { asked: 0, hits: 0, late: 0, shed: Vec::new() };
        let due = |turn: usize| Duration::from_secs_f64(turn as f64 / per_second);
        for turn in (worker..).step_by(count).take_while(|turn| due(*turn) < SPAN) {
            sleep_until(began + due(turn)).await;
            let sent = Instant::now();
            let (status, body) = connection.ask(&requests[turn % requests.len()]).await;
            offered.asked += 1;
            if status == 200 {
                offered.hits += 1;
            } else if body.windows(6).any(|text| text == b"\"shed\"") {
                offered.shed.push(sent.elapsed());
            } else {
                offered.late += 1;
            }
        }
        offered
    });
    let all = join_all(workers).await;
    Offered {
        asked: all.iter().map(|each| each.asked).sum(),
        hits: all.iter().map(|each| each.hits).sum(),
        late: all.iter().map(|each| each.late).sum(),
        shed: all.into_iter().flat_map(|each| each.shed).collect(),
    }
}
