//! The one subscription: hands events out, oldest first, and takes them back.
//!
//! It reads ahead of its cursor a page at a time, so that what is in memory does not grow with the
//! log; it sleeps until the writer shows progress, a delivery is settled, or a resting event is due.
//! Whatever is dropped here (the call, the subscription, a delivery) stands in the log until it is
//! settled.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::domain::Redelivery;
use crate::queue::{Delivery, Error, Payload, Reason, Settle, wire};

use super::commands::Commands;
use super::log::{Change, Entry, Keeping};
use super::window::{Step, Window};
use super::writer::{Page, Progress, REOPEN_AFTER};

/// The most events that are read at once.
const PAGE: usize = 256;

/// What a subscription and its deliveries share.
#[derive(Debug)]
pub(super) struct Shared {
    window: Mutex<Window>,
    /// Wakes the subscription when a delivery was settled or came back.
    changed: Notify,
}

/// Hands out events.
#[derive(Debug)]
pub(super) struct Subscription {
    shared: Arc<Shared>,
    commands: Commands,
    progress: watch::Receiver<Progress>,
    page: usize,
    epoch: u64,
    /// Where the next read begins.
    cursor: u64,
    /// Where the furthest read ended: below it an event may be out or resting.
    known: u64,
    fresh: VecDeque<Entry>,
    /// A read under way; kept here so that a cancelled call loses nothing.
    reading: Option<oneshot::Receiver<Result<Page, Error>>>,
}

/// The queue is closed.
struct Closed;

impl Shared {
    pub(super) fn new(prefetch: usize) -> Arc<Self> {
        Arc::new(Self { window: Mutex::new(Window::new(prefetch)), changed: Notify::new() })
    }

    /// Ends the subscription: what it has out counts as returned.
    pub(super) fn end(&self, commands: &Commands) {
        let out = self.window.lock().end();
        out.into_iter().for_each(|seq| commands.count_return(seq));
        self.changed.notify_one();
    }
}

impl Subscription {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: Commands,
        progress: watch::Receiver<Progress>,
        prefetch: usize,
    ) -> Self {
        let epoch = progress.borrow().epoch;
        let page = prefetch.clamp(1, PAGE);
        let fresh = VecDeque::new();
        Self { shared, commands, progress, page, epoch, cursor: 0, known: 0, fresh, reading: None }
    }

    fn hand_out(&self, entry: Entry) -> Delivery {
        let payload = match wire::decode(&entry.wire) {
            Ok(event) => Payload::Event(Arc::new(event)),
            Err(undecodable) => Payload::Undecodable(undecodable),
        };
        let redelivered = entry.returns;
        let keeping = match &payload {
            Payload::Event(event) if event.again != Some(Redelivery::Restored) => Keeping::Keep,
            Payload::Event(_) | Payload::Undecodable(_) => Keeping::Forget,
        };
        let out = Out { entry: Some(entry), keeping, shared: self.shared.clone(), commands: self.commands.clone() };
        Delivery::new(payload, redelivered, Box::new(out))
    }

    /// Waits until the log may have more, then reads it; when nothing is wanted, only for the end of the
    /// queue. Cancel-safe.
    async fn refill(&mut self, wanted: bool) -> Result<(), Closed> {
        if !wanted {
            self.progress.wait_for(|_| false).await.map_err(|_| Closed)?;
        }
        if self.reading.is_none() {
            let (epoch, cursor) = (self.epoch, self.cursor);
            self.progress.wait_for(|now| now.epoch != epoch || now.next > cursor).await.map_err(|_| Closed)?;
            self.start_over_in_a_new_epoch();
            self.reading = Some(self.commands.read(self.cursor, self.page));
        }
        let Some(reading) = &mut self.reading else { return Ok(()) };
        let page = reading.await;
        self.reading = None;
        match page {
            Ok(Ok(page)) => self.take_in(page),
            // The writer has told why; it tries again by then.
            Ok(Err(_)) => tokio::time::sleep(REOPEN_AFTER).await,
            Err(_) => return Err(Closed),
        }
        Ok(())
    }

    fn take_in(&mut self, page: Page) {
        if page.epoch != self.epoch {
            return self.start_over_in_a_new_epoch();
        }
        let (known, window) = (self.known, self.shared.window.lock());
        self.fresh.extend(page.entries.into_iter().filter(|entry| entry.seq >= known || !window.holds(entry.seq)));
        self.cursor = page.next;
        self.known = self.known.max(page.next);
    }

    fn start_over_in_a_new_epoch(&mut self) {
        let epoch = self.progress.borrow().epoch;
        if epoch != self.epoch {
            (self.epoch, self.cursor) = (epoch, 0);
            self.fresh.clear();
        }
    }
}

#[async_trait]
impl crate::queue::Subscription for Subscription {
    async fn next(&mut self) -> Option<Delivery> {
        let shared = self.shared.clone();
        loop {
            if self.progress.has_changed().is_err() {
                return None;
            }
            let step = shared.window.lock().step(Instant::now(), &mut self.fresh);
            let (wanted, until) = match step {
                Step::Deliver(entry) => return Some(self.hand_out(entry)),
                Step::Wait { wanted, until } => (wanted, until),
                Step::End => return None,
            };
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            // `notify_one` leaves a permit behind, so a change since the step above is not missed.
            tokio::select! {
                () = shared.changed.notified() => {}
                () = due => {}
                read = self.refill(wanted) => if read.is_err() { return None },
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.end(&self.commands);
    }
}

/// One event that is out. Dropped unsettled, it goes to rest and comes again.
#[derive(Debug)]
struct Out {
    /// Taken out when it is settled.
    entry: Option<Entry>,
    keeping: Keeping,
    shared: Arc<Shared>,
    commands: Commands,
}

impl Out {
    async fn settle(mut self: Box<Self>, change: impl FnOnce(u64) -> Change) -> Result<(), Error> {
        if let Some(seq) = self.entry.as_ref().map(|entry| entry.seq) {
            self.commands.settle(change(seq)).await?;
            self.entry = None;
            self.shared.window.lock().settled(seq);
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let seq = entry.seq;
        if self.shared.window.lock().came_back(entry, Instant::now()) {
            self.commands.count_return(seq);
            self.shared.changed.notify_one();
        }
    }
}

#[async_trait]
impl Settle for Out {
    async fn ack(self: Box<Self>) -> Result<(), Error> {
        let keeping = self.keeping;
        self.settle(|seq| Change::Settle(seq, keeping)).await
    }

    async fn retry(self: Box<Self>) -> Result<(), Error> {
        drop(self);
        Ok(())
    }

    async fn dead_letter(self: Box<Self>, reason: Reason) -> Result<(), Error> {
        let keeping = self.keeping;
        self.settle(|seq| Change::Bury(seq, reason, keeping)).await
    }
}
