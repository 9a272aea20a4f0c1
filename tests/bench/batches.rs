//! Batches of hits through Redis, against single lookups of the same customers: profiles a second.

use std::sync::Arc;
use std::time::Duration;

use crate::figures::report_figure;
use crate::load::{self, Connection, Round, for_a_while};
use crate::service::{CUSTOMERS, Service, look_up};
use crate::support::customer;
use crate::support::servers::redis::RedisServer;

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// The number of customers of one batch.
const BATCH: u32 = 20;

pub(crate) async fn compare() {
    let server = RedisServer::start(&[]).await;
    let service = Service::start(&server.url(), None).await;
    let singles: Vec<_> = (1..=CUSTOMERS).map(look_up).collect();
    let batches: Vec<_> = (1..=CUSTOMERS).step_by(BATCH as usize).map(|first| batch(first..first + BATCH)).collect();
    let mut connection = Connection::open(service.public).await;
    for request in &batches {
        connection.exchange(request).await;
    }
    let (singles, batches) = (Arc::new(singles), Arc::new(batches));
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(for_a_while(service.public, CONNECTIONS, &singles, ROUND).await);
        together.push(for_a_while(service.public, CONNECTIONS, &batches, ROUND).await);
    }
    let per_second = |rounds: &[Round]| load::median(rounds.iter().map(|round| round.per_second));
    let (alone, together) = (per_second(&alone), per_second(&together));
    println!("batches of {BATCH} hits through Redis: {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?}");
    println!("  single lookups {alone:>8.0} profiles/s   batches {:>8.0} profiles/s", together * f64::from(BATCH));
    let ratio = together * f64::from(BATCH) / alone;
    report_figure("batches a second", &format!("{together:.0}"), ">= 1000", together >= 1_000.0);
    report_figure("profiles a second against single lookups", &format!("{ratio:.1}"), ">= 4", ratio >= 4.0);
    println!();
    service.stop().await;
}

/// Returns the request for a batch of customers.
pub(crate) fn batch(numbers: std::ops::Range<u32>) -> Vec<u8> {
    let ids: Vec<_> = numbers.map(|n| format!("\"{}\"", customer(n))).collect();
    let body = format!("{{\"tenantId\":\"10001\",\"customerIds\":[{}]}}", ids.join(","));
    let head = "POST /api/v1/profiles HTTP/1.1\r\nHost: localhost\r\nX-API-Key: demo-key\r\nContent-Type: application/json\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
