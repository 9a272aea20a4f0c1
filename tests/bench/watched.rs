//! Twenty thousand customers that are fetched at once by a process that watches them over WebSockets: how long the
//! subscriptions take, what they cost in memory, and whether lookups notice.
//!
//! A channel is for a thousand customers and a process has nineteen; above that, the twentieth part that was not used for longest
//! goes. Two services do the same
//! work: one is notified, one has a webhook. Hits of other customers are measured while both are filled.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::batches::batch;
use crate::figures::{Scrape, report_figure, resident};
use crate::load::{self, Connection, Pace, Round, each_once, for_a_while};
use crate::service::{Extras, PLAIN, Service, look_up};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

const FILLED: u32 = 20_000;

/// Nineteen channels are full, but for the part that goes at once.
const WATCHED: f64 = 18_050.0;

/// The customers whose hits are measured.
const HOT: u32 = 200;

/// The customers of one batch.
const BATCH: usize = 100;

const CONNECTIONS: usize = 8;
const CALM: Duration = Duration::from_secs(3);

/// The longest wait for the subscriptions.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a service showed.
struct Filled {
    calm: Duration,
    burst: Duration,
    took: Duration,
}

pub(crate) async fn measure() {
    let (redis, rabbit) = (RedisServer::start(&[]).await, RabbitServer::start("").await);
    let (other_redis, broker) = (RedisServer::start(&[]).await, rabbit.url(&rabbit.vhost().await));
    let source = Extras { sources: "[[tenant.source]]\nkind = \"notifications\"\n", customers: HOT + FILLED, ..PLAIN };
    let notified = Service::start_with(&redis.url(), Some(&broker), &source).await;
    let other_broker = rabbit.url(&rabbit.vhost().await);
    let webhook = Extras { customers: HOT + FILLED, ..PLAIN };
    let posted = Service::start_with(&other_redis.url(), Some(&other_broker), &webhook).await;

    let began = Instant::now();
    let with = fill(&notified).await;
    let (subscribed, counts) = loop {
        let watched = Scrape::of(notified.admin).await.sum("profile_edge_source_watched");
        let counts = load::fetch(notified.genesys, "/sandbox/channels").await;
        let counts: Value = serde_json::from_slice(&counts).expect("counts are JSON");
        let is_settled = watched >= WATCHED && counts["topics"].as_f64() == Some(watched);
        if is_settled || began.elapsed() > PATIENCE {
            break (watched, counts);
        }
        sleep(Duration::from_millis(100)).await;
    };
    let settled = began.elapsed();
    let memory = resident(notified.pid());
    let without = fill(&posted).await;
    println!(
        "watched: {FILLED} customers fetched in batches of {BATCH}, {CONNECTIONS} connections of hits beside them"
    );
    for (name, Filled { calm, burst, took }) in [("notified", &with), ("webhook", &without)] {
        println!("  {name:<9} p99 of hits: calm {calm:.1?}, while filling {burst:.1?}; filled in {took:.1?}");
    }
    println!("  {counts}, all subscribed {:.1?} after the last fill", settled.saturating_sub(CALM + with.took));
    report_figure("customers watched", &format!("{subscribed:.0}"), ">= 18050", subscribed >= WATCHED);
    report_figure("resident memory", &format!("{memory:.0} MiB"), "<= 95 MiB", memory <= 95.0);
    let ratio = with.burst.as_secs_f64() / without.burst.as_secs_f64();
    report_figure("p99 of hits while filling, to that without", &format!("{ratio:.2}"), "<= 1.25", ratio <= 1.25);
    println!();
    notified.stop().await;
    posted.stop().await;
}

/// Fetches all customers at once, and measures hits of others before and meanwhile.
async fn fill(service: &Service) -> Filled {
    let hits: Arc<Vec<_>> = Arc::new((1..=HOT).map(look_up).collect());
    let mut connection = Connection::open(service.public).await;
    for request in hits.iter() {
        connection.exchange(request).await;
    }
    let calm = for_a_while(service.public, CONNECTIONS, &hits, CALM).await;
    let batches: Vec<_> =
        (HOT + 1..=HOT + FILLED).step_by(BATCH).map(|first| batch(first..first + BATCH as u32)).collect();
    let (filling, requests) = (Instant::now(), Arc::clone(&hits));
    let filled = tokio::spawn(each_once(service.public, 4, batches, Pace::Closed));
    let mut rounds: Vec<Round> = Vec::new();
    while !filled.is_finished() {
        rounds.push(for_a_while(service.public, CONNECTIONS, &requests, Duration::from_millis(250)).await);
    }
    filled.await.expect("every batch is answered");
    let p99 = |rounds: &[Round]| load::latencies(rounds)[2];
    Filled { calm: p99(&[calm]), burst: p99(&rounds), took: filling.elapsed() }
}
