//! Restores of settled events: each once, durable, and behind live events.

use std::collections::BTreeMap;

use super::*;

/// Publishes and settles this many events.
async fn settled(queue: &Embedded, subscription: &mut Box<dyn Subscription>, count: usize) {
    queue.publish(&(0..count).map(event).collect::<Vec<_>>()).await.unwrap();
    for _ in 0..count {
        soon(subscription.next()).await.unwrap().ack().await.unwrap();
    }
}

/// Settles until nothing is left; returns how often each event was delivered.
async fn rest(queue: &Embedded, subscription: &mut Box<dyn Subscription>) -> BTreeMap<String, usize> {
    let mut delivered = BTreeMap::new();
    // The restore moves events between two reads of the depth; a whole restore has none left in between.
    while queue.progress.borrow().totals.restore.is_running() || queue.depth().await.unwrap().events > 0 {
        let delivery = soon(subscription.next()).await.unwrap();
        *delivered.entry(id(&delivery)).or_default() += 1;
        delivery.ack().await.unwrap();
    }
    delivered
}

#[tokio::test]
async fn a_restore_that_is_ordered_again_restores_each_event_once() {
    const EVENTS: usize = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    settled(&queue, &mut subscription, EVENTS).await;
    for _ in 0..5 {
        queue.restore(NOW).await.unwrap();
    }
    let delivered = rest(&queue, &mut subscription).await;
    assert_eq!(delivered.len(), EVENTS);
    assert!(delivered.values().all(|times| *times == 1), "{delivered:?}");
    // They are in the journal again, each once, as first published.
    let mut journal = queue.journal(NOW).await.unwrap().unwrap();
    let mut kept = BTreeSet::new();
    while let Some(events) = journal.next().await.unwrap() {
        assert!(events.iter().all(|event| event.again.is_none() && kept.insert(event.id.to_string())));
    }
    assert_eq!(kept.len(), EVENTS);
}

#[tokio::test]
async fn a_restore_gives_way_to_live_events_and_needs_no_space() {
    const EVENTS: usize = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let size = wire::encode(&event(EVENTS)).len();
    let config = Config { max_bytes: ByteSize((size * EVENTS) as u64), ..config(directory.path()) };
    let queue = Embedded::open(&config, ManualClock::at(NOW), &Shutdown::default()).unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    settled(&queue, &mut subscription, EVENTS).await;
    queue.restore(NOW).await.unwrap();
    queue.ping().await.unwrap();
    let waiting = queue.depth().await.unwrap().events;
    assert!((1..1_000).contains(&waiting), "{waiting}");
    queue.publish(&[event("live")]).await.unwrap();
    let before = async {
        let mut before = 0;
        loop {
            let delivery = soon(subscription.next()).await.unwrap();
            let is_live = id(&delivery) == "live";
            delivery.ack().await.unwrap();
            if is_live {
                return before;
            }
            before += 1;
        }
    };
    let before = before.await;
    assert!(before < 1_000, "{before} restored events were delivered before a live one");
    assert_eq!(rest(&queue, &mut subscription).await.len() + before, EVENTS);
}

#[tokio::test]
async fn a_restore_continues_after_a_restart_where_it_was() {
    const EVENTS: usize = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    settled(&queue, &mut subscription, EVENTS).await;
    queue.restore(NOW).await.unwrap();
    for _ in 0..700 {
        soon(subscription.next()).await.unwrap().ack().await.unwrap();
    }
    drop(subscription);
    queue.close().await.unwrap();
    let queue = open(directory.path()).unwrap();
    queue.restore(NOW).await.unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    let delivered = rest(&queue, &mut subscription).await;
    assert_eq!(delivered.len(), EVENTS - 700);
    assert!(delivered.values().all(|times| *times == 1), "{delivered:?}");
}

/// A process can be stopped, or the store can hang, between the effect of an event and its acknowledgement.
#[tokio::test]
async fn an_event_that_is_settled_after_the_restore_has_passed_it_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    queue.publish(&["held", "settled"].map(event)).await.unwrap();
    let held = soon(subscription.next()).await.unwrap();
    soon(subscription.next()).await.unwrap().ack().await.unwrap();
    queue.restore(NOW).await.unwrap();
    let again = async |subscription: &mut Box<dyn Subscription>| {
        let delivery = soon(subscription.next()).await.unwrap();
        let Payload::Event(event) = delivery.payload() else { panic!("{delivery:?}") };
        assert_eq!(event.again, Some(Redelivery::Restored));
        let id = id(&delivery);
        delivery.ack().await.unwrap();
        id
    };
    assert_eq!(again(&mut subscription).await, "settled");
    held.ack().await.unwrap();
    assert_eq!(again(&mut subscription).await, "held");
    assert!(rest(&queue, &mut subscription).await.is_empty());
    let mut journal = queue.journal(NOW).await.unwrap().unwrap();
    let kept = journal.next().await.unwrap().unwrap();
    assert!(kept.iter().all(|event| event.again.is_none()));
    assert_eq!(kept.iter().map(|event| event.id.to_string()).collect::<Vec<_>>(), ["settled", "held"]);
}
