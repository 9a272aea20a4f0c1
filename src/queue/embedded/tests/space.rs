//! The space that the files take on the disk.

use std::os::unix::fs::MetadataExt;

use super::*;

const MIB: u64 = 1 << 20;

/// The limits of the queue here.
const EVENTS: u64 = 16 * MIB;
const JOURNAL: u64 = 2 * MIB;

fn open_small(directory: &Path) -> Arc<Embedded> {
    let (max_bytes, journal_max_bytes) = (ByteSize(EVENTS), ByteSize(JOURNAL));
    let config = Config { max_bytes, journal_max_bytes, ..config(directory) };
    Embedded::open(&config, ManualClock::at(NOW), &Shutdown::default()).unwrap()
}

/// Returns what all files together take of the disk.
fn taken(directory: &Path) -> u64 {
    std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Publishes until the queue is full; returns the number of events.
async fn fill(queue: &Embedded) -> usize {
    let mut count = 0;
    loop {
        let events: Vec<Event> = (count..count + 500).map(event).collect();
        match queue.publish(&events).await {
            Ok(()) => count += 500,
            Err(Error::Full { .. }) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Settles until nothing is left, many at once and in no order.
async fn settle_all(queue: &Embedded) -> usize {
    let mut subscription = queue.subscribe(64).await.unwrap();
    let mut settled = 0;
    while queue.depth().await.unwrap().events > 0 {
        let waiting = queue.depth().await.unwrap().events.min(64);
        let mut held = Vec::new();
        for _ in 0..waiting {
            held.push(soon(subscription.next()).await.unwrap());
        }
        let third = held.len() / 3;
        held.rotate_left(third);
        settled += held.len();
        join_all(held.into_iter().map(Delivery::ack)).await.into_iter().for_each(Result::unwrap);
    }
    settled
}

#[tokio::test]
async fn the_files_stay_within_the_limits_and_shrink_when_the_queue_is_idle() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open_small(directory.path());
    for round in 0..3 {
        let events = fill(&queue).await;
        let (bytes, size) = (queue.size().bytes, taken(directory.path()));
        println!("{round}: {size} bytes are taken by {events} events of {bytes} bytes");
        assert!(bytes > EVENTS / 8 * 5, "only {bytes} bytes of events");
        assert!(size <= EVENTS + JOURNAL, "{size} bytes are taken by {bytes} bytes of events");
        assert_eq!(settle_all(&queue).await, events);
        let (kept, size) = (queue.progress.borrow().totals.journal.bytes, taken(directory.path()));
        println!("{round}: {size} bytes are taken by {kept} bytes of the journal");
        assert!(kept > JOURNAL / 10 * 9 && size <= EVENTS + JOURNAL, "{size} bytes are taken by the journal");
    }
    let mut longest = Duration::ZERO;
    soon(async {
        while taken(directory.path()) > EVENTS / 2 {
            let began = tokio::time::Instant::now();
            queue.ping().await.unwrap();
            longest = longest.max(began.elapsed());
        }
    })
    .await;
    println!("{} bytes are taken in the end, after {longest:?}", taken(directory.path()));
    queue.close().await.unwrap();
    let queue = open_small(directory.path());
    assert_eq!(queue.depth().await.unwrap().events, 0);
    queue.publish(&[event("later")]).await.unwrap();
}

#[tokio::test]
async fn a_lost_or_sparse_reserve_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let reserve = directory.path().join("queue.reserve");
    open_small(directory.path()).close().await.unwrap();
    let whole = reserve.metadata().unwrap().blocks();
    assert!(whole * 512 >= EVENTS / 8);

    std::fs::remove_file(&reserve).unwrap();
    std::fs::File::create(&reserve).unwrap().set_len(EVENTS / 8).unwrap();
    open_small(directory.path()).close().await.unwrap();
    assert_eq!(reserve.metadata().unwrap().blocks(), whole);

    std::fs::remove_file(&reserve).unwrap();
    open_small(directory.path()).close().await.unwrap();
    assert_eq!(reserve.metadata().unwrap().blocks(), whole);
}
