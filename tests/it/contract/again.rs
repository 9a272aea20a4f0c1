//! The contract of redelivery: the journal, events restored from it, and dead letters.

#![expect(clippy::unwrap_used, reason = "test code that no attribute marks as such: a panic is the failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use profile_edge::clock::SystemClock;
use profile_edge::domain::{Event, Redelivery, ReplayId, Timestamp};
use profile_edge::queue::open::OpenQueue;
use profile_edge::queue::{DeadLetterReason, DeadLetterSelection, Payload, Redriven, RestoreOutcome, Subscription};

use super::queue::{Fixture, event, events, holds, soon, take};

macro_rules! contract {
    ($($adapter:ident: $fixture:ty),+) => {
        $(contract!(@cases $adapter, $fixture,
            the_journal_returns_every_event_once_settled_or_not,
            the_journal_continues_after_reopening,
            the_journal_since_a_time_has_what_came_late,
            restored_events_are_marked_and_returned_once,
            redriven_events_are_redelivered_and_undecodable_ones_stay,
            only_chosen_dead_letters_are_redriven_or_purged,
            a_listing_of_dead_letters_is_complete,
        );)+
    };
    (@cases $adapter:ident, $fixture:ty, $($case:ident,)+) => {
        mod $adapter {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case::<$fixture>().await;
            })+
        }
    };
}

contract!(
    embedded_adapter: crate::contract::queue::Embedded,
    rabbitmq: crate::contract::rabbit::Alone,
    rabbitmq_on_three_nodes: crate::contract::rabbit::OnThreeNodes
);

/// Returns the ids in the journal, from the beginning.
async fn journal(opened: &OpenQueue) -> Vec<String> {
    let mut ids = journal_since(opened, Timestamp::from_millis(0)).await;
    ids.sort_unstable();
    ids
}

/// Returns the ids in the journal since a time, in its order.
async fn journal_since(opened: &OpenQueue, since: Timestamp) -> Vec<String> {
    let mut journal = soon(opened.queue.journal(since)).await.unwrap().unwrap();
    let mut ids = Vec::new();
    while let Some(events) = soon(journal.next()).await.unwrap() {
        ids.extend(events.iter().map(|event| event.id.to_string()));
    }
    assert!(soon(journal.next()).await.unwrap().is_none(), "the journal ended before");
    ids
}

/// Takes and settles the next redelivery. Returns its id and its reason.
async fn again(subscription: &mut Box<dyn Subscription>) -> (String, Redelivery) {
    let delivery = take(subscription).await;
    let Payload::Event(event) = delivery.payload() else { panic!("{delivery:?}") };
    let again = (event.id.to_string(), event.again.unwrap());
    assert_eq!(delivery.redelivered(), 0);
    delivery.ack().await.unwrap();
    again
}

async fn dead_letter(subscription: &mut Box<dyn Subscription>, count: usize) {
    for _ in 0..count {
        let delivery = take(subscription).await;
        let reason = match delivery.payload() {
            Payload::Event(_) => DeadLetterReason::RedeliveredTooOften,
            Payload::Undecodable(undecodable) => undecodable.reason,
        };
        delivery.dead_letter(reason).await.unwrap();
    }
}

async fn the_journal_returns_every_event_once_settled_or_not<F: Fixture>() {
    let opened = F::new().await.open().await;
    assert_eq!(journal(&opened).await, <[String; 0]>::default());
    opened.publisher.publish(&events(0..600)).await.unwrap();
    let again = Some(Redelivery::Replayed(ReplayId::fresh()));
    opened.publisher.publish(&[Event { again, ..event("replayed") }]).await.unwrap();
    let mut subscription = opened.queue.subscribe(8).await.unwrap();
    for _ in 0..300 {
        take(&mut subscription).await.ack().await.unwrap();
    }
    let held = take(&mut subscription).await;
    dead_letter(&mut subscription, 1).await;
    // Settled, delivered, dead-lettered, or waiting.
    let mut all: Vec<String> = (0..600).map(|n: u32| n.to_string()).collect();
    all.sort_unstable();
    assert_eq!(journal(&opened).await, all);
    drop(held);
}

async fn the_journal_continues_after_reopening<F: Fixture>() {
    let fixture = F::new().await;
    for round in 0..3_u32 {
        let opened = fixture.open().await;
        opened.publisher.publish(&events(round * 10..round * 10 + 10)).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        for _ in 0..10 {
            take(&mut subscription).await.ack().await.unwrap();
        }
        let mut expected: Vec<String> = (0..round * 10 + 10).map(|n| n.to_string()).collect();
        expected.sort_unstable();
        assert_eq!(journal(&opened).await, expected);
        opened.closer.close().await.unwrap();
    }
}

async fn the_journal_since_a_time_has_what_came_late<F: Fixture>() {
    let opened = F::new().await.open().await;
    let since = SystemClock::shared().now();
    let long_ago = since.minus(Duration::from_secs(86_400));
    let received = |id, received_at| Event { received_at, ..event(id) };
    let published = [received("new", since), received("late", long_ago), received("newer", since)];
    opened.publisher.publish(&published).await.unwrap();
    let mut subscription = opened.queue.subscribe(8).await.unwrap();
    // One is settled, and two wait.
    take(&mut subscription).await.ack().await.unwrap();
    assert_eq!(journal_since(&opened, since).await, ["new", "late", "newer"], "the order of publishing");
}

async fn restored_events_are_marked_and_returned_once<F: Fixture>() {
    let opened = F::new().await.open().await;
    opened.publisher.publish(&events(0..2)).await.unwrap();
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    for _ in 0..2 {
        take(&mut subscription).await.ack().await.unwrap();
    }
    holds(&opened, 0, 0).await;
    // Two orders since the same time would be one.
    let now = SystemClock::shared().now();
    let [second, third] = [1, 2].map(|by| now.minus(Duration::from_millis(by)));
    assert_eq!(opened.queue.restore(now).await.unwrap(), RestoreOutcome::Ordered);
    let mut came = [again(&mut subscription).await, again(&mut subscription).await];
    came.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(came, ["0", "1"].map(|id| (id.to_owned(), Redelivery::Restored)));
    holds(&opened, 0, 0).await;
    assert_eq!(journal(&opened).await, ["0", "1"]);

    // A replay that was settled is restored as the replay that it is.
    let replayed = Redelivery::Replayed(ReplayId::fresh());
    opened.publisher.publish(&[Event { again: Some(replayed), ..event(0) }]).await.unwrap();
    assert_eq!(again(&mut subscription).await, ("0".to_owned(), replayed));
    holds(&opened, 0, 0).await;
    opened.queue.restore(second).await.unwrap();
    let mut came = [again(&mut subscription).await, again(&mut subscription).await, again(&mut subscription).await];
    came.sort_unstable_by_key(|(id, again)| (id.clone(), *again == replayed));
    let restored = |id: &str| (id.to_owned(), Redelivery::Restored);
    assert_eq!(came, [restored("0"), ("0".to_owned(), replayed), restored("1")]);
    assert_eq!(journal(&opened).await, ["0", "1"]);

    // A second time, with the same result.
    opened.queue.restore(third).await.unwrap();
    for _ in 0..3 {
        again(&mut subscription).await;
    }
    holds(&opened, 0, 0).await;
}

async fn redriven_events_are_redelivered_and_undecodable_ones_stay<F: Fixture>() {
    let fixture = F::new().await;
    // The work queues exist once it was open.
    fixture.open().await.closer.close().await.unwrap();
    fixture.inject(b"not an event").await;
    let opened = fixture.open().await;
    opened.publisher.publish(&events(0..300)).await.unwrap();
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    dead_letter(&mut subscription, 301).await;
    holds(&opened, 0, 301).await;
    let redriven = soon(opened.dead_letters.redrive(&DeadLetterSelection::All)).await.unwrap();
    assert_eq!(redriven, Redriven { events: 300, kept: 1 });
    let mut came = BTreeSet::new();
    for _ in 0..300 {
        let (id, why) = again(&mut subscription).await;
        assert_eq!(why, Redelivery::Redriven);
        assert!(came.insert(id));
    }
    holds(&opened, 0, 1).await;
    let letters = opened.dead_letters.list(10).await.unwrap();
    assert!(matches!(letters[0].payload, Payload::Undecodable(_)));
    assert_eq!(opened.dead_letters.redrive(&DeadLetterSelection::All).await.unwrap(), Redriven { events: 0, kept: 1 });
}

async fn a_listing_of_dead_letters_is_complete<F: Fixture>() {
    let opened = F::new().await.open().await;
    opened.publisher.publish(&events(0..70)).await.unwrap();
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    dead_letter(&mut subscription, 70).await;
    holds(&opened, 0, 70).await;
    let lists = (0..6).map(|_| opened.dead_letters.list(1_000));
    for letters in futures_util::future::join_all(lists).await {
        assert_eq!(letters.unwrap().len(), 70);
    }
    let replayed = Redelivery::Replayed(ReplayId::fresh());
    opened.publisher.publish(&[Event { again: Some(replayed), ..event("replayed") }]).await.unwrap();
    dead_letter(&mut subscription, 1).await;
    holds(&opened, 0, 71).await;
    assert_eq!(opened.dead_letters.redrive(&DeadLetterSelection::All).await.unwrap(), Redriven { events: 71, kept: 0 });
    let mut reasons = BTreeMap::new();
    for _ in 0..71 {
        let (id, why) = again(&mut subscription).await;
        *reasons.entry(why.as_str()).or_insert(0) += 1;
        assert_eq!(id == "replayed", why == replayed, "a replay stays a replay");
    }
    assert_eq!(reasons, BTreeMap::from([("redriven", 70), ("replayed", 1)]));
    holds(&opened, 0, 0).await;
}

async fn only_chosen_dead_letters_are_redriven_or_purged<F: Fixture>() {
    let opened = F::new().await.open().await;
    opened.publisher.publish(&events(0..4)).await.unwrap();
    let mut subscription = opened.queue.subscribe(1).await.unwrap();
    dead_letter(&mut subscription, 4).await;
    holds(&opened, 0, 4).await;
    let letters = opened.dead_letters.list(10).await.unwrap();
    let called = |wanted: &str| {
        let is_it = |payload: &Payload| matches!(payload, Payload::Event(event) if event.id.as_str() == wanted);
        letters.iter().find(|letter| is_it(&letter.payload)).unwrap().id.clone()
    };
    let these = |ids: &[&str]| DeadLetterSelection::Ids(ids.iter().map(|id| called(id)).collect());
    let redriven = opened.dead_letters.redrive(&these(&["1", "2"])).await.unwrap();
    assert_eq!(redriven, Redriven { events: 2, kept: 0 });
    let mut came = [again(&mut subscription).await, again(&mut subscription).await].map(|(id, _)| id);
    came.sort_unstable();
    assert_eq!(came, ["1", "2"]);
    assert_eq!(opened.dead_letters.purge(&these(&["3"])).await.unwrap(), 1);
    let nobody = DeadLetterSelection::Ids(BTreeSet::from(["nobody".to_owned()]));
    assert_eq!(opened.dead_letters.purge(&nobody).await.unwrap(), 0);
    let left = opened.dead_letters.list(10).await.unwrap();
    assert_eq!(left.iter().map(|letter| &letter.id).collect::<Vec<_>>(), [&called("0")]);
    assert_eq!(opened.dead_letters.purge(&DeadLetterSelection::All).await.unwrap(), 1);
    assert!(opened.dead_letters.list(10).await.unwrap().is_empty());
}
