//! Restores of the AMQP queue: their order in time, their progress, and how they give way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use profile_edge::clock::{Clock, ManualClock, SystemClock};
use profile_edge::domain::{Event, Redelivery};
use profile_edge::queue::open::OpenQueue;
use profile_edge::queue::{Payload, Queue, RestoreOutcome};
use tokio::time::{Instant, sleep};

use super::queue::{event, events, open, open_at, soon, take};
use super::rabbit::Place;
use crate::support::eventually;
use crate::support::servers::rabbit::RabbitServer;

/// More than a restore may put in front of live events: what may wait, and a step.
const MANY: u32 = 2_000;
const MOST_WAITING: u64 = 512 + 256;
const STEP: usize = 256;

/// Publishes and settles many events, and ends the subscription, so that nobody consumes.
async fn settle_many(opened: &OpenQueue) {
    opened.publisher.publish(&events(0..MANY)).await.unwrap();
    let mut subscription = opened.queue.subscribe(256).await.unwrap();
    for _ in 0..MANY {
        take(&mut subscription).await.ack().await.unwrap();
    }
}

async fn waiting(queue: &dyn Queue) -> u64 {
    queue.depth().await.unwrap().events
}

/// Waits until a restore waits for the work queues, and checks that it goes on waiting.
async fn gives_way(opened: &OpenQueue, during: Duration) {
    eventually("the restore has begun", || async { (waiting(&*opened.queue).await > 512).then_some(()) }).await;
    let began = Instant::now();
    while began.elapsed() < during {
        let events = waiting(&*opened.queue).await;
        assert!(events <= MOST_WAITING, "{events} events wait");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Takes events until each of this many was restored; returns how many were restored more than once.
async fn take_restored(opened: &OpenQueue, many: u32) -> usize {
    let mut subscription = opened.queue.subscribe(64).await.unwrap();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    while times.len() < many as usize {
        let delivery = take(&mut subscription).await;
        let Payload::Event(event) = delivery.payload() else { panic!("{delivery:?}") };
        if event.again.is_some() {
            assert_eq!(event.again, Some(Redelivery::Restored));
            *times.entry(event.id.to_string()).or_default() += 1;
        }
        delivery.ack().await.unwrap();
    }
    times.values().filter(|times| **times > 1).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_complete_although_our_clock_is_an_hour_ahead() {
    let place = Place::on(RabbitServer::shared().await, |_, _| {}).await;
    let clock = ManualClock::at(SystemClock::shared().now().plus(Duration::from_secs(3_600)));
    let opened = open_at(&place.config, clock.clone()).await;
    let event = Event { received_at: clock.now(), ..event("1") };
    opened.publisher.publish(&[event]).await.unwrap();
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    take(&mut subscription).await.ack().await.unwrap();
    assert_eq!(opened.queue.restore(clock.now()).await.unwrap(), RestoreOutcome::Ordered);
    let again = take(&mut subscription).await;
    assert!(matches!(again.payload(), Payload::Event(event) if event.again == Some(Redelivery::Restored)));
    again.ack().await.unwrap();

    // The journal is read by the same rule.
    let mut journal = opened.queue.journal(clock.now()).await.unwrap().unwrap();
    let mut read = Vec::new();
    while let Some(events) = soon(journal.next()).await.unwrap() {
        read.extend(events);
    }
    assert_eq!(read.len(), 1);
}

/// The restore waits for twice as long as the broker lets a consumer hold a delivery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_gives_way_for_longer_than_the_consumer_timeout() {
    let held = Duration::from_secs(3);
    let server = RabbitServer::start(&format!("consumer_timeout = {}\n", held.as_millis())).await;
    // By default the broker checks once a minute.
    server.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let place = Place::on(&server, |_, _| {}).await;
    let opened = open(&place.config).await;
    settle_many(&opened).await;
    let since = SystemClock::shared().now();
    assert_eq!(opened.queue.restore(since).await.unwrap(), RestoreOutcome::Ordered);
    gives_way(&opened, 2 * held).await;
    assert_eq!(take_restored(&opened, MANY).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_continues_a_restore_where_it_was() {
    let place = Place::on(RabbitServer::shared().await, |_, _| {}).await;
    let first = open(&place.config).await;
    settle_many(&first).await;
    let since = SystemClock::shared().now();
    assert_eq!(first.queue.restore(since).await.unwrap(), RestoreOutcome::Ordered);
    gives_way(&first, Duration::from_secs(1)).await;
    first.closer.close().await.unwrap();

    let second = open(&place.config).await;
    let repeated = take_restored(&second, MANY).await;
    assert!(repeated <= STEP, "{repeated} events were restored more than once");
}

/// Until both are there no step begins, since too many events wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_orders_of_one_loss_are_one_restore() {
    let place = Place::on(RabbitServer::shared().await, |_, _| {}).await;
    let opened = open(&place.config).await;
    settle_many(&opened).await;
    let since = SystemClock::shared().now();
    let live = 600;
    opened.publisher.publish(&events(MANY..MANY + live)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(opened.queue.restore(since).await.unwrap(), RestoreOutcome::Ordered);
    }
    let repeated = take_restored(&opened, MANY + live).await;
    assert!(repeated <= STEP, "{repeated} events were restored more than once");
}

/// The queues of the new shards do not exist yet when their first events are published: these are in the journal alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_with_fewer_shards_restores_the_events_of_new_ones() {
    const EVENTS: u32 = 32;
    let place = Place::on(RabbitServer::shared().await, |_, _| {}).await;
    let old = open(&place.config).await;
    let mut of_old = old.queue.subscribe(8).await.unwrap();
    let mut config = place.config.clone();
    config.amqp.shards = 4;
    let new = open(&config).await;
    new.publisher.publish(&events(0..EVENTS)).await.unwrap();
    let mut of_new = new.queue.subscribe(8).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < EVENTS as usize {
        let delivery = soon(async {
            tokio::select! { one = of_old.next() => one, one = of_new.next() => one }
        })
        .await;
        let delivery = delivery.unwrap();
        let Payload::Event(event) = delivery.payload() else { panic!("{delivery:?}") };
        seen.insert(event.id.to_string());
        delivery.ack().await.unwrap();
    }
}
