//! Hits by phone through Redis, against hits by id of the same customers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::figures::report_figure;
use crate::load::{self, Connection, Round, for_a_while, get};
use crate::service::{CUSTOMERS, Extras, PLAIN, Service};
use crate::support::customer;
use crate::support::servers::redis::RedisServer;

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 7;

/// A key for identifiers.
const KEYS: &str = "[audit]\nsink = \"none\"\n[keys]\nsecret = \"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\"\n";

pub(crate) async fn compare() {
    let server = RedisServer::start(&[]).await;
    let extras = Extras { tables: KEYS, lookup_by: "[\"customerId\", \"phone\"]", ..PLAIN };
    let service = Service::start_with(&server.url(), None, &extras).await;
    let (by_id, by_phone) = warm(&service).await;
    let (mut ids, mut phones) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ids.push(for_a_while(service.public, CONNECTIONS, &by_id, ROUND).await);
        phones.push(for_a_while(service.public, CONNECTIONS, &by_phone, ROUND).await);
    }
    let per_second = |rounds: &[Round]| load::median(rounds.iter().map(|round| round.per_second));
    let (id, phone) = (per_second(&ids), per_second(&phones));
    let [mean, ..] = load::latencies(&phones);
    println!("hits by phone through Redis: {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?}");
    println!("  by id {id:>8.0} /s   by phone {phone:>8.0} /s   mean {mean:.2?}");
    // The process remembers where the pointers lead, so both reads go out together.
    report_figure("ratio of throughput", &format!("{:.2}", phone / id), ">= 0.75", phone / id >= 0.75);
    println!();
    service.stop().await;
}

/// Stores every customer and the pointer of its number; returns the requests by id and by phone.
async fn warm(service: &Service) -> (Arc<Vec<Vec<u8>>>, Arc<Vec<Vec<u8>>>) {
    let mut connection = Connection::open(service.public).await;
    let by_id = |id: &str| get(&format!("/api/v1/profile?tenantId=10001&customerId={id}"));
    let (mut ids, mut phones) = (Vec::new(), Vec::new());
    for n in 1..=CUSTOMERS {
        let profile: Value =
            serde_json::from_slice(connection.exchange(&by_id(&customer(n))).await).expect("a profile is JSON");
        let number = profile["workPhone"]["e164"].as_str().expect("a number").replace('+', "%2B");
        let by_phone = get(&format!("/api/v1/profile?tenantId=10001&phone={number}"));
        // Several customers of the sandbox may share a number.
        let found: Value = serde_json::from_slice(connection.exchange(&by_phone).await).expect("a profile is JSON");
        ids.push(by_id(found["id"].as_str().expect("an id")));
        phones.push(by_phone);
    }
    // The customers that were found before their own turn are filled in the background.
    for request in ids.iter().chain(&phones) {
        connection.exchange(request).await;
    }
    (Arc::new(ids), Arc::new(phones))
}
