//! Events from the webhook to their effect, against a bare loop that publishes with confirms and consumes, on the same
//! topology.
//!
//! The service reads HTTP, verifies an HMAC over the body, publishes, consumes, runs a script in Redis and acknowledges.
//! The bare loop publishes messages of the same length, with as many in flight as the load has connections, consumes and
//! acknowledges. The CPU time of the load is printed separately, because it uses the same cores as the service.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::time::{Instant, sleep};

use crate::bare::BareProgram;
use crate::figures::{Scrape, cpu, peak_memory, quantile, report_figure};
use crate::load::{self, Pace, Round, each_once};
use crate::service::{CUSTOMERS, SECRET, Service};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;
use crate::support::{customer, eventually};

const CONNECTIONS: usize = 256;
const EVENTS: usize = 10_000;
const ROUNDS: usize = 5;

/// The duration of the load at half the rate.
const HALF: Duration = Duration::from_secs(8);

/// The length of a message of the service on the broker, in bytes.
const MESSAGE: usize = 264;

pub(crate) const APPLIED: &str = "profile_edge_consumer_events_total";

/// The rounds of one side: events per second, and CPU time per event.
#[derive(Default)]
struct EventRounds {
    per_second: Vec<f64>,
    cpu: Vec<f64>,
}

impl EventRounds {
    fn add(&mut self, took: Duration, cpu: Duration) {
        self.per_second.push(EVENTS as f64 / took.as_secs_f64());
        self.cpu.push(cpu.as_secs_f64() * 1e6 / EVENTS as f64);
    }

    fn median(&self) -> f64 {
        load::median(self.per_second.iter().copied())
    }

    fn print(&self, what: &str) {
        let cpu = load::median(self.cpu.iter().copied());
        println!("  {what:<28} {:>8.0} /s   cpu of each {cpu:>6.1} µs", self.median());
    }
}

pub(crate) async fn compare() {
    let redis = RedisServer::start(&[]).await;
    let rabbit = RabbitServer::start("").await;
    let bare_url = rabbit.url(&rabbit.vhost().await);
    // Declares the same topology there, and stops.
    drop(Service::start(&redis.url(), Some(&bare_url)).await);
    let service = Service::start(&redis.url(), Some(&rabbit.url(&rabbit.vhost().await))).await;
    let mut bare = BareProgram::start("bare-queue", &[&bare_url]);
    let broker = broker_pid(&rabbit).await;

    let (mut theirs, mut ours, mut load_cpu, mut broker_cpu) =
        (EventRounds::default(), EventRounds::default(), vec![], vec![]);
    let mut answers = Vec::new();
    let mut requests = Requests::default();
    for round in 0..=ROUNDS {
        let before = (cpu(bare.pid()), cpu(broker));
        let took = bare.ask(&format!("{EVENTS} {CONNECTIONS} {MESSAGE}")).await.parse().expect("seconds");
        let bare_cpu = cpu(bare.pid()) - before.0;
        let of_bare = cpu(broker) - before.1;
        let events = requests.write(EVENTS);
        let before = (cpu(service.pid()), cpu(std::process::id()), cpu(broker));
        let (answered, applied) = run(&service, events, Pace::Closed).await;
        // The first round is the warm-up.
        if round > 0 {
            theirs.add(Duration::from_secs_f64(took), bare_cpu);
            ours.add(applied, cpu(service.pid()) - before.0);
            load_cpu.push((cpu(std::process::id()) - before.1).as_secs_f64() * 1e6 / EVENTS as f64);
            broker_cpu.push((of_bare, cpu(broker) - before.2));
            answers.push(answered);
        }
    }

    println!(
        "ingest to applied on {}: {CONNECTIONS} connections, {ROUNDS} rounds of {EVENTS} events, each signed and new",
        rabbit.version().await
    );
    theirs.print("bare publish and consume");
    ours.print("profile-edge");
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / EVENTS as f64;
    println!(
        "  cpu of each, apart: load {:.1} µs, broker {:.1} µs (bare: {:.1} µs)",
        load::median(load_cpu.iter().copied()),
        load::median(broker_cpu.iter().map(|(_, ours)| each(*ours))),
        load::median(broker_cpu.iter().map(|(bare, _)| each(*bare))),
    );
    let [_, p50, p99] = load::latencies(&answers);
    println!("  202 after: p50 {p50:.1?}, p99 {p99:.1?}");
    let ratio = ours.median() / theirs.median();
    report_figure("ratio of throughput", &format!("{ratio:.2}"), ">= 0.45", ratio >= 0.45);
    at_half(&service, ours.median() / 2.0, &mut requests).await;
    let memory = peak_memory(service.pid());
    report_figure("peak of resident memory", &format!("{memory:.1} MiB"), "< 64 MiB", memory < 64.0);
    println!();
    service.stop().await;
}

/// Posts at a fixed rate, and prints the time from the post of an event to its effect. The metric starts when a request
/// was read, so it includes the time until the 202.
async fn at_half(service: &Service, rate: f64, requests: &mut Requests) {
    let events = requests.write((rate * HALF.as_secs_f64()) as usize);
    let count = events.len();
    let before = Scrape::of(service.admin).await;
    let every = Duration::from_secs_f64(CONNECTIONS as f64 / rate);
    let (answered, _) = run(service, events, Pace::Open(every)).await;
    let after = Scrape::of(service.admin).await;
    let lag = |share| quantile("profile_edge_invalidation_lag_seconds", "", &before, &after, share);
    let (p50, p99) = (lag(0.5), lag(0.99));
    let reached = answered.per_second;
    println!("  at half the rate, {count} events at {reached:.0} /s: posted to applied p50 {p50:.2?}");
    report_figure("posted to applied, p99", &format!("{p99:.2?}"), "< 50 ms", p99 < Duration::from_millis(50));
}

/// Posts events, waits until all are applied, and returns the measurements of the senders and the total time.
pub(crate) async fn run(service: &Service, events: Vec<Vec<u8>>, pace: Pace) -> (Round, Duration) {
    let wanted = Scrape::of(service.admin).await.sum(APPLIED) + events.len() as f64;
    let started = Instant::now();
    let round = each_once(service.public, CONNECTIONS, events, pace).await;
    while Scrape::of(service.admin).await.sum(APPLIED) < wanted {
        assert!(started.elapsed() < Duration::from_secs(120), "events are not applied");
        sleep(Duration::from_millis(5)).await;
    }
    (round, started.elapsed())
}

/// Builds requests, each with a new event.
#[derive(Default)]
pub(crate) struct Requests {
    written: usize,
}

impl Requests {
    pub(crate) fn write(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Vec<u8> {
        self.written += 1;
        let n = self.written;
        let body = format!(
            "{{\"tenantId\":\"10001\",\"customerId\":\"{}\",\"eventId\":\"bench-{n:012}\",\"eventType\":\"customer.updated\",\
             \"modifyDate\":\"2026-01-02T03:{:02}:{:02}.{:03}Z\"}}",
            customer(u32::try_from(n).unwrap_or(0) % CUSTOMERS + 1),
            n / 60_000 % 60,
            n / 1_000 % 60,
            n % 1_000
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is a key");
        mac.update(body.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        format!(
            "POST /webhook/customer-updated HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// Returns the process id of the broker, which its API reports some time after the start.
async fn broker_pid(rabbit: &RabbitServer) -> u32 {
    eventually("the broker reports its process id", || async {
        rabbit.api("GET", "/nodes", None).await?[0]["os_pid"].as_str()?.parse().ok()
    })
    .await
}
