//! The outbox: what it costs while the broker answers, and how fast webhooks are answered while it does not.
//!
//! Two services differ in the outbox only; their rounds alternate, and so does who is first, since the broker is still busy
//! with the queue of one while the other runs. Then the link of one to the broker breaks.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::figures::{Scrape, report_figure};
use crate::load::{self, Pace, Round, each_once};
use crate::pipeline::{APPLIED, Requests, run};
use crate::service::{Extras, PLAIN, Service};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

const EVENTS: usize = 4_000;
const ROUNDS: usize = 16;

/// Webhooks per second while the broker is down, the connections that send them, and how long.
const RATE: usize = 500;
const CONNECTIONS: usize = 50;
const OUTAGE: Duration = Duration::from_secs(60);

pub(crate) async fn compare() {
    let redis = RedisServer::start(&[]).await;
    let rabbit = RabbitServer::start("").await;
    let (proxy, other) = (Proxy::to(rabbit.port).await, Proxy::to(rabbit.port).await);
    let link = async |proxy: &Proxy| format!("amqp://guest:guest@{}/{}", proxy.address, rabbit.vhost().await);
    let without = Service::start(&redis.url(), Some(&link(&other).await)).await;
    let tables = format!("{}[queue.outbox]\nenabled = true\n", PLAIN.tables);
    let extras = Extras { tables: &tables, ..PLAIN };
    let with = Service::start_with(&redis.url(), Some(&link(&proxy).await), &extras).await;
    let mut requests = Requests::default();
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut sides = [(&without, &mut off), (&with, &mut on)];
        sides.rotate_left(round % 2);
        for (service, times) in sides {
            let (_, applied) = run(service, requests.write(EVENTS), Pace::Closed).await;
            // The first round is the warm-up.
            if round > 0 {
                times.push(EVENTS as f64 / applied.as_secs_f64());
            }
        }
    }
    let (off, on) = (load::median(off), load::median(on));
    println!("outbox: {ROUNDS} rounds of {EVENTS} events through a proxy, with {on:.0} /s, without {off:.0} /s");
    report_figure("ratio of throughput", &format!("{:.2}", on / off), ">= 0.98", on / off >= 0.98);

    proxy.set(Link::Broken);
    // The first event finds the broker down.
    each_once(with.public, 1, requests.write(10), Pace::Closed).await;
    let down = at_rate(&with, &mut requests).await;
    let [_, p50, p99] = load::latencies(&[down]);
    let p99_is_met = p99 < Duration::from_millis(20);
    println!("  broker down for {OUTAGE:?} at {RATE} webhooks/s: 202 after p50 {p50:.1?}");
    report_figure("202 while the broker is down, p99", &format!("{p99:.1?}"), "< 20 ms", p99_is_met);
    let waiting = Scrape::of(with.admin).await.sum("profile_edge_outbox_events ");
    let wanted = Scrape::of(with.admin).await.sum(APPLIED) + waiting;
    proxy.set(Link::Whole);
    let back = Instant::now();
    while Scrape::of(with.admin).await.sum(APPLIED) < wanted {
        assert!(back.elapsed() < Duration::from_secs(120), "events are not applied");
        sleep(Duration::from_millis(20)).await;
    }
    println!("  {waiting} events were applied within {:.1?} of its return\n", back.elapsed());
    without.stop().await;
    with.stop().await;
}

async fn at_rate(service: &Service, requests: &mut Requests) -> Round {
    let events = requests.write(RATE * usize::try_from(OUTAGE.as_secs()).unwrap_or(1));
    let every = Duration::from_secs_f64(CONNECTIONS as f64 / RATE as f64);
    each_once(service.public, CONNECTIONS, events, Pace::Open(every)).await
}
