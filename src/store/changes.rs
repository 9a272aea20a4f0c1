//! The change feed: what was applied to the store, as each lookup process hears it.
//!
//! An adapter publishes every applied event here, whichever process applied it. Readers follow at their own pace, from a
//! window of the latest items; publishing never waits for a reader. An adapter that hears of changes over the network begins
//! when the first reader comes: a process without streams does nothing for them. The feed promises to hide no gap: where
//! changes may have been lost (the connection of the adapter was broken, or a reader fell behind the window), the reader gets
//! [`FeedItem::Gap`] or [`Behind`], and must assume that anything has changed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{SetOnce, watch};
use tokio::time::timeout;

use crate::domain::{Key, Kind};
use crate::shutdown::Shutdown;

/// How many items a reader may be behind the latest one.
pub const WINDOW: usize = 8192;

/// The feed of one process; cloning shares it.
#[derive(Clone, Debug)]
pub struct ChangeFeed(Arc<Feed>);

#[derive(Debug)]
struct Feed {
    /// Identifies this feed: numbers of another process, or of an earlier run, mean nothing here.
    epoch: u64,
    items: Mutex<Items>,
    /// The number of the next item.
    next: watch::Sender<u64>,
    /// Set by the first reader.
    wanted: SetOnce<()>,
    /// Whether the adapter hears all changes.
    is_live: watch::Sender<bool>,
}

/// The latest items. The first one has the number `next - window.len()`.
#[derive(Debug, Default)]
struct Items {
    next: u64,
    window: VecDeque<FeedItem>,
}

/// An item of the feed.
#[derive(Clone, Debug)]
pub enum FeedItem {
    /// An event was applied to this entry.
    Change(Arc<AppliedChange>),
    /// Changes may be missing here.
    Gap,
}

/// An applied event.
#[derive(Debug)]
pub struct AppliedChange {
    /// The entry.
    pub key: Key,
    /// What happened to the customer. A merge is an update of each of its customers.
    pub kind: Kind,
}

/// The position of an item: where to resume after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedPosition {
    /// The feed.
    pub epoch: u64,
    /// The number of the next item.
    pub next: u64,
}

/// The reader is behind the window, or its position belongs to another feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the position is not in the window of the feed")]
pub struct Behind;

/// Reads the feed from a position.
#[derive(Debug)]
pub struct FeedReader {
    feed: ChangeFeed,
    next: u64,
    published: watch::Receiver<u64>,
}

impl ChangeFeed {
    /// Creates an empty feed. It is live if `is_live`; otherwise once its adapter says so.
    #[must_use]
    pub fn new(is_live: bool) -> Self {
        let (items, next, is_live) = (Mutex::default(), watch::Sender::new(0), watch::Sender::new(is_live));
        Self(Arc::new(Feed { epoch: rand::random(), items, next, wanted: SetOnce::new(), is_live }))
    }

    /// Publishes an applied event. That of an identifier is not published: it names no customer.
    pub fn publish(&self, key: Key, kind: Kind) {
        if key.is_identifier() {
            return;
        }
        self.push(FeedItem::Change(Arc::new(AppliedChange { key, kind })));
    }

    /// Records that the adapter hears all changes from now on, or none. Both make a gap.
    pub fn set_live(&self, is_live: bool) {
        // Who waits for `true` begins after the gap.
        self.0.is_live.send_replace(false);
        self.push(FeedItem::Gap);
        self.0.is_live.send_replace(is_live);
    }

    /// Spawns the task of an adapter, which begins when the first reader comes, if that is before the shutdown.
    pub fn spawn_when_wanted(&self, shutdown: &Shutdown, adapter: impl Future<Output = ()> + Send + 'static) {
        let (feed, stopping) = (self.clone(), shutdown.clone());
        shutdown.spawn(async move {
            tokio::select! {
                () = stopping.requested() => return,
                &() = feed.0.wanted.wait() => {}
            }
            adapter.await;
        });
    }

    /// Has the adapter hear the changes from now on, and returns whether it does within `patience`, and before a shutdown.
    pub async fn hears(&self, patience: Duration, shutdown: &Shutdown) -> bool {
        // Only the first one sets it.
        let _ = self.0.wanted.set(());
        let mut is_live = self.0.is_live.subscribe();
        tokio::select! {
            live = timeout(patience, is_live.wait_for(|is_live| *is_live)) => live.is_ok(),
            () = shutdown.requested() => false,
        }
    }

    /// Returns what identifies this feed in its positions.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    fn push(&self, item: FeedItem) {
        let mut items = self.0.items.lock();
        if items.window.len() == WINDOW {
            items.window.pop_front();
        }
        items.window.push_back(item);
        items.next += 1;
        self.0.next.send_replace(items.next);
    }

    /// Returns a reader of the items from now on.
    #[must_use]
    pub fn read(&self) -> FeedReader {
        let published = self.0.next.subscribe();
        let next = self.0.items.lock().next;
        FeedReader { feed: self.clone(), next, published }
    }

    /// Returns a reader of the items from a position on.
    ///
    /// # Errors
    ///
    /// The items from there on are not known any more.
    pub fn resume(&self, from: FeedPosition) -> Result<FeedReader, Behind> {
        let mut reader = self.read();
        let oldest = {
            let items = self.0.items.lock();
            items.next - items.window.len() as u64
        };
        if from.epoch != self.0.epoch || !(oldest..=reader.next).contains(&from.next) {
            return Err(Behind);
        }
        reader.next = from.next;
        Ok(reader)
    }
}

impl FeedReader {
    /// Returns the next item, and the position after it. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The reader is behind the window.
    pub async fn next(&mut self) -> Result<(FeedItem, FeedPosition), Behind> {
        // The sender lives as long as the feed, which this reader keeps.
        let next = self.next;
        let _ = self.published.wait_for(|published| *published > next).await;
        self.take()
    }

    /// Returns the next item as [`next`](Self::next) does, if it is published already.
    pub fn ready(&mut self) -> Option<Result<(FeedItem, FeedPosition), Behind>> {
        let is_published = *self.published.borrow() > self.next;
        is_published.then(|| self.take())
    }

    fn take(&mut self) -> Result<(FeedItem, FeedPosition), Behind> {
        let items = self.feed.0.items.lock();
        let oldest = items.next - items.window.len() as u64;
        let at = self.next.checked_sub(oldest).and_then(|at| usize::try_from(at).ok());
        let item = at.and_then(|at| items.window.get(at)).cloned().ok_or(Behind)?;
        drop(items);
        self.next += 1;
        Ok((item, self.position()))
    }

    /// Returns the position of the next item.
    #[must_use]
    pub fn position(&self) -> FeedPosition {
        FeedPosition { epoch: self.feed.0.epoch, next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    fn key(n: u8) -> Key {
        Key::new(&"10001".parse().unwrap(), crate::domain::Digest::from_bytes([n; 16]))
    }

    async fn next(reader: &mut FeedReader) -> Option<u8> {
        match reader.next().await.unwrap().0 {
            FeedItem::Change(change) => Some(change.key.digest().as_bytes()[0]),
            FeedItem::Gap => None,
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_is_published_after_it_began() {
        let feed = ChangeFeed::new(true);
        feed.publish(key(1), Kind::Updated);
        let mut reader = feed.read();
        feed.publish(key(2), Kind::Updated);
        feed.set_live(true);
        feed.publish(key(3), Kind::Deleted);
        assert_eq!(next(&mut reader).await, Some(2));
        assert_eq!(next(&mut reader).await, None);
        assert_eq!(next(&mut reader).await, Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_reader_has_the_adapter_begin_and_waits_for_it() {
        let (feed, (running, shutdown)) = (ChangeFeed::new(false), Shutdown::new());
        let (adapter, (begins, mut begun)) = (feed.clone(), oneshot::channel());
        feed.spawn_when_wanted(&shutdown, async move {
            begins.send(()).unwrap();
            adapter.set_live(true);
        });
        assert!(timeout(Duration::from_secs(60), &mut begun).await.is_err(), "nobody reads");
        assert!(feed.hears(Duration::from_secs(1), &shutdown).await);
        begun.await.unwrap();
        feed.set_live(false);
        let (cut_off, patience) = (Instant::now(), Duration::from_secs(1));
        assert!(!feed.hears(patience, &shutdown).await, "the adapter is cut off");
        assert_eq!(cut_off.elapsed(), patience);
        assert!(running.drain(patience).await);
        assert!(!feed.hears(patience, &shutdown).await, "the process stops");
        assert_eq!(cut_off.elapsed(), patience, "a shutdown does not wait");
    }

    #[tokio::test]
    async fn a_reader_resumes_within_the_window_of_the_same_feed_only() {
        let feed = ChangeFeed::new(true);
        let mut reader = feed.read();
        let start = reader.position();
        feed.publish(key(1), Kind::Updated);
        let (_, after) = reader.next().await.unwrap();
        feed.publish(key(2), Kind::Updated);
        assert_eq!(next(&mut feed.resume(after).unwrap()).await, Some(2));
        assert_eq!(next(&mut feed.resume(start).unwrap()).await, Some(1));
        assert!(ChangeFeed::new(true).resume(start).is_err());
        assert!(feed.resume(FeedPosition { next: after.next + 2, ..after }).is_err());
        for _ in 0..WINDOW {
            feed.publish(key(3), Kind::Updated);
        }
        assert!(feed.resume(after).is_err());
        assert_eq!(reader.next().await.unwrap_err(), Behind);
    }
}
