//! The writer: one thread that owns the file.
//!
//! All others send it commands. The writer takes what waits, up to a limit, applies all changes in one transaction,
//! and replies when the changes are as durable as they need to be. So a hundred concurrent publishers share one fsync.
//! It answers the reads of a batch last, with the new state.
//!
//! # Bounds
//!
//! Publishers and probes need permits, by size. Settlements and reads of the subscription need none, since the delivery
//! window limits their number.
//!
//! # Restores
//!
//! The writer carries out an ordered restore of journalled events in steps between batches, while at most
//! [`RESTORE_BELOW`] events wait.
//!
//! # Disk failures
//!
//! While the disk is full, changes that add events are refused. The others go on, in small batches with an fsync each, so
//! that the space that one frees is used by the next.
//!
//! If the file fails, the writer answers every command of the batch with [`Error::Unavailable`] and closes the file. The
//! next command after [`REOPEN_AFTER`] opens the file again. Changes that were applied but not yet fsynced may be undone:
//! settled events may be in the log again. So [`LogProgress`] gets a new epoch, and the subscription reads from the start.
//! No position is used twice.
//!
//! # Shutdown
//!
//! On [`WriterCommand::Close`], or when the last sender is gone, the writer applies the waiting commands, makes
//! everything durable, and closes the file.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::queue::Error;

use super::change::LogChange;
use super::commands::{EventPage, LogProgress, Reply, WriterCommand};
use super::log::Log;

/// How many commands share one transaction at most.
const BATCH: usize = 1_024;

/// How long removals and counts wait for an fsync if no publish brings one.
const SYNC_AFTER: Duration = Duration::from_millis(200);

/// How many events may wait while a restore adds more, so that live events do not wait long.
const RESTORE_BELOW: u64 = 512;

/// The pause of a restore while more events wait.
const RESTORE_PAUSE: Duration = Duration::from_millis(20);

/// How many commands share one transaction while the disk is full, so that each needs little space.
const BATCH_ON_FULL_DISK: usize = 64;

/// The pause before a failed file is opened again.
pub(super) const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// Opens the file, at the start and after a failure of the disk.
pub(super) type LogOpener = Box<dyn Fn() -> Result<Log, Error> + Send>;

/// The state of the thread.
pub(super) struct LogWriter {
    commands: Receiver<WriterCommand>,
    progress: watch::Sender<LogProgress>,
    opener: LogOpener,
    clock: SharedClock,
    log: Result<Log, LogFailure>,
    unsynced_since: Option<Instant>,
}

/// Why the file is closed, and when it was last opened or used.
#[derive(Clone, Debug)]
struct LogFailure {
    error: Error,
    at: Instant,
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("log", &self.log).finish_non_exhaustive()
    }
}

impl LogWriter {
    /// Creates the writer of an open log, and publishes the progress of that log.
    pub(super) fn new(
        commands: Receiver<WriterCommand>,
        progress: watch::Sender<LogProgress>,
        log: Log,
        opener: LogOpener,
        clock: SharedClock,
    ) -> Self {
        let writer = Self { commands, progress, opener, clock, log: Ok(log), unsynced_since: None };
        writer.publish_progress();
        writer
    }

    /// Runs until it is closed.
    pub(super) fn run(mut self) {
        let mut closing = Vec::new();
        while closing.is_empty() {
            match self.receive() {
                Ok(first) => self.batch(first, &mut closing),
                Err(RecvTimeoutError::Timeout) => self.sync_if_due(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.restore_some();
        }
        while let Ok(first) = self.commands.try_recv() {
            self.batch(first, &mut closing);
        }
        self.sync();
        let closed = self.status();
        // The file must be closed before the reply: the receiver may open it at once.
        drop(self);
        for reply in closing {
            let _ = reply.send(closed.clone());
        }
    }

    fn receive(&self) -> Result<WriterCommand, RecvTimeoutError> {
        let sync = self.unsynced_since.map(|since| SYNC_AFTER.saturating_sub(since.elapsed()));
        let restore = self.restoring().map(|is_wanted| if is_wanted { Duration::ZERO } else { RESTORE_PAUSE });
        match sync.into_iter().chain(restore).min() {
            Some(wait) => self.commands.recv_timeout(wait),
            None => self.commands.recv().map_err(RecvTimeoutError::from),
        }
    }

    /// Returns whether a restore wants its next step now; `None` if there is no restore.
    fn restoring(&self) -> Option<bool> {
        let totals = self.log.as_ref().ok()?.totals();
        let has_room = totals.events.rows <= RESTORE_BELOW && !self.is_disk_full();
        totals.restore.is_running().then_some(has_room)
    }

    fn restore_some(&mut self) {
        if self.restoring() != Some(true) {
            return;
        }
        let now = self.clock.now();
        // `with_log` logs and keeps a failure. The step is repeated when the file works again.
        if self.with_log(|log| log.write(&[&LogChange::RestoreSome], now)).is_err() {
            return;
        }
        self.publish_progress();
        if self.restoring().is_none() {
            let events = self.progress.borrow().totals.restore.moved;
            tracing::info!(events, "the restore from the journal is complete: these events are applied again");
        }
    }

    fn batch(&mut self, first: WriterCommand, closing: &mut Vec<Reply<()>>) {
        let (mut changes, mut reads, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = Some(first);
        let most = if self.is_disk_full() { BATCH_ON_FULL_DISK } else { BATCH };
        let mut room = self.log.as_ref().map_or(u64::MAX, Log::most_added);
        for _ in 0..most {
            let more = || if room > 0 { self.commands.try_recv().ok() } else { None };
            let Some(command) = next.take().or_else(more) else { break };
            match command {
                WriterCommand::Change(change, reply, permit) => {
                    room = room.saturating_sub(change.added_bytes());
                    changes.push((change, reply, permit));
                }
                WriterCommand::Read(from, limit, reply) => reads.push((from, limit, reply)),
                WriterCommand::Journal(from, since, limit, reply, _permit) => {
                    let _ = reply.send(self.with_log(|log| log.journal(from, since, limit)));
                }
                WriterCommand::DeadLetters(from, limit, reply, _permit) => {
                    let _ = reply.send(self.with_log(|log| log.dead_letters(from, limit)));
                }
                WriterCommand::Ping(reply, permit) => pings.push((reply, permit)),
                WriterCommand::Close(reply) => closing.push(reply),
            }
        }
        let probe = !pings.is_empty() && self.log.is_err();
        if !changes.is_empty() {
            self.change(changes);
        }
        for (from, limit, reply) in reads {
            let _ = reply.send(self.read(from, limit));
        }
        if probe {
            self.sync();
        }
        if !pings.is_empty() {
            // `with_log` logs and keeps a failure.
            let _ = self.with_log(Log::compact_if_idle);
            let oldest = self.read(0, 1).ok().and_then(|page| page.oldest());
            self.progress.send_modify(|progress| progress.oldest = oldest);
            self.publish_progress();
        }
        for (reply, _permit) in pings {
            let _ = reply.send(self.status().and_then(|()| self.log.as_ref().map_or(Ok(()), Log::check_space)));
        }
        self.sync_if_due();
    }

    fn change(&mut self, changes: Vec<(LogChange, Reply<()>, Option<OwnedSemaphorePermit>)>) {
        let now = self.clock.now();
        let batch: Vec<&LogChange> = changes.iter().map(|(change, ..)| change).collect();
        let outcomes = self.with_log(|log| log.write(&batch, now));
        self.publish_progress();
        match outcomes {
            Ok(outcomes) => {
                for ((_, reply, _), outcome) in changes.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                for (_, reply, _) in changes {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
        if self.log.as_ref().is_ok_and(Log::needs_sync) {
            self.sync();
        }
    }

    fn is_disk_full(&self) -> bool {
        self.log.as_ref().is_ok_and(Log::is_disk_full)
    }

    fn read(&mut self, from: u64, limit: usize) -> Result<EventPage, Error> {
        let entries = self.with_log(|log| log.read(from, limit))?;
        let progress = *self.progress.borrow();
        let next = match entries.last() {
            Some(last) if entries.len() == limit => last.position + 1,
            Some(_) | None => progress.next(),
        };
        Ok(EventPage { entries, next, epoch: progress.epoch })
    }

    fn sync_if_due(&mut self) {
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= SYNC_AFTER) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        // `with_log` logs and keeps a failure; there is no command to reply to.
        let _ = self.with_log(Log::sync);
    }

    fn status(&self) -> Result<(), Error> {
        self.log.as_ref().map(drop).map_err(|failure| failure.error.clone())
    }

    /// Works on the file, after opening it again if it failed long enough ago.
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
            tracing::error!(error = %failed, "the queue's file failed, no events are accepted until it works again");
            self.unsynced_since = None;
            self.log = Err(LogFailure { error: error.clone(), at: Instant::now() });
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
                log.continue_from(self.progress.borrow().next());
                self.log = Ok(log);
                self.progress.send_modify(|progress| progress.epoch += 1);
                self.publish_progress();
            }
            Err(error) => *failure = LogFailure { error, at: Instant::now() },
        }
    }

    fn publish_progress(&self) {
        let Ok(log) = &self.log else { return };
        let (totals, room) = (log.totals(), log.room());
        self.progress.send_modify(|progress| (progress.totals, progress.room) = (totals, room));
    }
}
