//! Poison messages from end to end: an event that the store refuses while it takes others.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use crate::support::customer;
use crate::support::edge::{Edge, flat, on_rabbit};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

/// The twenty redeliveries take 80 seconds, since each waits up to 5 seconds.
const LONGEST: Duration = Duration::from_secs(240);

/// Returns the first digit of a customer's digest, as it is in the customer's keys.
fn first_digit(customer: &str) -> String {
    hex::encode(&Sha256::digest(customer.as_bytes())[..1])[..1].to_owned()
}

/// Permits the keys of all customers but those whose digest begins with a digit.
async fn refuse(redis: &RedisServer, digit: &str) {
    let mut connection = redis.connect().await.unwrap();
    let (others, probes) = (format!("~*cust:profile:10001:[^{digit}]*"), "~*cust:profile:.:*");
    let rules = ["resetkeys", &others, probes];
    redis::cmd("ACL").arg("SETUSER").arg("default").arg(&rules).exec_async(&mut connection).await.unwrap();
}

/// One event is refused and becomes a dead letter after 20 refusals; the others go through an outage, and are applied.
async fn only_the_refused_event_becomes_a_dead_letter(queue: &str) {
    let redis = RedisServer::start(&[]).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", redis.url());
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}{queue}")).await;
    let digit = first_digit(&customer(1));
    let others: Vec<String> = (2..100).map(customer).filter(|other| first_digit(other) != digit).collect();
    let mut others = others.iter().cycle();
    refuse(&redis, &digit).await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);

    redis.pause().await;
    let mut posted = 0;
    for other in others.by_ref().take(30) {
        assert_eq!(edge.post_event(&flat(other)).await.status(), 202);
        posted += 1;
    }
    edge.is_without("store").await;
    redis.unpause().await;

    let began = Instant::now();
    while edge.metric("profile_edge_dead_letters").await < 1.0 {
        assert!(began.elapsed() < LONGEST, "the event is no dead letter");
        assert_eq!(edge.post_event(&flat(others.next().unwrap())).await.status(), 202);
        posted += 1;
        sleep(Duration::from_millis(250)).await;
    }
    edge.updates_took_effect(f64::from(posted)).await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 1.0);
    let counted = edge.metric("profile_edge_consumer_events_total{kind=\"updated\",outcome=\"dead_lettered\"}").await;
    assert_eq!(counted, 1.0);
    edge.is_ready().await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_refused_while_others_succeed_is_a_dead_letter() {
    only_the_refused_event_becomes_a_dead_letter("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_rabbitmq_refused_while_others_succeed_is_a_dead_letter() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    only_the_refused_event_becomes_a_dead_letter(&on_rabbit(&server.url(&vhost))).await;
}
