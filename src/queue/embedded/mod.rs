//! The embedded queue: a durable log in a local file.
//!
//! # Guarantees
//!
//! `publish` returns after an fsync that covers all its events; many publishers share one fsync. An event stays in the
//! file until it is acknowledged or becomes a dead letter, so a `kill -9` at any moment costs at most a redelivery.
//! Acknowledgements and the counts of redeliveries are fsynced within 200 ms or by the next publish, whichever is first.
//! A crash is not counted as a redelivery, and may lose the counts of its last moments.
//!
//! # Parts
//!
//! ```text
//! publish ──┐                         ┌── one transaction, one fsync ── file
//! settle  ──┼─ commands ── writer ────┤
//! read    ──┘  (bounded)   (thread)   └── progress (watched) ── subscription ── deliveries
//! ```
//!
//! `log` is the file, `disk` and `reserve` its space, `tables` and `sized_table` its tables, `journal` the table of settled
//! events. `writer` is the one thread that owns the file, `commands` its interface. `subscription` delivers events, oldest
//! first; `window` decides which. A returned event waits for 100 ms, doubled up to 5 s, while others are delivered. The file
//! is locked: one process has it, with one subscription at a time. A new subscription takes over the unsettled deliveries
//! of an older one, whose `next` then returns `None`.
//!
//! # Failures
//!
//! - The queue is full: a publish is refused as a whole; a smaller one may still fit. Dead letters count against the
//!   limit and are never dropped.
//! - The disk is full: publishers get [`Error::DiskFull`], `ping` fails, and the journal is shortened. Events are delivered
//!   and settled, for which space is reserved (`disk`).
//! - The disk fails or hangs: publishers get [`Error::Unavailable`], `ping` fails, deliveries can continue but cannot be
//!   settled. The queue recovers when the disk does. A publish that got an error may be in the log.
//! - The file is damaged: `open` refuses it and does not change it.
//! - The writer panics, which is a bug of this program: the queue is closed, and every call returns
//!   [`Error::Closed`].
//!
//! # Shutdown
//!
//! The queue accepts settlements until [`Embedded::close`], even after a shutdown was requested, since a drain needs
//! them. [`Shutdown`] only tracks the thread. Call `close` last, before waiting for the tracked tasks.
//!
//! The file contains events, which carry no personal data.

mod change;
mod commands;
mod dead_letter;
mod disk;
mod file;
mod journal;
mod journal_reader;
mod log;
mod reserve;
mod reserved_file;
mod sized_table;
mod subscription;
mod tables;
mod window;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

use crate::clock::SharedClock;
use crate::domain::{Event, Timestamp};
use crate::shutdown::Shutdown;

use super::{
    DeadLetter, DeadLetterSelection, DeadLetters, Depth, Error, Journal, MAX_SEARCHED, Payload, Publisher, Queue,
    Redriven, RestoreOutcome, Subscription, wire,
};

use change::{JournalLimits, LogChange, LogLimits};
use commands::{LogProgress, WriterHandle};
use journal_reader::JournalReader;
use subscription::{EmbeddedSubscription, SharedWindow};
use tables::LogTotals;
use writer::{LogOpener, LogWriter};

pub(super) use file::NAME as FILE_NAME;

/// The longest that [`Embedded::close`] waits for the file to be closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How many dead letters are read at once.
const DEAD_LETTERS_PAGE: usize = 256;

/// `[queue.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of the log; created if it does not exist.
    pub path: PathBuf,
    /// The limit of unsettled events and dead letters in bytes, beyond which publishers are refused. The files take this (4 MiB
    /// at least) and `journal_max_bytes` of the disk.
    pub max_bytes: ByteSize,
    /// The limit of settled events, kept for a replay, in bytes; the oldest are deleted first.
    pub journal_max_bytes: ByteSize,
    /// How long settled events are kept.
    #[serde(with = "humantime_serde")]
    pub journal_retention: Duration,
}

/// What a log holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogSize {
    /// Unsettled events.
    pub(super) events: u64,
    /// The bytes that count against the limit.
    pub(super) bytes: u64,
    /// Dead letters.
    pub(super) dead_letters: u64,
    /// How many bytes may be added.
    pub(super) room: u64,
}

/// A durable log in a local file. See the module head.
#[derive(Debug)]
pub struct Embedded {
    writer: WriterHandle,
    progress: watch::Receiver<LogProgress>,
    subscription: Mutex<Option<Arc<SharedWindow>>>,
    has_journal: bool,
}

impl Embedded {
    /// Opens the log and starts its writer, which `shutdown` tracks. Blocks while it checks the file, for a time in
    /// proportion to its content. To be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], with the path, when the directory cannot be created, another process uses the file, the
    /// file is damaged, or the disk refuses writes.
    pub fn open(config: &Config, clock: SharedClock, shutdown: &Shutdown) -> Result<Arc<Self>, Error> {
        let journal =
            JournalLimits { max_bytes: config.journal_max_bytes.as_u64(), retention: config.journal_retention };
        let limits = LogLimits { max_bytes: config.max_bytes.as_u64(), journal };
        Self::start(file::opener(config.path.clone(), limits), clock, shutdown)
    }

    fn start(opener: LogOpener, clock: SharedClock, shutdown: &Shutdown) -> Result<Arc<Self>, Error> {
        let log = opener()?;
        let has_journal = log.has_journal();
        let (writer, commands) = WriterHandle::new();
        let (publish_progress, progress) = watch::channel(LogProgress::default());
        let log_writer = LogWriter::new(commands, publish_progress, log, opener, clock);
        let (running, ended) = oneshot::channel::<()>();
        let thread = move || {
            let _running = running;
            log_writer.run();
        };
        std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(thread)
            .map_err(|error| Error::Unavailable { reason: format!("cannot start the queue's thread: {error}") })?;
        shutdown.spawn(async move {
            // Nothing is ever sent; this ends when the thread drops its side.
            let _ = ended.await;
        });
        Ok(Arc::new(Self { writer, progress, subscription: Mutex::new(None), has_journal }))
    }

    /// Makes accepted changes durable and closes the file, within ten seconds. Then every method returns
    /// [`Error::Closed`] and every subscription ends. Closing twice is allowed.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the disk failed: published events are safe, but the last acknowledged ones may be
    /// redelivered.
    pub async fn close(&self) -> Result<(), Error> {
        match self.writer.close(CLOSE_PATIENCE).await {
            Err(Error::Closed) => Ok(()),
            closed => closed,
        }
    }
}

impl Embedded {
    /// Returns what the log holds at this moment.
    pub(super) fn size(&self) -> LogSize {
        let LogProgress { totals: LogTotals { events, dead_letters, .. }, room, .. } = *self.progress.borrow();
        LogSize { events: events.rows, bytes: events.bytes + dead_letters.bytes, dead_letters: dead_letters.rows, room }
    }

    /// Finds the selected dead letters among the present ones, oldest first.
    async fn find(&self, which: &DeadLetterSelection) -> Result<Vec<SelectedDeadLetter>, Error> {
        let mut left = usize::try_from(self.depth().await?.dead_letters).unwrap_or(usize::MAX);
        if matches!(which, DeadLetterSelection::Ids(_)) {
            left = left.min(MAX_SEARCHED);
        }
        let (mut found, mut from) = (Vec::new(), 0);
        while left > 0 {
            let letters = self.writer.dead_letters(from, left.min(DEAD_LETTERS_PAGE)).await?;
            let Some(last) = letters.last() else { break };
            // Its id is its number.
            from = last.id.parse::<u64>().unwrap_or(u64::MAX).saturating_add(1);
            left -= letters.len();
            found.extend(letters.iter().filter(|letter| which.holds(&letter.id)).filter_map(|letter| {
                let is_event = matches!(letter.payload, Payload::Event(_));
                Some(SelectedDeadLetter { number: letter.id.parse().ok()?, is_event })
            }));
        }
        Ok(found)
    }

    /// Applies a change to each; many share one fsync.
    async fn change(&self, found: &[SelectedDeadLetter], change: impl Fn(u64) -> LogChange) -> Result<(), Error> {
        for chunk in found.chunks(DEAD_LETTERS_PAGE) {
            try_join_all(chunk.iter().map(|found| self.writer.change(change(found.number)))).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Publisher for Embedded {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let events: Vec<_> = events.iter().map(wire::encode).collect();
        let bytes = events.iter().map(bytes::Bytes::len).sum();
        self.writer.append(events, bytes).await
    }
}

#[async_trait]
impl Queue for Embedded {
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error> {
        if self.progress.has_changed().is_err() {
            return Err(Error::Closed);
        }
        let shared = SharedWindow::new(prefetch);
        let earlier = self.subscription.lock().replace(shared.clone());
        if let Some(earlier) = earlier {
            earlier.end(&self.writer);
        }
        let (writer, progress) = (self.writer.clone(), self.progress.clone());
        Ok(Box::new(EmbeddedSubscription::new(shared, writer, progress, prefetch)))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.writer.ping().await
    }

    async fn depth(&self) -> Result<Depth, Error> {
        self.progress.has_changed().map_err(|_| Error::Closed)?;
        let LogProgress { totals: LogTotals { events, dead_letters, .. }, oldest, .. } = *self.progress.borrow();
        Ok(Depth { events: events.rows, bytes: Some(events.bytes), oldest, dead_letters: dead_letters.rows })
    }

    async fn restore(&self, since: Timestamp) -> Result<RestoreOutcome, Error> {
        if !self.has_journal {
            return Ok(RestoreOutcome::NoJournal);
        }
        self.writer.change(LogChange::OrderRestore(since)).await?;
        Ok(RestoreOutcome::Ordered)
    }

    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error> {
        self.progress.has_changed().map_err(|_| Error::Closed)?;
        let end = self.progress.borrow().next();
        let reader = || -> Box<dyn Journal> { Box::new(JournalReader::new(self.writer.clone(), since, end)) };
        Ok(self.has_journal.then(reader))
    }
}

#[async_trait]
impl DeadLetters for Embedded {
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.writer.dead_letters(0, limit).await
    }

    async fn redrive(&self, which: &DeadLetterSelection) -> Result<Redriven, Error> {
        let (events, others): (Vec<_>, Vec<_>) = self.find(which).await?.into_iter().partition(|found| found.is_event);
        self.change(&events, LogChange::Redrive).await?;
        Ok(Redriven { events: events.len() as u64, kept: others.len() as u64 })
    }

    async fn purge(&self, which: &DeadLetterSelection) -> Result<u64, Error> {
        let found = self.find(which).await?;
        self.change(&found, LogChange::Purge).await?;
        Ok(found.len() as u64)
    }
}

/// A dead letter that an operation selects.
struct SelectedDeadLetter {
    number: u64,
    is_event: bool,
}
