//! Planted personal data and secrets must not leak: only answers to authorised callers may hold them.
//!
//! Real processes at their highest log level run everything with planted people and secrets (`plants.rs`): every shape,
//! scheme and answer, panics, reloads, commands of operators, failing starts (`run.rs`, `operations.rs`). Then every
//! possible output (`places.rs`) is searched for every plant in every encoding that programs use. A deliberate leak shows
//! that the search finds plants.

mod genesys;
mod operations;
mod places;
mod plants;
mod run;
mod world;

use crate::support::eventually;

use plants::{CALLER_KEY, FREE_ID, Leak, Place, Plants, SPACED_ID, UUID};
use world::{Backing, Running, World};

/// Looks one customer up.
async fn look_up(running: &Running<'_>, customer: &str) -> u16 {
    let request = running.world.client.get(running.url("/api/v1/profile")).header("X-API-Key", CALLER_KEY);
    request.query(&[("tenantId", "10002"), ("customerId", customer)]).send().await.unwrap().status().as_u16()
}

/// Starts with a lookup that panics. Returns the output.
async fn panicking(world: &World) -> Vec<Place> {
    let running = world.start("what panics", "PanicInLookup").await;
    assert_eq!(look_up(&running, FREE_ID).await, 500);
    assert_eq!(running.sum("profile_edge_panics_total", "").await, 1.0);
    assert!(running.process.log().contains("(not shown)"));
    running.end().await
}

#[track_caller]
fn nothing_leaks(plants: &Plants, places: &[Place]) {
    let leaks = plants.leaks(places);
    assert!(leaks.is_empty(), "{} leaks: {leaks:#?}", leaks.len());
}

fn planted(record: &run::RunRecord) -> Plants {
    let mut plants = Plants::all();
    for token in &record.tokens {
        plants.plant("a token of ours", token.as_bytes());
    }
    plants
}

#[tokio::test(flavor = "multi_thread")]
async fn no_personal_data_or_secret_leaks_from_one_process() {
    let world = World::on(Backing::Embedded).await;
    let mut places = operations::starts_that_fail(&world).await;
    places.extend(panicking(&world).await);
    let running = world.start("everything", "").await;
    let mut record = run::everything(&running).await;
    places.append(&mut record.refusals);
    places.extend(operations::commands(&running).await);
    places.extend(running.end().await);
    let audit = places.iter().find(|place| place.name == "stdout of everything").unwrap();
    assert!(audit.bytes.split(|byte| *byte == b'\n').count() > 50, "the audit is on standard output");
    // All files, also those of the queue, except those that configure the secrets.
    let queue = world.path().join("data/queue");
    assert!(std::fs::metadata(queue.join("queue.redb")).unwrap().len() > 1_000);
    places.extend(places::files(&queue));

    places::inject_into_file(&queue);
    let running = world.start("what finds junk", "").await;
    running.dead_letters(places::junk().len() as f64).await;
    places.extend(operations::dead_letters(&world).await);
    places.extend(running.end().await);
    places.extend(places::spans(&world));
    nothing_leaks(&planted(&record), &places);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_personal_data_or_secret_leaks_with_redis_and_rabbitmq() {
    let world = World::on(Backing::servers().await).await;
    let Backing::Servers(servers) = &world.backing else { unreachable!("it was asked for") };
    let mut places = operations::starts_that_fail(&world).await;
    places.extend(panicking(&world).await);
    let broker = places::Broker::of(servers).await;
    broker.tap().await;
    let running = world.start("everything", "").await;
    broker.inject().await;
    let mut record = run::everything(&running).await;
    running.dead_letters(places::junk().len() as f64).await;
    places.append(&mut record.refusals);
    places.extend(operations::commands(&running).await);
    running.settled().await;
    // One record that stays, sealed.
    eventually("a cached profile", || async { (look_up(&running, UUID).await == 200).then_some(()) }).await;
    places.extend(running.end().await);

    let audit = Place::new("the audit", std::fs::read(world.path().join("data/audit.jsonl")).unwrap());
    assert!(audit.bytes.split(|byte| *byte == b'\n').count() > 50, "the audit is in its file");
    places.push(audit);
    places.extend(places::spans(&world));
    places.extend(places::of_redis(servers).await);
    places.extend(broker.contents().await);
    broker.forget().await;
    let mut plants = planted(&record);
    // With keyed hashes nobody can test by trial whether a person is a customer.
    for customer in [UUID, FREE_ID, SPACED_ID] {
        plants.plant_digest(customer);
    }
    nothing_leaks(&plants, &places);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_on_purpose_is_found_and_named() {
    let world = World::on(Backing::Embedded).await;
    let running = world.start("what leaks", "LeakIntoLog").await;
    eventually("a lookup", || async { (look_up(&running, SPACED_ID).await == 200).then_some(()) }).await;
    let mut places = running.end().await;
    places.extend(places::files(&world.path().join("data/queue")));
    places.extend(world.collector.requests().into_iter().map(|(_, body)| Place::new("a batch of spans", body)));
    let leaks = Plants::all().leaks(&places);
    assert!(!leaks.is_empty());
    let expected = |leak: &Leak| leak.what == "the other id in the CRM" && leak.place == "the log of what leaks";
    assert!(leaks.iter().all(expected), "{leaks:#?}");
}
