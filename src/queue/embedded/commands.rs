//! The commands to the writer, and the handle that sends them: bounded, and with a deadline for every reply.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error, wire};

use super::change::{LogChange, LogEntry};
use super::journal::JournalPage;
use super::tables::LogTotals;

/// The longest wait for a permit, and for the writer's reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes of events may wait for the writer. A larger publish waits until it is alone.
const MAX_WAITING_BYTES: u32 = 16 * 1024 * 1024;

/// Where the result of a command goes. The receiver may be gone.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A command to the writer. A permit counts against the limit of waiting bytes until the command is done.
#[derive(Debug)]
pub(super) enum WriterCommand {
    /// Changes the log.
    Change(LogChange, Reply<()>, Option<OwnedSemaphorePermit>),
    /// Reads the oldest unsettled events at or after a position, up to a number.
    Read(u64, usize, Reply<EventPage>),
    /// Reads settled (since a time) and unsettled events at or after a position, up to a number.
    Journal(u64, Timestamp, usize, Reply<JournalPage>, OwnedSemaphorePermit),
    /// Reads the oldest dead letters at or after a number, up to a number of them.
    DeadLetters(u64, usize, Reply<Vec<DeadLetter>>, OwnedSemaphorePermit),
    /// Succeeds if the file works; writes to it if the last write failed.
    Ping(Reply<()>, OwnedSemaphorePermit),
    /// Ends the writer. The reply comes when the file is closed.
    Close(Reply<()>),
}

/// The reply to a read.
#[derive(Debug)]
pub(super) struct EventPage {
    /// The events, oldest first.
    pub(super) entries: Vec<LogEntry>,
    /// The position where the next read starts.
    pub(super) next: u64,
    /// The epoch of the read.
    pub(super) epoch: u64,
}

impl EventPage {
    /// Returns when its first event was received.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        wire::decode(&self.entries.first()?.wire).ok().map(|event| event.received_at)
    }
}

/// The progress of the log, for all who watch it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogProgress {
    /// Raised when settled events may be in the log again.
    pub(super) epoch: u64,
    /// The sizes of the tables.
    pub(super) totals: LogTotals,
    /// How many bytes of events may be added.
    pub(super) room: u64,
    /// When the oldest unsettled event was received, at the last ping.
    pub(super) oldest: Option<Timestamp>,
}

impl LogProgress {
    /// Returns the position after the newest event.
    pub(super) const fn next(&self) -> u64 {
        self.totals.events.next
    }
}

/// Sends commands to the writer. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct WriterHandle {
    sender: Sender<WriterCommand>,
    permits: Arc<Semaphore>,
}

impl WriterHandle {
    /// Creates a handle and the receiver of its commands.
    pub(super) fn new() -> (Self, Receiver<WriterCommand>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, permits: Arc::new(Semaphore::new(MAX_WAITING_BYTES as usize)) }, receiver)
    }

    /// Adds events of `bytes` in total; returns when they are fsynced.
    pub(super) async fn append(&self, events: Vec<Bytes>, bytes: usize) -> Result<(), Error> {
        let change = LogChange::Append(events);
        self.ask_with_permit(bytes, |reply, permit| WriterCommand::Change(change, reply, Some(permit))).await
    }

    /// Applies a settlement; returns when it is done. It needs no permit, since the delivery window limits how many
    /// there are.
    pub(super) async fn settle(&self, change: LogChange) -> Result<(), Error> {
        self.ask(reply_deadline(), |reply| WriterCommand::Change(change, reply, None)).await
    }

    /// Counts a returned event, without waiting. A closed queue does not count it; the event is redelivered at the next
    /// start.
    pub(super) fn count_return(&self, position: u64) {
        let (reply, _) = oneshot::channel();
        let _ = self.sender.send(WriterCommand::Change(LogChange::CountReturn(position), reply, None));
    }

    /// Reads events. The receiver gets the page, or an error of its channel when the queue is closed.
    pub(super) fn read(&self, from: u64, limit: usize) -> oneshot::Receiver<Result<EventPage, Error>> {
        let (reply, page) = oneshot::channel();
        let _ = self.sender.send(WriterCommand::Read(from, limit, reply));
        page
    }

    /// Reads the oldest dead letters at or after a number.
    pub(super) async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        self.ask_with_permit(1, |reply, permit| WriterCommand::DeadLetters(from, limit, reply, permit)).await
    }

    /// Reads a page of the journal.
    pub(super) async fn journal(&self, from: u64, since: Timestamp, limit: usize) -> Result<JournalPage, Error> {
        self.ask_with_permit(1, |reply, permit| WriterCommand::Journal(from, since, limit, reply, permit)).await
    }

    /// Applies a change for an operator; returns when it is done.
    pub(super) async fn change(&self, change: LogChange) -> Result<(), Error> {
        self.ask_with_permit(1, |reply, permit| WriterCommand::Change(change, reply, Some(permit))).await
    }

    /// Succeeds if the file works.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        self.ask_with_permit(1, WriterCommand::Ping).await
    }

    /// Ends the writer; returns when the file is closed.
    pub(super) async fn close(&self, patience: Duration) -> Result<(), Error> {
        self.ask(Instant::now() + patience, WriterCommand::Close).await
    }

    /// Waits for a permit of `size` bytes, then sends a command; one deadline covers both waits.
    async fn ask_with_permit<T>(
        &self,
        size: usize,
        command: impl FnOnce(Reply<T>, OwnedSemaphorePermit) -> WriterCommand,
    ) -> Result<T, Error> {
        let deadline = reply_deadline();
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(MAX_WAITING_BYTES);
        let permit = match timeout_at(deadline, Arc::clone(&self.permits).acquire_many_owned(size)).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => return Err(late()),
        };
        self.ask(deadline, |reply| command(reply, permit)).await
    }

    async fn ask<T>(&self, deadline: Instant, command: impl FnOnce(Reply<T>) -> WriterCommand) -> Result<T, Error> {
        let (reply, result) = oneshot::channel();
        self.sender.send(command(reply)).map_err(|_| Error::Closed)?;
        match timeout_at(deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(late()),
        }
    }
}

fn reply_deadline() -> Instant {
    Instant::now() + REPLY_TIMEOUT
}

fn late() -> Error {
    Error::Unavailable { reason: "the queue's disk did not answer in time".to_owned() }
}
