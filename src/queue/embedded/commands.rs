//! The sending side of the writer: bounded, and with a deadline on every answer.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error};

use super::journal::Page;
use super::log::Change;
use super::writer::{self, Answer, Command};

/// The longest wait for room among what waits, and for the writer's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many bytes of events may wait for the writer; a single larger publish waits alone.
const WAITING_BYTES: u32 = 16 * 1024 * 1024;

/// Sends commands to the writer. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    sender: Sender<Command>,
    waiting: Arc<Semaphore>,
}

impl Commands {
    pub(super) fn new() -> (Self, Receiver<Command>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, waiting: Arc::new(Semaphore::new(WAITING_BYTES as usize)) }, receiver)
    }

    /// Adds events of `bytes` in all; returns when they are fsynced.
    pub(super) async fn append(&self, events: Vec<bytes::Bytes>, bytes: usize) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let permit = self.permit(bytes, deadline).await?;
        self.ask(deadline, |answer| Command::Change(Change::Append(events), answer, Some(permit))).await
    }

    /// Applies a settlement; returns when it is done. The window bounds how many there are.
    pub(super) async fn settle(&self, change: Change) -> Result<(), Error> {
        self.ask(Instant::now() + PATIENCE, |answer| Command::Change(change, answer, None)).await
    }

    /// Counts that an event came back, without waiting. A queue that is closed cannot count any more:
    /// the event is delivered again at the next start all the same.
    pub(super) fn count_return(&self, seq: u64) {
        let (answer, _) = oneshot::channel();
        let _ = self.sender.send(Command::Change(Change::Return(seq), answer, None));
    }

    /// Asks for events; the answer comes through the receiver, or never when the queue is closed.
    pub(super) fn read(&self, from: u64, limit: usize) -> oneshot::Receiver<Result<writer::Page, Error>> {
        let (answer, page) = oneshot::channel();
        let _ = self.sender.send(Command::Read(from, limit, answer));
        page
    }

    /// Asks for the oldest dead letters from a number on.
    pub(super) async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let permit = self.permit(1, deadline).await?;
        self.ask(deadline, |answer| Command::DeadLetters(from, limit, answer, permit)).await
    }

    /// Asks for a part of the journal.
    pub(super) async fn journal(&self, from: u64, since: Timestamp, limit: usize) -> Result<Page, Error> {
        let deadline = Instant::now() + PATIENCE;
        let permit = self.permit(1, deadline).await?;
        self.ask(deadline, |answer| Command::Journal(from, since, limit, answer, permit)).await
    }

    /// Makes a change that an operator or a supervisor asks for; returns when it is done.
    pub(super) async fn change(&self, change: Change) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let permit = self.permit(1, deadline).await?;
        self.ask(deadline, |answer| Command::Change(change, answer, Some(permit))).await
    }

    /// Answers if the file works.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let permit = self.permit(1, deadline).await?;
        self.ask(deadline, |answer| Command::Ping(answer, Some(permit))).await
    }

    /// Ends the writer; returns when the file is closed.
    pub(super) async fn close(&self, patience: Duration) -> Result<(), Error> {
        self.ask(Instant::now() + patience, Command::Close).await
    }

    async fn permit(&self, size: usize, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(WAITING_BYTES);
        match tokio::time::timeout_at(deadline, self.waiting.clone().acquire_many_owned(size)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(late()),
        }
    }

    async fn ask<T>(&self, deadline: Instant, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Error> {
        let (answer, outcome) = oneshot::channel();
        self.sender.send(command(answer)).map_err(|_| Error::Closed)?;
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(late()),
        }
    }
}

fn late() -> Error {
    Error::Unavailable { reason: "the queue's disk did not answer in time".to_owned() }
}
