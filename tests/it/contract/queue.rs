//! The contract of the queue ports, and a crash.
//!
//! An adapter is done when it passes: implement [`Fixture`] for it and name it in `queue_contract!`.

#![expect(clippy::unwrap_used, reason = "test code that no attribute marks as such: a panic is the failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use profile_edge::clock::{SharedClock, SystemClock};
use profile_edge::config;
use profile_edge::domain::{Digest, Event, Kind, Shape, Stamps, Timestamp};
use profile_edge::metrics::Metrics;
use profile_edge::queue::open::{self, Config, OpenQueue};
use profile_edge::queue::{DeadLetterReason, Delivery, Error, Payload, Subscription, embedded, wire};
use profile_edge::shutdown::Shutdown;

use crate::support::eventually;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The data of one queue, which can be opened repeatedly.
#[async_trait]
pub(super) trait Fixture: Send + Sync + Sized {
    /// The number of random histories.
    const HISTORIES: u32;

    /// Creates a queue without events.
    async fn new() -> Self;

    /// Opens the queue; it must not be open.
    async fn open(&self) -> OpenQueue;

    /// Puts bytes into the queue as if they were an event; it must not be open.
    async fn inject(&self, bytes: &[u8]);
}

pub(super) struct Embedded {
    directory: TempDir,
}

#[async_trait]
impl Fixture for Embedded {
    const HISTORIES: u32 = 32;

    async fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    async fn open(&self) -> OpenQueue {
        open_embedded(self.directory.path(), 1 << 30).await
    }

    async fn inject(&self, bytes: &[u8]) {
        let events = redb::TableDefinition::<u64, &[u8]>::new("events");
        let file = redb::Database::create(self.directory.path().join("queue.redb")).unwrap();
        let txn = file.begin_write().unwrap();
        {
            let mut table = txn.open_table(events).unwrap();
            let next = redb::ReadableTable::last(&table).unwrap().map_or(0, |(last, _)| last.value() + 1);
            table.insert(next, bytes).unwrap();
        }
        txn.commit().unwrap();
    }
}

async fn open_embedded(path: &Path, max_bytes: u64) -> OpenQueue {
    let mut config = config::from_toml("").unwrap().config.queue;
    config.embedded = embedded::Config { path: PathBuf::from(path), max_bytes: ByteSize(max_bytes), ..config.embedded };
    open(&config).await
}

pub(super) async fn open(config: &Config) -> OpenQueue {
    open_at(config, SystemClock::shared()).await
}

/// Opens a queue with another clock.
pub(super) async fn open_at(config: &Config, clock: SharedClock) -> OpenQueue {
    let (_, shutdown) = Shutdown::new();
    let opened = open::open(config, clock, &shutdown, Metrics::new());
    soon(opened).await.unwrap()
}

macro_rules! queue_contract {
    ($($adapter:ident: $fixture:ty),+) => {
        $(queue_contract!(@cases $adapter, $fixture,
            unsettled_events_survive_reopening,
            acknowledged_events_are_not_redelivered,
            at_most_prefetch_deliveries_are_unsettled,
            a_cancelled_call_takes_no_delivery,
            a_dropped_delivery_is_redelivered_with_a_higher_count,
            a_retried_delivery_is_redelivered_after_others,
            redelivery_counts_survive_reopening,
            a_dead_letter_leaves_the_queue_and_is_kept,
            undecodable_bytes_are_delivered_as_undecodable,
            a_new_subscription_gets_everything_unsettled,
            an_event_published_later_wakes_the_subscription,
            concurrent_publishers_lose_and_duplicate_nothing,
            a_closed_queue_returns_an_error,
        );)+
    };
    (@cases $adapter:ident, $fixture:ty, $($case:ident,)+) => {
        mod $adapter {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                cases::$case::<$fixture>().await;
            })+

            #[test]
            fn any_history_settles_each_event_once_and_loses_none() {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                proptest!(ProptestConfig::with_cases(<$fixture>::HISTORIES), |(history in proptest::collection::vec(step(), 1..40))| {
                    runtime.block_on(History::<$fixture>::run(history));
                });
            }
        }
    };
}

queue_contract!(
    embedded_adapter: Embedded,
    rabbitmq: crate::contract::rabbit::Alone,
    rabbitmq_with_outbox: crate::contract::rabbit::WithOutbox,
    rabbitmq_on_three_nodes: crate::contract::rabbit::OnThreeNodes
);

pub(super) fn event(id: impl std::fmt::Display) -> Event {
    Event {
        id: id.to_string().parse().unwrap(),
        identity: Digest::from_bytes([7; 16]),
        tenant: "10001".parse().unwrap(),
        keys: vec![Digest::from_bytes([1; 16])],
        identifiers: vec![Digest::from_bytes([2; 16])],
        kind: Kind::Updated,
        stamps: Stamps::default(),
        received_at: Timestamp::from_millis(1_741_064_767_500),
        shape: Shape::Flat,
        traceparent: None,
        force: false,
        again: None,
    }
}

pub(super) fn events(ids: impl IntoIterator<Item = u32>) -> Vec<Event> {
    ids.into_iter().map(event).collect()
}

pub(super) fn id(delivery: &Delivery) -> String {
    match delivery.payload() {
        Payload::Event(event) => event.id.to_string(),
        Payload::Undecodable(undecodable) => panic!("not an event: {undecodable:?}"),
    }
}

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("took too long")
}

pub(super) async fn take(subscription: &mut Box<dyn Subscription>) -> Delivery {
    soon(subscription.next()).await.expect("the queue is open")
}

/// Waits until the queue holds this many events and dead letters. A broker counts with a delay.
pub(super) async fn holds(opened: &OpenQueue, events: u64, dead_letters: u64) {
    let what = format!("{events} events and {dead_letters} dead letters");
    eventually(&what, || async {
        let depth = opened.queue.depth().await.unwrap();
        ((depth.events, depth.dead_letters) == (events, dead_letters)).then_some(())
    })
    .await;
}

pub(super) async fn take_ids(subscription: &mut Box<dyn Subscription>, count: usize) -> (Vec<String>, Vec<Delivery>) {
    let (mut ids, mut deliveries) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let delivery = take(subscription).await;
        ids.push(id(&delivery));
        deliveries.push(delivery);
    }
    (ids, deliveries)
}

/// The cases that every adapter passes.
mod cases {
    use super::*;

    pub(super) async fn unsettled_events_survive_reopening<F: Fixture>() {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        opened.publisher.publish(&events(0..5)).await.unwrap();
        let mut subscription = opened.queue.subscribe(2).await.unwrap();
        let (_, held) = take_ids(&mut subscription, 2).await;
        opened.closer.close().await.unwrap();
        drop(held);

        let opened = fixture.open().await;
        holds(&opened, 5, 0).await;
        let mut subscription = opened.queue.subscribe(5).await.unwrap();
        let (mut ids, _held) = take_ids(&mut subscription, 5).await;
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2", "3", "4"]);
    }

    pub(super) async fn acknowledged_events_are_not_redelivered<F: Fixture>() {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        opened.publisher.publish(&events(0..4)).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        for _ in 0..3 {
            take(&mut subscription).await.ack().await.unwrap();
        }
        opened.closer.close().await.unwrap();

        let opened = fixture.open().await;
        holds(&opened, 1, 0).await;
        if let Some(bytes) = opened.queue.depth().await.unwrap().bytes {
            assert_eq!(bytes, wire::encode(&event(3)).len() as u64);
        }
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        assert_eq!(id(&take(&mut subscription).await), "3");
    }

    pub(super) async fn at_most_prefetch_deliveries_are_unsettled<F: Fixture>() {
        let opened = F::new().await.open().await;
        opened.publisher.publish(&events(0..6)).await.unwrap();
        let mut subscription = opened.queue.subscribe(3).await.unwrap();
        let (_, mut held) = take_ids(&mut subscription, 3).await;
        let settling = AtomicBool::new(false);
        let fourth = async {
            let delivery = take(&mut subscription).await;
            assert!(settling.load(Ordering::SeqCst), "a fourth came while three were out");
            delivery
        };
        let settle = async {
            // Round trips through the whole queue, which give a wrong fourth delivery enough time.
            for more in 6..16 {
                opened.publisher.publish(&events([more])).await.unwrap();
                opened.queue.ping().await.unwrap();
            }
            settling.store(true, Ordering::SeqCst);
            held.remove(0).ack().await.unwrap();
        };
        let (fourth, ()) = tokio::join!(fourth, settle);
        assert_eq!(id(&fourth), "3");
    }

    pub(super) async fn a_cancelled_call_takes_no_delivery<F: Fixture>() {
        let opened = F::new().await.open().await;
        let mut subscription = opened.queue.subscribe(10).await.unwrap();
        for round in 0..50 {
            tokio::select! {
                biased;
                delivery = subscription.next() => panic!("nothing was published, yet {delivery:?} came"),
                () = tokio::task::yield_now() => {}
            }
            opened.publisher.publish(&events([round])).await.unwrap();
            let delivery = soon(async {
                loop {
                    tokio::select! {
                        biased;
                        delivery = subscription.next() => return delivery.unwrap(),
                        () = tokio::task::yield_now() => {}
                    }
                }
            })
            .await;
            assert_eq!((id(&delivery), delivery.redelivered()), (round.to_string(), 0));
            delivery.ack().await.unwrap();
        }
    }

    pub(super) async fn a_dropped_delivery_is_redelivered_with_a_higher_count<F: Fixture>() {
        let opened = F::new().await.open().await;
        opened.publisher.publish(&events([1])).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        for count in 0..3 {
            let delivery = take(&mut subscription).await;
            assert_eq!((id(&delivery), delivery.redelivered()), ("1".to_owned(), count));
            drop(delivery);
        }
        take(&mut subscription).await.ack().await.unwrap();
        holds(&opened, 0, 0).await;
    }

    pub(super) async fn a_retried_delivery_is_redelivered_after_others<F: Fixture>() {
        let opened = F::new().await.open().await;
        opened.publisher.publish(&events(0..4)).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        take(&mut subscription).await.retry().await.unwrap();
        let mut order = Vec::new();
        for _ in 0..4 {
            let delivery = take(&mut subscription).await;
            order.push((id(&delivery), delivery.redelivered()));
            delivery.ack().await.unwrap();
        }
        let others = order.iter().position(|(id, count)| (id.as_str(), *count) == ("0", 1)).unwrap();
        assert!(others > 0, "{order:?}");
        assert_eq!(order.iter().map(|(id, _)| id.as_str()).collect::<BTreeSet<_>>(), ["0", "1", "2", "3"].into());
    }

    pub(super) async fn redelivery_counts_survive_reopening<F: Fixture>() {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        opened.publisher.publish(&events([1])).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        take(&mut subscription).await.retry().await.unwrap();
        take(&mut subscription).await.retry().await.unwrap();
        opened.closer.close().await.unwrap();

        let opened = fixture.open().await;
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        assert_eq!(take(&mut subscription).await.redelivered(), 2);
    }

    pub(super) async fn a_dead_letter_leaves_the_queue_and_is_kept<F: Fixture>() {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        opened.publisher.publish(&events(0..2)).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        let given_up = take(&mut subscription).await;
        assert_eq!(id(&given_up), "0");
        given_up.dead_letter(DeadLetterReason::RedeliveredTooOften).await.unwrap();
        holds(&opened, 1, 1).await;
        opened.closer.close().await.unwrap();

        let opened = fixture.open().await;
        holds(&opened, 1, 1).await;
        let mut subscription = opened.queue.subscribe(2).await.unwrap();
        assert_eq!(id(&take(&mut subscription).await), "1");
        let letters = opened.dead_letters.list(10).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].reason, "redelivered-too-often");
        assert!(letters[0].since.is_some() && !letters[0].id.is_empty());
        match &letters[0].payload {
            Payload::Event(kept) => assert_eq!(**kept, event(0)),
            Payload::Undecodable(undecodable) => panic!("{undecodable:?}"),
        }
    }

    pub(super) async fn undecodable_bytes_are_delivered_as_undecodable<F: Fixture>() {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        opened.publisher.publish(&events([1])).await.unwrap();
        opened.closer.close().await.unwrap();
        let injected: [(&[u8], DeadLetterReason); 2] = [
            (b"\xff not an event", DeadLetterReason::Undecodable),
            (br#"{"v":2,"id":"later"}"#, DeadLetterReason::UnknownVersion),
        ];
        for (bytes, _) in injected {
            fixture.inject(bytes).await;
        }

        let opened = fixture.open().await;
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        let undecodable = |payload: &Payload| match payload {
            Payload::Undecodable(undecodable) => Some((undecodable.length, undecodable.reason)),
            Payload::Event(_) => None,
        };
        let mut seen = Vec::new();
        for _ in 0..3 {
            let delivery = take(&mut subscription).await;
            match undecodable(delivery.payload()) {
                Some((length, reason)) => {
                    seen.push((length, reason.as_str()));
                    delivery.dead_letter(reason).await.unwrap();
                }
                None => delivery.ack().await.unwrap(),
            }
        }
        let mut expected = injected.map(|(bytes, reason)| (bytes.len(), reason.as_str()));
        expected.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, expected);
        holds(&opened, 0, 2).await;
        let letters = opened.dead_letters.list(10).await.unwrap();
        let mut kept: Vec<_> = letters.iter().filter_map(|letter| undecodable(&letter.payload)).collect();
        kept.sort_unstable_by_key(|(length, _)| *length);
        assert_eq!(kept.iter().map(|(length, reason)| (*length, reason.as_str())).collect::<Vec<_>>(), expected);
        assert!(letters.iter().all(|letter| expected.iter().any(|(_, reason)| letter.reason == *reason)));
    }

    pub(super) async fn a_new_subscription_gets_everything_unsettled<F: Fixture>() {
        let opened = F::new().await.open().await;
        opened.publisher.publish(&events(0..4)).await.unwrap();
        let mut first = opened.queue.subscribe(3).await.unwrap();
        let (_, mut held) = take_ids(&mut first, 3).await;
        held.remove(1).ack().await.unwrap();
        drop((first, held));

        let mut second = opened.queue.subscribe(3).await.unwrap();
        let mut seen = BTreeMap::new();
        for _ in 0..3 {
            let delivery = take(&mut second).await;
            seen.insert(id(&delivery), delivery.redelivered());
            delivery.ack().await.unwrap();
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["0", "2", "3"]);
        assert!(seen["0"] == 1 && seen["2"] == 1, "{seen:?}");
        holds(&opened, 0, 0).await;
    }

    pub(super) async fn an_event_published_later_wakes_the_subscription<F: Fixture>() {
        let opened = F::new().await.open().await;
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        for round in 0..20 {
            let published = async { opened.publisher.publish(&events([round])).await.unwrap() };
            let (delivery, ()) = tokio::join!(take(&mut subscription), published);
            assert_eq!(id(&delivery), round.to_string());
            delivery.ack().await.unwrap();
        }
    }

    pub(super) async fn concurrent_publishers_lose_and_duplicate_nothing<F: Fixture>() {
        const PUBLISHERS: u32 = 64;
        const EACH: u32 = 50;
        let opened = F::new().await.open().await;
        let publishers = (0..PUBLISHERS).map(|publisher| {
            let queue = opened.publisher.clone();
            tokio::spawn(async move {
                for event in events((0..EACH).map(|n| publisher * EACH + n)) {
                    queue.publish(&[event]).await.unwrap();
                }
            })
        });
        let publishers = join_all(publishers);
        let mut subscription = opened.queue.subscribe(32).await.unwrap();
        let consumer = async {
            let mut seen = BTreeSet::new();
            for _ in 0..PUBLISHERS * EACH {
                let delivery = take(&mut subscription).await;
                assert!(seen.insert(id(&delivery)), "{} came twice", id(&delivery));
                delivery.ack().await.unwrap();
            }
            seen.len()
        };
        let (published, seen) = tokio::join!(publishers, consumer);
        assert!(published.into_iter().all(|publisher| publisher.is_ok()));
        assert_eq!(seen, (PUBLISHERS * EACH) as usize);
        holds(&opened, 0, 0).await;
    }

    pub(super) async fn a_closed_queue_returns_an_error<F: Fixture>() {
        let opened = F::new().await.open().await;
        opened.publisher.publish(&events([1])).await.unwrap();
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        let held = take(&mut subscription).await;
        let (end, closed) = tokio::join!(soon(subscription.next()), opened.closer.close());
        assert!(end.is_none());
        closed.unwrap();
        opened.closer.close().await.unwrap();
        assert!(matches!(held.ack().await, Err(Error::Closed)));
        assert!(matches!(opened.publisher.publish(&events([2])).await, Err(Error::Closed)));
        assert!(matches!(opened.queue.ping().await, Err(Error::Closed)));
        assert!(matches!(opened.queue.subscribe(1).await, Err(Error::Closed)));
    }
}

/// One step of a random history; an index picks among the deliveries that are held.
#[derive(Clone, Debug)]
enum Step {
    Publish(u32),
    Take,
    Ack(usize),
    Retry(usize),
    Drop(usize),
    DeadLetter(usize),
    Resubscribe,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..5).prop_map(Step::Publish),
        8 => Just(Step::Take),
        5 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::Retry),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::DeadLetter),
        1 => Just(Step::Resubscribe),
        1 => Just(Step::Reopen),
    ]
}

/// A queue under a random history, with a model of its expected content.
struct History<F> {
    fixture: F,
    opened: OpenQueue,
    subscription: Box<dyn Subscription>,
    held: Vec<Delivery>,
    published: u32,
    unsettled: BTreeSet<String>,
    dead_letters: u64,
}

impl<F: Fixture> History<F> {
    const PREFETCH: usize = 3;

    async fn run(steps: Vec<Step>) {
        let fixture = F::new().await;
        let opened = fixture.open().await;
        let subscription = opened.queue.subscribe(Self::PREFETCH).await.unwrap();
        let (held, unsettled) = (Vec::new(), BTreeSet::new());
        let mut history = Self { fixture, opened, subscription, held, published: 0, unsettled, dead_letters: 0 };
        for step in steps {
            history.apply(step).await;
        }
        history.drain().await;
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Publish(count) => {
                let events = events(self.published..self.published + count);
                self.published += count;
                self.opened.publisher.publish(&events).await.unwrap();
                self.unsettled.extend(events.iter().map(|event| event.id.to_string()));
            }
            Step::Take => self.take().await,
            Step::Ack(index) => {
                if let Some(delivery) = self.release(index) {
                    self.unsettled.remove(&id(&delivery));
                    delivery.ack().await.unwrap();
                }
            }
            Step::Retry(index) => {
                if let Some(delivery) = self.release(index) {
                    delivery.retry().await.unwrap();
                }
            }
            Step::Drop(index) => drop(self.release(index)),
            Step::DeadLetter(index) => {
                if let Some(delivery) = self.release(index) {
                    self.unsettled.remove(&id(&delivery));
                    self.dead_letters += 1;
                    delivery.dead_letter(DeadLetterReason::RedeliveredTooOften).await.unwrap();
                }
            }
            Step::Resubscribe => {
                self.held.clear();
                self.subscription = self.opened.queue.subscribe(Self::PREFETCH).await.unwrap();
            }
            Step::Reopen => self.reopen().await,
        }
        self.check_depth().await;
    }

    fn release(&mut self, index: usize) -> Option<Delivery> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(index % self.held.len()))
    }

    /// Takes one delivery if there must be one. It must be unsettled and not taken already.
    async fn take(&mut self) {
        if self.held.len() == Self::PREFETCH || self.held.len() == self.unsettled.len() {
            return;
        }
        let delivery = take(&mut self.subscription).await;
        let taken = id(&delivery);
        assert!(self.unsettled.contains(&taken), "{taken} was redelivered after it was settled");
        assert!(self.held.iter().all(|held| id(held) != taken), "{taken} was delivered twice at once");
        self.held.push(delivery);
    }

    async fn reopen(&mut self) {
        self.held.clear();
        self.opened.closer.close().await.unwrap();
        self.opened = self.fixture.open().await;
        self.subscription = self.opened.queue.subscribe(Self::PREFETCH).await.unwrap();
    }

    async fn check_depth(&self) {
        holds(&self.opened, self.unsettled.len() as u64, self.dead_letters).await;
    }

    async fn drain(mut self) {
        self.reopen().await;
        while !self.unsettled.is_empty() {
            self.apply(Step::Take).await;
            self.apply(Step::Ack(0)).await;
        }
        self.check_depth().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_to_a_full_embedded_queue_is_all_or_nothing() {
    let size = wire::encode(&event(1)).len() as u64;
    let directory = tempfile::tempdir().unwrap();
    let opened = open_embedded(directory.path(), size * 3).await;
    opened.publisher.publish(&events([1])).await.unwrap();
    let refused = opened.publisher.publish(&events([2, 3, 4])).await.unwrap_err();
    assert!(matches!(refused, Error::Full { bytes, max_bytes } if (bytes, max_bytes) == (size, size * 3)), "{refused}");
    assert_eq!(opened.queue.depth().await.unwrap().events, 1);
    opened.publisher.publish(&events([5, 6])).await.unwrap();

    let mut subscription = opened.queue.subscribe(3).await.unwrap();
    let (ids, deliveries) = take_ids(&mut subscription, 3).await;
    assert_eq!(ids, ["1", "5", "6"]);
    for delivery in deliveries {
        delivery.ack().await.unwrap();
    }
    opened.publisher.publish(&events([7, 8, 9])).await.unwrap();
}

/// Set for the child of the crash test: the directory of its queue.
const CRASH_DIRECTORY: &str = "PROFILE_EDGE_TEST_CRASH_DIRECTORY";

/// Starts this test again as a child that publishes, kills it with SIGKILL at a random moment, and looks for every
/// event whose confirmation the child saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_confirmed_event_survives_a_kill() {
    if let Ok(directory) = std::env::var(CRASH_DIRECTORY) {
        publish_until_killed(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let confirmed = confirmed_by_a_killed_child(directory.path(), rand::random_range(20..200)).await;
        assert!(!confirmed.is_empty());
        let opened = open_embedded(directory.path(), 1 << 30).await;
        let mut subscription = opened.queue.subscribe(usize::MAX).await.unwrap();
        let mut found = BTreeSet::new();
        for _ in 0..opened.queue.depth().await.unwrap().events {
            let delivery = take(&mut subscription).await;
            found.insert(id(&delivery));
            delivery.ack().await.unwrap();
        }
        let lost: Vec<_> = confirmed.iter().filter(|id| !found.contains(*id)).collect();
        assert!(lost.is_empty(), "confirmed and lost: {lost:?}; there are {}", found.len());
        opened.closer.close().await.unwrap();
    }
}

async fn confirmed_by_a_killed_child(directory: &Path, enough: usize) -> Vec<String> {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contract::queue::every_confirmed_event_survives_a_kill", "--nocapture", "--test-threads=1"])
        .env(CRASH_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut confirmed = Vec::new();
    let mut line = String::new();
    // Reads all complete lines that were written before the kill.
    while soon(output.read_line(&mut line)).await.unwrap() > 0 {
        if let Some(id) = line.strip_prefix("confirmed ").and_then(|rest| rest.strip_suffix('\n')) {
            confirmed.push(id.to_owned());
        }
        if confirmed.len() == enough {
            child.start_kill().unwrap();
        }
        line.clear();
    }
    let status = soon(child.wait()).await.unwrap();
    assert!(!status.success(), "the child ended by itself");
    confirmed
}

/// The child: publishes with several tasks, takes without settling, and never returns.
async fn publish_until_killed(directory: &Path) {
    let opened = open_embedded(directory, 1 << 30).await;
    let mut subscription = opened.queue.subscribe(8).await.unwrap();
    let publishers = (0..8).map(|publisher| {
        let queue = opened.publisher.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let event = event(format!("{}-{publisher}-{n}", std::process::id()));
                queue.publish(std::slice::from_ref(&event)).await.unwrap();
                println!("confirmed {}", event.id);
            }
        })
    });
    let taken = async {
        let mut held = Vec::new();
        while let Some(delivery) = subscription.next().await {
            held.push(delivery);
        }
    };
    tokio::join!(join_all(publishers), taken);
}
