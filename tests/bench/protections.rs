//! The cost of each data protection on a hit through Redis: each alone, and all together.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::figures::{cpu, report_figure};
use crate::load::{Connection, Round, for_a_while, for_a_while_over, get, latencies, median};
use crate::service::{CUSTOMERS, Extras, PLAIN, Service};
use crate::support::customer;
use crate::support::servers::redis::RedisServer;
use crate::support::tls::{certificates, connect, listener};

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 7;

/// 32 bytes in base64.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Some fields of a profile, one of them nested.
const FIELDS: &str = "[\"id\", \"firstName\", \"lastName\", \"workPhone.e164\"]";

/// A service with some protections, and its measurements.
struct ProtectedService<'a> {
    name: &'static str,
    service: Service,
    /// The directory with its certificates, if its listener uses TLS.
    certificates: Option<&'a Path>,
    rounds: Vec<Round>,
    cpu: Duration,
}

impl<'a> ProtectedService<'a> {
    async fn start(name: &'static str, redis: &str, extras: Extras<'_>, certificates: Option<&'a Path>) -> Self {
        let service = Service::start_with(redis, None, &extras).await;
        Self { name, service, certificates, rounds: Vec::new(), cpu: Duration::ZERO }
    }

    async fn round(&mut self, requests: &Arc<Vec<Vec<u8>>>, time: Duration) -> Round {
        let addr: SocketAddr = self.service.public;
        match self.certificates {
            None => for_a_while(addr, CONNECTIONS, requests, time).await,
            Some(directory) => {
                let open = async || Connection::over(connect(directory, addr, "http/1.1").await);
                for_a_while_over(join_all((0..CONNECTIONS).map(|_| open())).await, requests, time).await
            }
        }
    }

    fn per_second(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.per_second))
    }
}

pub(crate) async fn compare() {
    let server = RedisServer::start(&[]).await;
    let directory = tempfile::tempdir().expect("a directory can be created");
    certificates(directory.path());
    let file =
        |name: &str| format!("[audit]\nsink = \"file\"\npath = {:?}\nkey = \"{KEY}\"\n", directory.path().join(name));
    let none = PLAIN.tables;
    let keyed = format!("[keys]\nscheme = \"hmac-sha256\"\nsecret = \"{KEY}\"\n");
    let sealed = format!("[store.sealing]\nactive = \"k1\"\nkeys.k1 = \"{KEY}\"\n");
    let encrypted = listener("http", directory.path());
    let settings = [
        ("nothing", PLAIN.fields, none.to_owned()),
        ("keyed hash", PLAIN.fields, format!("{none}{keyed}")),
        ("sealing", PLAIN.fields, format!("{none}{sealed}")),
        ("field filter", FIELDS, none.to_owned()),
        ("audit", PLAIN.fields, file("alone.jsonl")),
        ("all four", FIELDS, format!("{}{keyed}{sealed}", file("together.jsonl"))),
        ("TLS", PLAIN.fields, format!("{none}{encrypted}")),
    ];
    let mut sides = Vec::new();
    for (database, (name, fields, tables)) in settings.iter().enumerate() {
        let own = format!("{}/{database}", server.url());
        let tls = (*name == "TLS").then(|| directory.path());
        sides.push(ProtectedService::start(name, &own, Extras { fields, tables, ..PLAIN }, tls).await);
    }
    let path = |n| get(&format!("/api/v1/profile?tenantId=10001&customerId={}", customer(n)));
    let requests = Arc::new((1..=CUSTOMERS).map(path).collect::<Vec<_>>());
    for side in &mut sides {
        // Fills the cache with all customers.
        side.round(&requests, ROUND).await;
    }
    for _ in 0..ROUNDS {
        for side in &mut sides {
            let before = cpu(side.service.pid());
            let round = side.round(&requests, ROUND).await;
            side.cpu += cpu(side.service.pid()) - before;
            side.rounds.push(round);
        }
    }
    println!(
        "what protects data, on a hit through Redis: {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?} each"
    );
    let base = sides[0].per_second();
    for side in &sides {
        let [_, p50, p99] = latencies(&side.rounds);
        let hits: usize = side.rounds.iter().map(|round| round.latencies.len()).sum();
        let each = side.cpu.div_f64(hits as f64).as_secs_f64() * 1e6;
        let (rate, ratio) = (side.per_second(), side.per_second() / base);
        println!(
            "  {:<13} {rate:>8.0} /s   ratio {ratio:.2}   p50 {p50:>8.2?}   p99 {p99:>8.2?}   cpu of each {each:>5.1} µs",
            side.name
        );
    }
    let together = sides.iter().find(|side| side.name == "all four").map_or(0.0, ProtectedService::per_second) / base;
    report_figure("ratio of all four together", &format!("{together:.2}"), ">= 0.70", together >= 0.7);
    println!();
    for side in sides {
        side.service.stop().await;
    }
}
