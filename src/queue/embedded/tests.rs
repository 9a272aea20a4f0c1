//! What the contract suite cannot cover: the disk, the file and its content.

mod faulty_disk;
mod restores;
mod space;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::clock::ManualClock;
use crate::domain::{Redelivery, Timestamp};
use crate::queue::{DeadLetterReason, Delivery, Payload};

use super::log::Log;
use super::tables::{DEAD_LETTERS, RETURNS};
use super::*;

use faulty_disk::{FaultyDisk, FaultyFile};

const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_500);
const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);
const LIMITS: LogLimits =
    LogLimits { max_bytes: 1 << 30, journal: JournalLimits { max_bytes: 1 << 20, retention: HOUR } };

fn open_on(disk: &Arc<FaultyDisk>, directory: &Path) -> Arc<Embedded> {
    let (disk, path) = (disk.clone(), directory.join(file::NAME));
    let opener = move || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let file = FaultyFile { disk: disk.clone(), file: FileBackend::new(file).unwrap() };
        let unavailable = |error: String| Error::Unavailable { reason: error };
        let file = Database::builder().create_with_backend(file).map_err(|error| unavailable(error.to_string()))?;
        Log::new(file, LIMITS, None).map_err(|error| unavailable(error.to_string()))
    };
    Embedded::start(Box::new(opener), ManualClock::at(NOW), &Shutdown::default()).unwrap()
}

fn config(directory: &Path) -> Config {
    let (max_bytes, journal_max_bytes) = (ByteSize::gib(1), ByteSize::mib(1));
    Config { path: directory.to_owned(), max_bytes, journal_max_bytes, journal_retention: HOUR }
}

fn open(directory: &Path) -> Result<Arc<Embedded>, Error> {
    Embedded::open(&config(directory), ManualClock::at(NOW), &Shutdown::default())
}

fn event(id: impl std::fmt::Display) -> Event {
    Event { id: id.to_string().parse().unwrap(), received_at: NOW, ..Event::example() }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("took too long")
}

/// Repeats until it succeeds; each attempt goes through the whole queue.
async fn eventually<T, F: Future<Output = Result<T, Error>>>(mut attempt: impl FnMut() -> F) -> T {
    soon(async {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

fn id(delivery: &Delivery) -> String {
    match delivery.payload() {
        Payload::Event(event) => event.id.to_string(),
        Payload::Undecodable(undecodable) => panic!("not an event: {undecodable:?}"),
    }
}

fn reason(outcome: Result<impl std::fmt::Debug, Error>) -> String {
    match outcome {
        Err(Error::Unavailable { reason }) => reason,
        other => panic!("expected to be unavailable, got {other:?}"),
    }
}

#[tokio::test]
async fn publishers_that_wait_for_the_disk_share_an_fsync() {
    const PUBLISHERS: usize = 200;
    let (disk, directory) = (Arc::new(FaultyDisk::default()), tempfile::tempdir().unwrap());
    let queue = open_on(&disk, directory.path());
    disk.held.store(true, Ordering::SeqCst);
    let before = disk.syncs.load(Ordering::SeqCst);
    let events: Vec<_> = (0..PUBLISHERS).map(|n| [event(n)]).collect();
    let mut publishers: Vec<_> = events.iter().map(|event| queue.publish(event)).collect();
    // One poll each sends all of them before the first can reach the disk.
    for publisher in &mut publishers {
        assert!(futures_util::poll!(publisher).is_pending());
    }
    disk.held.store(false, Ordering::SeqCst);
    let outcomes = soon(join_all(publishers)).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!((1..10).contains(&syncs), "{syncs} fsyncs for {PUBLISHERS} publishers");
}

#[tokio::test]
async fn acknowledgements_share_fsyncs_and_are_durable_after_a_close() {
    const EVENTS: usize = 300;
    let (disk, directory) = (Arc::new(FaultyDisk::default()), tempfile::tempdir().unwrap());
    let queue = open_on(&disk, directory.path());
    let events: Vec<_> = (0..EVENTS).map(event).collect();
    queue.publish(&events).await.unwrap();
    let mut subscription = queue.subscribe(1).await.unwrap();
    let before = disk.syncs.load(Ordering::SeqCst);
    for _ in 0..EVENTS {
        soon(subscription.next()).await.unwrap().ack().await.unwrap();
    }
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < EVENTS / 4, "{syncs} fsyncs for {EVENTS} acknowledgements");
    queue.close().await.unwrap();
    assert_eq!(open_on(&disk, directory.path()).depth().await.unwrap().events, 0);
}

#[tokio::test]
async fn acknowledgements_reach_the_disk_without_a_publish() {
    let (disk, directory) = (Arc::new(FaultyDisk::default()), tempfile::tempdir().unwrap());
    let queue = open_on(&disk, directory.path());
    queue.publish(&[event(1)]).await.unwrap();
    let mut subscription = queue.subscribe(1).await.unwrap();
    let before = disk.syncs.load(Ordering::SeqCst);
    soon(subscription.next()).await.unwrap().ack().await.unwrap();
    soon(async {
        while disk.syncs.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_disk_refuses_publishers_and_is_used_again_after_recovery() {
    let (disk, directory) = (Arc::new(FaultyDisk::default()), tempfile::tempdir().unwrap());
    let queue = open_on(&disk, directory.path());
    let mut subscription = queue.subscribe(4).await.unwrap();
    queue.publish(&[event("kept"), event("acked")]).await.unwrap();
    let kept = soon(subscription.next()).await.unwrap();
    soon(subscription.next()).await.unwrap().ack().await.unwrap();

    disk.broken.store(true, Ordering::SeqCst);
    let refused = reason(queue.publish(&[event("refused")]).await);
    assert!(refused.starts_with("the queue's file failed: "), "{refused}");
    reason(queue.ping().await);
    reason(kept.ack().await);

    disk.broken.store(false, Ordering::SeqCst);
    eventually(|| queue.ping()).await;
    queue.publish(&[event("later")]).await.unwrap();
    // The refused and the acknowledged event may be in the log; the other two must be.
    let mut found = BTreeSet::new();
    while queue.depth().await.unwrap().events > 0 {
        let delivery = soon(subscription.next()).await.unwrap();
        found.insert(id(&delivery));
        delivery.ack().await.unwrap();
    }
    assert!(found.is_superset(&BTreeSet::from(["kept".to_owned(), "later".to_owned()])), "{found:?}");
}

#[tokio::test]
async fn the_next_publisher_finds_a_recovered_disk() {
    let (disk, directory) = (Arc::new(FaultyDisk::default()), tempfile::tempdir().unwrap());
    let queue = open_on(&disk, directory.path());
    disk.broken.store(true, Ordering::SeqCst);
    reason(queue.publish(&[event("refused")]).await);
    disk.broken.store(false, Ordering::SeqCst);
    let later = [event("later")];
    eventually(|| queue.publish(&later)).await;
    let mut subscription = queue.subscribe(4).await.unwrap();
    while id(&soon(subscription.next()).await.unwrap()) != "later" {}
}

#[tokio::test]
async fn a_directory_in_use_is_refused_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/queue");
    let queue = open(&path).unwrap();
    let refused = reason(open(&path));
    assert_eq!(refused, format!("{} is in use by another process", path.join(file::NAME).display()));
    queue.close().await.unwrap();
    open(&path).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file::NAME);
    let queue = open(directory.path()).unwrap();
    queue.publish(&(0..500).map(event).collect::<Vec<_>>()).await.unwrap();
    queue.close().await.unwrap();
    let sound = std::fs::read(&path).unwrap();

    let needle = sound.windows(7).rposition(|bytes| bytes == b"\"10001\"").unwrap();
    let mut flipped = sound.clone();
    flipped[needle] ^= 1;
    for damaged in [b"this is no queue".repeat(1_000), sound[..sound.len() / 2].to_vec(), flipped] {
        std::fs::write(&path, &damaged).unwrap();
        let refused = reason(open(directory.path()));
        assert!(refused.contains("queue.redb is damaged or not a queue file"), "{refused}");
        assert!(std::fs::read(&path).unwrap() == damaged, "the file was changed");
    }
    std::fs::write(&path, &sound).unwrap();
    assert_eq!(open(directory.path()).unwrap().depth().await.unwrap().events, 500);
}

#[tokio::test]
async fn a_dead_letter_has_a_reason_and_an_event_but_no_undecodable_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    queue.publish(&[event("poison")]).await.unwrap();
    queue.writer.append(vec!["secret".into()], 6).await.unwrap();
    let mut subscription = queue.subscribe(2).await.unwrap();
    let poison = soon(subscription.next()).await.unwrap();
    poison.dead_letter(DeadLetterReason::RedeliveredTooOften).await.unwrap();
    soon(subscription.next()).await.unwrap().dead_letter(DeadLetterReason::Undecodable).await.unwrap();
    queue.close().await.unwrap();

    let file = Database::open(directory.path().join(file::NAME)).unwrap();
    let letters = file.begin_read().unwrap().open_table(DEAD_LETTERS).unwrap();
    let letters: Vec<serde_json::Value> =
        letters.iter().unwrap().map(|row| serde_json::from_slice(row.unwrap().1.value()).unwrap()).collect();
    let wire = wire::encode(&event("poison"));
    assert_eq!(letters[0]["reason"], "redelivered-too-often");
    assert_eq!(letters[0]["at"], NOW.as_millis());
    assert_eq!(letters[0]["event"], serde_json::from_slice::<serde_json::Value>(&wire).unwrap());
    let expected = serde_json::json!({
        "reason": "undecodable", "at": NOW.as_millis(), "length": 6,
        "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
    });
    assert_eq!(letters[1], expected);
}

#[tokio::test]
async fn a_file_of_the_first_release_opens_without_loss() {
    const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
    const RETURNS: TableDefinition<'_, u64, u32> = TableDefinition::new("returns");
    const JOURNAL: TableDefinition<'_, u64, (i64, &[u8])> = TableDefinition::new("journal");
    const DEAD_LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead_letters");
    let directory = tempfile::tempdir().unwrap();
    let file = Database::create(directory.path().join("queue.redb")).unwrap();
    let txn = file.begin_write().unwrap();
    let settled = wire::encode(&event("settled"));
    txn.open_table(JOURNAL).unwrap().insert(7, (NOW.as_millis(), &*settled)).unwrap();
    txn.open_table(EVENTS).unwrap().insert(4, &*wire::encode(&event("returned"))).unwrap();
    txn.open_table(EVENTS).unwrap().insert(5, &*wire::encode(&event("waiting"))).unwrap();
    txn.open_table(RETURNS).unwrap().insert(4, 2).unwrap();
    let letter = serde_json::json!({
        "reason": "redelivered-too-often", "at": NOW.as_millis(), "length": 1, "sha256": "00",
        "event": serde_json::from_slice::<serde_json::Value>(&wire::encode(&event("poison"))).unwrap(),
    });
    txn.open_table(DEAD_LETTERS).unwrap().insert(3, letter.to_string().as_bytes()).unwrap();
    txn.commit().unwrap();
    drop(file);

    let queue = open(directory.path()).unwrap();
    let bytes = wire::encode(&event("returned")).len() + wire::encode(&event("waiting")).len();
    let depth = Depth { events: 2, bytes: Some(bytes as u64), oldest: None, dead_letters: 1 };
    assert_eq!(queue.depth().await.unwrap(), depth);
    let mut journal = queue.journal(NOW).await.unwrap().unwrap();
    let ids = |events: Vec<Event>| events.iter().map(|event| event.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(journal.next().await.unwrap().unwrap()), ["returned", "waiting", "settled"]);
    let letters = queue.list(10).await.unwrap();
    assert_eq!((letters[0].id.as_str(), letters[0].reason.as_str()), ("3", "redelivered-too-often"));

    queue.redrive(&DeadLetterSelection::All).await.unwrap();
    let mut subscription = queue.subscribe(8).await.unwrap();
    for (expected, redelivered) in [("returned", 2), ("waiting", 0), ("poison", 0)] {
        let delivery = soon(subscription.next()).await.unwrap();
        assert_eq!((id(&delivery).as_str(), delivery.redelivered()), (expected, redelivered));
        delivery.ack().await.unwrap();
    }
    queue.close().await.unwrap();
    let file = Database::open(directory.path().join("queue.redb")).unwrap();
    let rows = file.begin_read().unwrap().open_table(super::journal::JOURNAL).unwrap();
    let positions: Vec<u64> = rows.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
    // The redriven event got a position after every earlier one.
    assert_eq!(positions, [4, 5, 7, 8]);
}

#[tokio::test]
async fn dead_letters_count_against_the_limit_and_are_never_refused() {
    let directory = tempfile::tempdir().unwrap();
    let size = wire::encode(&event(1)).len() as u64;
    let config = Config { max_bytes: ByteSize(size * 2), ..config(directory.path()) };
    let queue = Embedded::open(&config, ManualClock::at(NOW), &Shutdown::default()).unwrap();
    queue.publish(&[event(1), event(2)]).await.unwrap();
    let mut subscription = queue.subscribe(1).await.unwrap();
    for _ in 0..2 {
        soon(subscription.next()).await.unwrap().dead_letter(DeadLetterReason::RedeliveredTooOften).await.unwrap();
    }
    assert_eq!(queue.depth().await.unwrap(), Depth { events: 0, bytes: Some(0), oldest: None, dead_letters: 2 });
    assert!(matches!(queue.publish(&[event(3)]).await, Err(Error::Full { .. })));
}

#[test]
fn a_file_that_is_gone_is_not_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let opener = file::opener(directory.path().to_owned(), LIMITS);
    drop(opener().unwrap());
    drop(opener().unwrap());
    std::fs::remove_file(directory.path().join(file::NAME)).unwrap();
    let Err(error) = opener() else { panic!("it was created") };
    assert!(error.to_string().contains("is its file system mounted?"), "{error}");
}

#[tokio::test]
async fn a_settled_event_leaves_no_count_of_returns() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    queue.publish(&[event(1)]).await.unwrap();
    let mut subscription = queue.subscribe(1).await.unwrap();
    soon(subscription.next()).await.unwrap().retry().await.unwrap();
    let held = soon(subscription.next()).await.unwrap();
    // The end of the subscription counts the unsettled event, which is settled later.
    drop(subscription);
    held.ack().await.unwrap();
    queue.close().await.unwrap();
    let file = Database::open(directory.path().join(file::NAME)).unwrap();
    assert!(file.begin_read().unwrap().open_table(RETURNS).unwrap().first().unwrap().is_none());
}

#[tokio::test]
async fn a_later_subscription_takes_over_unsettled_events() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).unwrap();
    queue.publish(&[event(1)]).await.unwrap();
    let mut first = queue.subscribe(1).await.unwrap();
    let held = soon(first.next()).await.unwrap();
    let mut second = queue.subscribe(1).await.unwrap();
    assert!(soon(first.next()).await.is_none());
    let again = soon(second.next()).await.unwrap();
    assert_eq!((id(&again), again.redelivered()), ("1".to_owned(), 1));
    // Settling it twice does no harm.
    held.ack().await.unwrap();
    again.ack().await.unwrap();
    assert_eq!(queue.depth().await.unwrap().events, 0);
}

#[tokio::test]
async fn a_clock_that_is_days_ahead_removes_nothing_from_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(NOW);
    let open = || Embedded::open(&config(directory.path()), clock.clone(), &Shutdown::default()).unwrap();
    let read = async |queue: &Embedded| {
        let mut journal = queue.journal(NOW).await.unwrap().unwrap();
        journal.next().await.unwrap().unwrap_or_default().len()
    };
    let queue = open();
    let mut subscription = queue.subscribe(1).await.unwrap();
    queue.publish(&[event(1)]).await.unwrap();
    soon(subscription.next()).await.unwrap().ack().await.unwrap();
    clock.advance(HOUR * 24 * 7);
    queue.publish(&[event(2)]).await.unwrap();
    soon(subscription.next()).await.unwrap().ack().await.unwrap();
    assert_eq!(read(&queue).await, 2);
    drop(subscription);
    queue.close().await.unwrap();
    // A settlement of the wrong time is the newest in the journal now.
    for count in 3..6 {
        let queue = open();
        queue.publish(&[event(count)]).await.unwrap();
        assert_eq!(read(&queue).await, count);
        queue.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_writer_thread_is_tracked_and_ends_on_close() {
    let directory = tempfile::tempdir().unwrap();
    let (controller, shutdown) = Shutdown::new();
    let queue = Embedded::open(&config(directory.path()), ManualClock::at(NOW), &shutdown).unwrap();
    let drained = controller.drain(PATIENCE);
    let close = async {
        shutdown.requested().await;
        queue.publish(&[event(1)]).await.unwrap();
        queue.close().await.unwrap();
    };
    let (drained, ()) = tokio::join!(drained, close);
    assert!(drained);
}
