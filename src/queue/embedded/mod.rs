//! The embedded queue: a durable log in a local file.
//!
//! # What it promises
//!
//! `publish` returns after an fsync that covers every one of its events; many publishers share one.
//! An event stays in the file until it is acknowledged or among the dead letters, so a `kill -9` at any
//! moment costs at most a redelivery: acknowledgements, and the counts of redeliveries, are fsynced
//! within a fifth of a second or by the next publish, whichever is first. A crash itself is not counted as a
//! redelivery, and may lose the counts of its last moments.
//!
//! # How it is built
//!
//! ```text
//! publish ──┐                         ┌── one transaction, one fsync ── file
//! settle  ──┼─ commands ── writer ────┤
//! read    ──┘  (bounded)   (thread)   └── progress (watched) ── subscription ── deliveries
//! ```
//!
//! `log` is the file and `tables` what stands in it, `journal` the part of it that keeps what was settled, `writer`
//! the one thread that owns it, `subscription` hands events out and takes them back, `window` decides which. Events go
//! out oldest first; one that came back rests for 100 ms, doubling to 5 s, while others go first. The file is locked:
//! one process has it, and one subscription at a time; a new one takes over what an older one had out, whose `next`
//! then answers `None`.
//!
//! # What each failure leaves behind
//!
//! - Full: nothing of that publish is kept; others may still fit. Dead letters take room too, and are
//!   never dropped to make some.
//! - A disk that fails or hangs: publishers get [`Error::Unavailable`], `ping` fails, deliveries that are
//!   out can go on but not be settled; all of it recovers by itself when the disk does. A publish that was
//!   answered with an error may be in the log all the same.
//! - A damaged file: `open` refuses it and changes nothing.
//! - A panic of the writer, a fault of this program: the queue is closed, and says so to everyone.
//!
//! # The end
//!
//! The queue takes settlements until [`Embedded::close`], whatever its [`Shutdown`] says, since a
//! drain needs it: that only tracks the thread. Call `close` last, before waiting for the tracked tasks.
//!
//! The file holds events, which have no personal data in them.

mod commands;
mod dead_letter;
mod file;
mod journal;
mod log;
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
    DeadLetter, DeadLetters, Depth, Error, Journal, MAX_SEARCHED, Payload, Publisher, Queue, Redriven, Restore,
    Subscription, Which, wire,
};

use commands::Commands;
use journal::Reading;
use log::{Change, Held, Limits};
use subscription::Shared;
use writer::{Opener, Progress, Writer};

/// The longest that [`Embedded::close`] waits for the file to be closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How many dead letters are looked at in one go.
const DEAD_LETTERS_PAGE: usize = 256;

/// `[queue.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of the log; made if it is not there.
    pub path: PathBuf,
    /// How many bytes of undelivered events and dead letters are kept before publishers are refused; the
    /// file is somewhat larger.
    pub max_bytes: ByteSize,
    /// How many bytes of settled events are kept for a replay; the oldest go first.
    pub journal_max_bytes: ByteSize,
    /// For how long settled events are kept.
    #[serde(with = "humantime_serde")]
    pub journal_retention: Duration,
}

/// A durable log in a local file. See the module's head.
#[derive(Debug)]
pub struct Embedded {
    commands: Commands,
    progress: watch::Receiver<Progress>,
    subscription: Mutex<Option<Arc<Shared>>>,
    has_journal: bool,
}

impl Embedded {
    /// Opens the log, and starts its writer, which `shutdown` tracks. Blocks while it checks the file, in
    /// proportion to what the file holds. To be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], naming the path, when the directory cannot be made, another process has
    /// the file, the file is damaged, or the disk takes no writes.
    pub fn open(config: &Config, clock: SharedClock, shutdown: &Shutdown) -> Result<Arc<Self>, Error> {
        let journal =
            journal::Limits { max_bytes: config.journal_max_bytes.as_u64(), retention: config.journal_retention };
        let (directory, limits) = (config.path.clone(), Limits { max_bytes: config.max_bytes.as_u64(), journal });
        Self::start(Box::new(move || file::open(&directory, limits)), clock, shutdown)
    }

    fn start(opener: Opener, clock: SharedClock, shutdown: &Shutdown) -> Result<Arc<Self>, Error> {
        let log = opener()?;
        let has_journal = log.has_journal();
        let (commands, receiver) = Commands::new();
        let (shown, progress) = watch::channel(Progress::default());
        let writer = Writer::new(receiver, shown, log, opener, clock);
        let (running, ended) = oneshot::channel::<()>();
        let thread = move || {
            let _running = running;
            writer.run();
        };
        std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(thread)
            .map_err(|error| Error::Unavailable { reason: format!("no thread for the queue: {error}") })?;
        shutdown.spawn(async move {
            // Nothing is ever sent: it ends when the thread drops its side.
            let _ = ended.await;
        });
        Ok(Arc::new(Self { commands, progress, subscription: Mutex::new(None), has_journal }))
    }

    /// Makes durable what was given so far, and closes the file; at most ten seconds long. Then every
    /// method answers [`Error::Closed`] and every subscription ends. Closing twice is allowed.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the disk failed: what was published is safe, but events that were
    /// acknowledged last may be delivered again.
    pub async fn close(&self) -> Result<(), Error> {
        match self.commands.close(CLOSE_PATIENCE).await {
            Ok(()) | Err(Error::Closed) => Ok(()),
            Err(error @ (Error::Unavailable { .. } | Error::Misconfigured { .. } | Error::Full { .. })) => Err(error),
        }
    }
}

impl Embedded {
    /// Finds dead letters among those that are there now, oldest first.
    async fn find(&self, which: &Which) -> Result<Vec<Found>, Error> {
        let mut left = usize::try_from(self.depth().await?.dead_letters).unwrap_or(usize::MAX);
        if matches!(which, Which::These(_)) {
            left = left.min(MAX_SEARCHED);
        }
        let (mut found, mut from) = (Vec::new(), 0);
        while left > 0 {
            let letters = self.commands.dead_letters(from, left.min(DEAD_LETTERS_PAGE)).await?;
            let Some(last) = letters.last() else { break };
            // Its id is its number.
            from = last.id.parse::<u64>().unwrap_or(u64::MAX).saturating_add(1);
            left -= letters.len();
            found.extend(letters.iter().filter(|letter| which.holds(&letter.id)).filter_map(|letter| {
                let is_event = matches!(letter.payload, Payload::Event(_));
                Some(Found { number: letter.id.parse().ok()?, is_event })
            }));
        }
        Ok(found)
    }

    /// Makes a change of each; many share one fsync.
    async fn change(&self, found: &[Found], change: impl Fn(u64) -> Change) -> Result<(), Error> {
        for chunk in found.chunks(DEAD_LETTERS_PAGE) {
            try_join_all(chunk.iter().map(|found| self.commands.change(change(found.number)))).await?;
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
        self.commands.append(events, bytes).await
    }
}

#[async_trait]
impl Queue for Embedded {
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error> {
        if self.progress.has_changed().is_err() {
            return Err(Error::Closed);
        }
        let shared = Shared::new(prefetch);
        let earlier = self.subscription.lock().replace(shared.clone());
        if let Some(earlier) = earlier {
            earlier.end(&self.commands);
        }
        let (commands, progress) = (self.commands.clone(), self.progress.clone());
        Ok(Box::new(subscription::Subscription::new(shared, commands, progress, prefetch)))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.commands.ping().await
    }

    async fn depth(&self) -> Result<Depth, Error> {
        self.progress.has_changed().map_err(|_| Error::Closed)?;
        let Held { events, bytes, dead_letters } = self.progress.borrow().held;
        Ok(Depth { events, bytes: Some(bytes), dead_letters })
    }

    async fn restore(&self, since: Timestamp) -> Result<Restore, Error> {
        if !self.has_journal {
            return Ok(Restore::NoJournal);
        }
        self.commands.change(Change::Restore(since)).await?;
        Ok(Restore::Ordered)
    }

    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error> {
        self.progress.has_changed().map_err(|_| Error::Closed)?;
        let end = self.progress.borrow().next;
        let reading = || -> Box<dyn Journal> { Box::new(Reading::new(self.commands.clone(), since, end)) };
        Ok(self.has_journal.then(reading))
    }
}

#[async_trait]
impl DeadLetters for Embedded {
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.commands.dead_letters(0, limit).await
    }

    async fn redrive(&self, which: &Which) -> Result<Redriven, Error> {
        let (events, others): (Vec<_>, Vec<_>) = self.find(which).await?.into_iter().partition(|found| found.is_event);
        self.change(&events, Change::Redrive).await?;
        Ok(Redriven { events: events.len() as u64, kept: others.len() as u64 })
    }

    async fn purge(&self, which: &Which) -> Result<u64, Error> {
        let found = self.find(which).await?;
        self.change(&found, Change::Purge).await?;
        Ok(found.len() as u64)
    }
}

/// A dead letter that is meant.
struct Found {
    number: u64,
    is_event: bool,
}
