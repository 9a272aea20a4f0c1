//! The writer: one thread that owns the file.
//!
//! Everyone sends it commands. It takes everything that waits (a bounded batch), applies all changes
//! in one transaction, and answers them when that is as durable as they need: so a hundred concurrent
//! publishers share one fsync. Reads of the same batch are answered afterwards, from what was just
//! written.
//!
//! # What waits is bounded
//!
//! Publishers and probes take permits, by size; settlements and reads need none, since the
//! subscription's window bounds them.
//!
//! # When the disk fails
//!
//! Every command of the batch is answered [`Error::Unavailable`], the file is closed, and the next
//! command that comes [`REOPEN_AFTER`] later or more opens it again. What was applied but not yet
//! fsynced may be undone by that: events that were settled may be there again, so the [`Progress`]
//! gets a new epoch, and the subscription reads from the start. No position is used twice.
//!
//! # The end
//!
//! On [`Command::Close`], or when the last sender is gone, it applies what still waits, makes
//! everything durable, and closes the file.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error};

use super::journal;
use super::log::{Change, Entry, Held, Log};

/// How many commands share one transaction at most.
const BATCH: usize = 1_024;

/// How long removals and counts may wait for an fsync when no publish brings one.
const SYNC_AFTER: Duration = Duration::from_millis(200);

/// How long a file that failed is left alone before it is opened again.
pub(super) const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// Where the outcome of a command goes. A receiver that is gone has lost interest.
pub(super) type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Changes the log.
    Change(Change, Answer<()>, Option<OwnedSemaphorePermit>),
    /// Reads the oldest events at or after a position, at most so many.
    Read(u64, usize, Answer<Page>),
    /// Reads the oldest events from a position on, settled (since a time) or not, at most so many.
    Journal(u64, Timestamp, usize, Answer<journal::Page>, OwnedSemaphorePermit),
    /// Reads the oldest dead letters from a number on, at most so many.
    DeadLetters(u64, usize, Answer<Vec<DeadLetter>>, OwnedSemaphorePermit),
    /// Answers if the file works; where the last write failed, by writing again.
    Ping(Answer<()>, Option<OwnedSemaphorePermit>),
    /// Ends the writer; answered when the file is closed.
    Close(Answer<()>),
}

/// The answer to a read.
#[derive(Debug)]
pub(super) struct Page {
    /// The events, oldest first.
    pub(super) entries: Vec<Entry>,
    /// Where the next read goes on.
    pub(super) next: u64,
    /// The epoch in which it was read.
    pub(super) epoch: u64,
}

/// How far the log has come; everyone can watch it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Raised when events may have come back that had been settled.
    pub(super) epoch: u64,
    /// The position after the newest event.
    pub(super) next: u64,
    /// What the log holds.
    pub(super) held: Held,
}

/// Opens the file; called again after the disk failed.
pub(super) type Opener = Box<dyn Fn() -> Result<Log, Error> + Send>;

/// The thread's own state.
pub(super) struct Writer {
    commands: Receiver<Command>,
    progress: watch::Sender<Progress>,
    opener: Opener,
    clock: SharedClock,
    log: Result<Log, Failure>,
    unsynced_since: Option<Instant>,
}

/// Why the file is closed, and when it was last tried.
#[derive(Clone, Debug)]
struct Failure {
    error: Error,
    at: Instant,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Writer {
    /// Makes the writer of an open log, and shows how far that has come.
    pub(super) fn new(
        commands: Receiver<Command>,
        progress: watch::Sender<Progress>,
        log: Log,
        opener: Opener,
        clock: SharedClock,
    ) -> Self {
        let writer = Self { commands, progress, opener, clock, log: Ok(log), unsynced_since: None };
        writer.show();
        writer
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        let mut closing = Vec::new();
        while closing.is_empty() {
            match self.receive() {
                Ok(first) => self.batch(first, &mut closing),
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while let Ok(first) = self.commands.try_recv() {
            self.batch(first, &mut closing);
        }
        self.sync();
        let closed = self.log.as_ref().map(|_| ()).map_err(|failure| failure.error.clone());
        // Whoever is told that the queue is closed may open the file at once.
        drop(self);
        for answer in closing {
            let _ = answer.send(closed.clone());
        }
    }

    fn receive(&self) -> Result<Command, RecvTimeoutError> {
        match self.unsynced_since {
            Some(since) => self.commands.recv_timeout(SYNC_AFTER.saturating_sub(since.elapsed())),
            None => self.commands.recv().map_err(RecvTimeoutError::from),
        }
    }

    fn batch(&mut self, first: Command, closing: &mut Vec<Answer<()>>) {
        let (mut changes, mut reads, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(command) = next.take().or_else(|| self.commands.try_recv().ok()) else { break };
            match command {
                Command::Change(change, answer, permit) => changes.push((change, answer, permit)),
                Command::Read(from, limit, answer) => reads.push((from, limit, answer)),
                Command::Journal(from, since, limit, answer, _permit) => {
                    let _ = answer.send(self.with_log(|log| log.journal(from, since, limit)));
                }
                Command::DeadLetters(from, limit, answer, _permit) => {
                    let _ = answer.send(self.with_log(|log| log.dead_letters(from, limit)));
                }
                Command::Ping(answer, permit) => pings.push((answer, permit)),
                Command::Close(answer) => closing.push(answer),
            }
        }
        let probe = !pings.is_empty() && self.log.is_err();
        if !changes.is_empty() {
            self.change(changes);
        }
        for (from, limit, answer) in reads {
            let _ = answer.send(self.read(from, limit));
        }
        if probe {
            self.sync();
        }
        for (answer, _permit) in pings {
            let _ = answer.send(self.log.as_ref().map(|_| ()).map_err(|failure| failure.error.clone()));
        }
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= SYNC_AFTER) {
            self.sync();
        }
    }

    fn change(&mut self, changes: Vec<(Change, Answer<()>, Option<OwnedSemaphorePermit>)>) {
        let now = self.clock.now();
        let batch: Vec<&Change> = changes.iter().map(|(change, ..)| change).collect();
        let outcomes = self.with_log(|log| log.write(&batch, now));
        self.show();
        match outcomes {
            Ok(outcomes) => {
                for ((_, answer, _), outcome) in changes.into_iter().zip(outcomes) {
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                for (_, answer, _) in changes {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn read(&mut self, from: u64, limit: usize) -> Result<Page, Error> {
        let entries = self.with_log(|log| log.read(from, limit))?;
        let Progress { epoch, next, .. } = *self.progress.borrow();
        let next = match entries.last() {
            Some(last) if entries.len() == limit => last.seq + 1,
            Some(_) | None => next,
        };
        Ok(Page { entries, next, epoch })
    }

    fn sync(&mut self) {
        // A failure is logged and kept by `with_log`: there is nobody to answer.
        let _ = self.with_log(Log::sync);
    }

    /// Works on the file, after opening it again if it has failed long enough ago.
    fn with_log<T>(&mut self, work: impl FnOnce(&mut Log) -> Result<T, redb::Error>) -> Result<T, Error> {
        self.reopen();
        let log = self.log.as_mut().map_err(|failure| failure.error.clone())?;
        let outcome = work(log);
        self.unsynced_since = match (log.is_synced(), self.unsynced_since) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
        outcome.map_err(|failed| {
            let error = Error::Unavailable { reason: format!("the queue's file failed: {failed}") };
            tracing::error!(error = %failed, "the queue's file failed; nothing is taken until it works again");
            self.unsynced_since = None;
            self.log = Err(Failure { error: error.clone(), at: Instant::now() });
            error
        })
    }

    fn reopen(&mut self) {
        let Err(failure) = &mut self.log else { return };
        if failure.at.elapsed() < REOPEN_AFTER {
            return;
        }
        match (self.opener)() {
            Ok(mut log) => {
                tracing::info!("the queue's file works again");
                log.continue_from(self.progress.borrow().next);
                self.log = Ok(log);
                self.progress.send_modify(|progress| progress.epoch += 1);
                self.show();
            }
            Err(error) => *failure = Failure { error, at: Instant::now() },
        }
    }

    fn show(&self) {
        let Ok(log) = &self.log else { return };
        let totals = log.totals();
        self.progress.send_modify(|progress| {
            progress.next = totals.next;
            progress.held = totals.held;
        });
    }
}
