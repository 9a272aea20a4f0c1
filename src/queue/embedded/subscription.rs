//! The subscription: delivers events, oldest first, and takes back what is returned.
//!
//! It reads ahead of the deliveries one page at a time, so that its memory does not grow with the log. It sleeps until
//! the writer reports progress, a delivery is settled or returned, or a delayed event is due. Dropping anything here
//! (a call, the subscription, a delivery) loses nothing: an event stays in the log until it is settled.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::domain::Redelivery;
use crate::queue::{DeadLetterReason, Delivery, Error, Payload, Settle, wire};

use super::change::{LogChange, LogEntry, Retention};
use super::commands::{EventPage, LogProgress, WriterHandle};
use super::window::{DeliveryWindow, NextAction};
use super::writer::REOPEN_AFTER;

/// How many events one read returns at most.
const PAGE: usize = 256;

/// The window that a subscription and its deliveries share.
#[derive(Debug)]
pub(super) struct SharedWindow {
    window: Mutex<DeliveryWindow>,
    /// Wakes the subscription when a delivery was settled or returned.
    changed: Notify,
}

/// The subscription of the embedded queue.
#[derive(Debug)]
pub(super) struct EmbeddedSubscription {
    shared: Arc<SharedWindow>,
    writer: WriterHandle,
    progress: watch::Receiver<LogProgress>,
    page: usize,
    epoch: u64,
    /// The position where the next read starts.
    cursor: u64,
    /// The position where the furthest read ended. An event below it may be unsettled or delayed.
    known: u64,
    fresh: VecDeque<LogEntry>,
    /// A pending read; kept here so that a cancelled call loses nothing.
    reading: Option<oneshot::Receiver<Result<EventPage, Error>>>,
}

/// The queue is closed.
struct QueueClosed;

impl SharedWindow {
    pub(super) fn new(prefetch: usize) -> Arc<Self> {
        Arc::new(Self { window: Mutex::new(DeliveryWindow::new(prefetch)), changed: Notify::new() })
    }

    /// Ends the subscription. Its unsettled events count as returned.
    pub(super) fn end(&self, writer: &WriterHandle) {
        let unsettled = self.window.lock().end();
        unsettled.into_iter().for_each(|position| writer.count_return(position));
        self.changed.notify_one();
    }
}

impl EmbeddedSubscription {
    pub(super) fn new(
        shared: Arc<SharedWindow>,
        writer: WriterHandle,
        progress: watch::Receiver<LogProgress>,
        prefetch: usize,
    ) -> Self {
        let epoch = progress.borrow().epoch;
        let page = prefetch.clamp(1, PAGE);
        let fresh = VecDeque::new();
        Self { shared, writer, progress, page, epoch, cursor: 0, known: 0, fresh, reading: None }
    }

    fn deliver(&self, entry: LogEntry) -> Delivery {
        let payload = match wire::decode(&entry.wire) {
            Ok(event) => Payload::Event(Arc::new(event)),
            Err(undecodable) => Payload::Undecodable(undecodable),
        };
        let redelivered = entry.returns;
        let retention = match &payload {
            Payload::Event(event) if event.again == Some(Redelivery::Restored) => Retention::Unmarked,
            Payload::Event(_) => Retention::Journal,
            Payload::Undecodable(_) => Retention::Discard,
        };
        let (shared, writer) = (self.shared.clone(), self.writer.clone());
        let unsettled = EmbeddedDelivery { entry: Some(entry), retention, shared, writer };
        Delivery::new(payload, redelivered, Box::new(unsettled))
    }

    /// Waits until the log may have more events and reads them. If none are wanted, waits for the end of the queue.
    /// Cancel-safe.
    async fn refill(&mut self, wanted: bool) -> Result<(), QueueClosed> {
        if !wanted {
            self.progress.wait_for(|_| false).await.map_err(|_| QueueClosed)?;
        }
        if self.reading.is_none() {
            let (epoch, cursor) = (self.epoch, self.cursor);
            self.progress.wait_for(|now| now.epoch != epoch || now.next() > cursor).await.map_err(|_| QueueClosed)?;
            self.start_over_in_a_new_epoch();
            self.reading = Some(self.writer.read(self.cursor, self.page));
        }
        let Some(reading) = &mut self.reading else { return Ok(()) };
        let page = reading.await;
        self.reading = None;
        match page {
            Ok(Ok(page)) => self.accept(page),
            // The writer has logged the failure and opens the file again after this time.
            Ok(Err(_)) => tokio::time::sleep(REOPEN_AFTER).await,
            Err(_) => return Err(QueueClosed),
        }
        Ok(())
    }

    fn accept(&mut self, page: EventPage) {
        if page.epoch != self.epoch {
            return self.start_over_in_a_new_epoch();
        }
        let (known, window) = (self.known, self.shared.window.lock());
        self.fresh.extend(
            page.entries.into_iter().filter(|entry| entry.position >= known || !window.contains(entry.position)),
        );
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
impl crate::queue::Subscription for EmbeddedSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        let shared = self.shared.clone();
        loop {
            if self.progress.has_changed().is_err() {
                return None;
            }
            // Where delayed events are always due, nothing is waited for below, and new events would never be read.
            if self.fresh.is_empty()
                && shared.window.lock().may_starve_new_events()
                && let Some(Err(QueueClosed)) = self.refill(true).now_or_never()
            {
                return None;
            }
            let action = shared.window.lock().next_action(Instant::now(), &mut self.fresh);
            let (wanted, until) = match action {
                NextAction::Deliver(entry) => return Some(self.deliver(entry)),
                NextAction::Wait { wanted, until } => (wanted, until),
                NextAction::End => return None,
            };
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            // `notify_one` stores a permit, so a change since the decision above is not missed.
            tokio::select! {
                () = shared.changed.notified() => {}
                () = due => {}
                read = self.refill(wanted) => if read.is_err() { return None },
            }
        }
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.shared.end(&self.writer);
    }
}

/// The settlement of one event. Dropped unsettled, it returns the event, which is delayed and redelivered.
#[derive(Debug)]
struct EmbeddedDelivery {
    /// `None` once it is settled.
    entry: Option<LogEntry>,
    retention: Retention,
    shared: Arc<SharedWindow>,
    writer: WriterHandle,
}

impl EmbeddedDelivery {
    async fn settle(mut self: Box<Self>, change: impl FnOnce(u64) -> LogChange) -> Result<(), Error> {
        if let Some(position) = self.entry.as_ref().map(|entry| entry.position) {
            self.writer.settle(change(position)).await?;
            self.entry = None;
            self.shared.window.lock().settled(position);
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

impl Drop for EmbeddedDelivery {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let position = entry.position;
        if self.shared.window.lock().returned(entry, Instant::now()) {
            self.writer.count_return(position);
            self.shared.changed.notify_one();
        }
    }
}

#[async_trait]
impl Settle for EmbeddedDelivery {
    async fn ack(self: Box<Self>) -> Result<(), Error> {
        let retention = self.retention;
        self.settle(|position| LogChange::Ack(position, retention)).await
    }

    async fn retry(self: Box<Self>) -> Result<(), Error> {
        drop(self);
        Ok(())
    }

    async fn dead_letter(self: Box<Self>, reason: DeadLetterReason) -> Result<(), Error> {
        let retention = self.retention;
        self.settle(|position| LogChange::DeadLetter(position, reason, retention)).await
    }
}
