//! The cost of the protocol: Redis commands for a hit, a miss and an event, and the time from a fill to the answer of a
//! lookup that waits in another process.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep};

use crate::figures::{Scrape, report_figure};
use crate::load::{Connection, Pace, each_once, median};
use crate::pipeline::Requests;
use crate::service::{Service, look_up};
use crate::support::eventually;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

/// The number of repetitions.
const TIMES: u32 = 200;

/// The message that ends a recording.
const MARKER: &str = "that was it";

/// The latency of Genesys for the customers whose fills other lookups wait for.
const LATENCY: Duration = Duration::from_millis(50);

pub(crate) async fn measure() {
    let (redis, rabbit) = (RedisServer::start(&[]).await, RabbitServer::start("").await);
    let service = Service::start(&redis.url(), Some(&rabbit.url("%2f"))).await;
    let other = Service::start(&redis.url(), None).await;
    let mut connection = Connection::open(service.public).await;
    // Loads the scripts into Redis.
    connection.exchange(&look_up(1_000)).await;

    let count = async |what: &str, target: f64, requests: Vec<Vec<u8>>, is_done: &dyn Fn(&Scrape) -> bool| {
        let sent = commands_during(&redis, async {
            each_once(service.public, 1, requests, Pace::Closed).await;
            eventually(what, || async { is_done(&Scrape::of(service.admin).await).then_some(()) }).await;
        });
        let each = sent.await / f64::from(TIMES);
        report_figure(
            &format!("Redis commands for {what}"),
            &format!("{each:.2}"),
            &format!("{target}"),
            each < target + 0.1,
        );
    };
    println!("cost of the protocol: {TIMES} of each, one after the other");
    count("a miss", 3.0, (1..=TIMES).map(look_up).collect(), &|_| true).await;
    count("a hit", 1.0, (1..=TIMES).map(look_up).collect(), &|_| true).await;
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    let all = |scrape: &Scrape| scrape.sum(applied) >= f64::from(TIMES);
    count("an event", 1.0, Requests::default().write(TIMES as usize), &all).await;

    service.behave(LATENCY).await;
    let mut waiting = Connection::open(other.public).await;
    let mut later = Vec::new();
    for n in TIMES + 1..=2 * TIMES {
        let request = look_up(n);
        let leads = async {
            connection.exchange(&request).await;
            Instant::now()
        };
        let follows = async {
            // By then the leader has its lease, and its fetch is in progress.
            sleep(LATENCY / 3).await;
            waiting.exchange(&request).await;
            Instant::now()
        };
        let (led, followed) = tokio::join!(leads, follows);
        later.push(followed.saturating_duration_since(led).as_secs_f64());
    }
    let learned = Duration::from_secs_f64(median(later));
    report_figure(
        "a fill is known elsewhere, median",
        &format!("{learned:.2?}"),
        "< 10 ms",
        learned < Duration::from_millis(10),
    );
    println!();
    other.stop().await;
    service.stop().await;
}

/// Returns the number of commands that clients send to Redis while `done` runs, without commands about the server itself.
/// MONITOR marks the calls of scripts as "lua": they are not round trips and do not count.
async fn commands_during(redis: &RedisServer, done: impl Future<Output = ()>) -> f64 {
    let client = redis::Client::open(redis.url()).expect("an address");
    let mut lines = client.get_async_monitor().await.expect("redis answers").into_on_message::<String>();
    done.await;
    let mut marker = redis.connect().await.expect("redis answers");
    redis::cmd("ECHO").arg(MARKER).exec_async(&mut marker).await.expect("redis answers");
    let mut count = 0.0;
    while let Some(line) = lines.next().await {
        if line.contains(MARKER) {
            break;
        }
        let name = line.split('"').nth(1).unwrap_or_default().to_ascii_uppercase();
        if !line.contains(" lua] ") && !matches!(name.as_str(), "PING" | "CLIENT" | "HELLO" | "INFO") {
            count += 1.0;
        }
    }
    count
}
