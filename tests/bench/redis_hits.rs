//! Hits through Redis, against a bare axum handler that does one `GET` with the same crate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::bare::BareProgram;
use crate::figures::{Scrape, cpu, peak_memory, quantile, report_figure};
use crate::load::{self, Round, for_a_while, get};
use crate::service::{CUSTOMERS, Service, look_up};
use crate::support::customer;
use crate::support::servers::redis::RedisServer;

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 7;

/// The rounds of one side, and the CPU time of its process in them.
#[derive(Default)]
struct HitRounds {
    rounds: Vec<Round>,
    cpu: Duration,
    load_cpu: Duration,
}

impl HitRounds {
    async fn round(&mut self, pid: u32, addr: SocketAddr, requests: &Arc<Vec<Vec<u8>>>) {
        let own = std::process::id();
        let before = (cpu(pid), cpu(own));
        self.rounds.push(for_a_while(addr, CONNECTIONS, requests, ROUND).await);
        self.cpu += cpu(pid) - before.0;
        self.load_cpu += cpu(own) - before.1;
    }

    fn per_second(&self) -> f64 {
        load::median(self.rounds.iter().map(|round| round.per_second))
    }

    fn print(&self, what: &str) {
        let [mean, p50, p99] = load::latencies(&self.rounds);
        let hits: usize = self.rounds.iter().map(|round| round.latencies.len()).sum();
        let each = |cpu: Duration| cpu.div_f64(hits as f64).as_secs_f64() * 1e6;
        println!(
            "  {what:<22} {:>8.0} /s   mean {mean:>8.2?}   p50 {p50:>8.2?}   p99 {p99:>8.2?}   cpu of each {:>5.1} µs   \
             (load: {:.1} µs)",
            self.per_second(),
            each(self.cpu),
            each(self.load_cpu)
        );
    }
}

pub(crate) async fn compare() {
    let server = RedisServer::start(&[]).await;
    let service = Service::start(&server.url(), None).await;
    let (theirs, ours, length) = warm(&server, &service).await;
    let mut bare = BareProgram::start("bare-hits", &[&server.url()]);
    let addr = bare.answer().await.parse().expect("it prints its address");

    let before = Scrape::of(service.admin).await;
    let (mut bare_side, mut our_side) = (HitRounds::default(), HitRounds::default());
    for _ in 0..ROUNDS {
        bare_side.round(bare.pid(), addr, &theirs).await;
        our_side.round(service.pid(), service.public, &ours).await;
    }
    let after = Scrape::of(service.admin).await;

    println!(
        "hits through Redis: {CUSTOMERS} profiles of {length} bytes, {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?}"
    );
    bare_side.print("bare axum, one GET");
    our_side.print("profile-edge");
    let [mean, ..] = load::latencies(&our_side.rounds);
    let ratio = our_side.per_second() / bare_side.per_second();
    let store = quantile("profile_edge_store_operation_duration_seconds", "op=\"get\"", &before, &after, 0.5);
    let memory = peak_memory(service.pid());
    report_figure("ratio of throughput", &format!("{ratio:.2}"), ">= 0.75", ratio >= 0.75);
    report_figure(
        "hits a second",
        &format!("{:.0}", our_side.per_second()),
        ">= 10000",
        our_side.per_second() >= 10_000.0,
    );
    report_figure("mean", &format!("{mean:.2?}"), "< 15 ms", mean < Duration::from_millis(15));
    report_figure("store GET, p50", &format!("{store:.2?}"), "< 5 ms", store < Duration::from_millis(5));
    report_figure("peak of resident memory", &format!("{memory:.1} MiB"), "< 64 MiB", memory < 64.0);
    println!();
    service.stop().await;
}

/// Stores every profile through the service and directly; returns the requests of both sides, and the length of a
/// profile.
async fn warm(server: &RedisServer, service: &Service) -> (Arc<Vec<Vec<u8>>>, Arc<Vec<Vec<u8>>>, usize) {
    let mut redis = server.connect().await.expect("redis answers");
    let mut connection = load::Connection::open(service.public).await;
    let (mut theirs, mut ours, mut length) = (Vec::new(), Vec::new(), 0);
    for n in 1..=CUSTOMERS {
        let request = look_up(n);
        let body = connection.exchange(&request).await;
        length = body.len();
        let stored = redis::cmd("SET").arg(customer(n)).arg(body).exec_async(&mut redis).await;
        stored.expect("redis stores it");
        theirs.push(get(&format!("/?{}", customer(n))));
        ours.push(request);
    }
    (Arc::new(theirs), Arc::new(ours), length)
}
