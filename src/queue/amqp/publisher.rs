//! The publisher: sends messages to the broker and waits for the broker's confirms.
//!
//! # Protocol
//!
//! A new connection is up once the broker has confirmed a message to the journal, or has sent nothing for [`FIRST_CONFIRM`].
//!
//! One [task](super::publish_task) owns the confirm channel, since the broker numbers publishes in their order on the
//! channel, and several tasks could not keep that order. Every publish is mandatory and persistent. A publish is durable
//! when each of its messages was confirmed and none was returned.
//!
//! A returned message only shows that one of the messages in flight reached no queue: the library attaches it to any
//! confirm of the same frame. So every publish in flight fails, and the connection is opened again, which declares the
//! topology.
//!
//! A broker can refuse, or fail to confirm, everything on one connection while other connections work: a channel does not
//! always find the new leader of a quorum queue (observed on RabbitMQ 3.10). So a connection without any confirm for
//! twice the publish timeout is replaced by one to the next node, unless the broker has blocked it.
//!
//! # Bounds
//!
//! At most [`MAX_UNCONFIRMED`] messages are unconfirmed at once. A caller waits until its deadline, including the wait
//! for its permits. It does not wait while the broker blocks publishes, or while the connection is down for longer than
//! its patience with a reconnect. A caller that gives up frees no permits: its messages are still unconfirmed.
//!
//! # Failures
//!
//! An unknown outcome is an error. The messages may be on the broker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::queue::Error;
use crate::shutdown::Shutdown;

use super::channel;
use super::connection::{self, ConnectionSetup, OpenConnection, SupervisedConnection};
use super::message::Message;
use super::publish_task::{self, MAX_UNCONFIRMED, PublishBatch, unavailable};
use super::topology::Topology;

/// How many messages are published together.
const CHUNK: usize = MAX_UNCONFIRMED / 4;

/// How long a new connection waits for its first confirm.
const FIRST_CONFIRM: Duration = Duration::from_secs(3);

/// Publishes on the present connection.
#[derive(Debug)]
pub(super) struct ConfirmedPublisher {
    connection: SupervisedConnection<ConfirmChannel>,
    timeout: Duration,
    reconnect: Duration,
}

impl ConfirmedPublisher {
    /// Creates the publisher. A publish waits for `timeout` at most, and for `reconnect` while the connection is down.
    pub(super) fn new(
        connection: SupervisedConnection<ConfirmChannel>,
        timeout: Duration,
        reconnect: Duration,
    ) -> Self {
        Self { connection, timeout, reconnect }
    }

    /// Returns the publishing connection.
    pub(super) fn connection(&self) -> &SupervisedConnection<ConfirmChannel> {
        &self.connection
    }

    /// Returns when every message is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: some of the messages may be durable.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let mut rest = messages;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(CHUNK));
            self.publish_chunk(std::mem::replace(&mut rest, later), deadline).await?;
        }
        Ok(())
    }

    async fn publish_chunk(&self, messages: Vec<Message>, deadline: Instant) -> Result<(), Error> {
        let ready = self.connection.get(deadline.min(Instant::now() + self.reconnect)).await?;
        ready.open.accepts_messages()?;
        tokio::select! {
            biased;
            sent = ready.resources.send(messages) => sent,
            () = ready.open.ended() => Err(ended()),
            reason = ready.open.until_blocked() => Err(connection::blocked(&reason)),
            () = tokio::time::sleep_until(deadline) => Err(unavailable("the broker did not confirm in time")),
        }
    }

    /// Waits until no message is unconfirmed, at most for the publish timeout.
    pub(super) async fn flush(&self) {
        let deadline = Instant::now() + self.timeout;
        if let Ok(ready) = self.connection.get(Instant::now()).await {
            let all = u32::try_from(MAX_UNCONFIRMED).unwrap_or(u32::MAX);
            // The publishers of messages that are unconfirmed by then have got an error.
            let _ = timeout_at(deadline, ready.resources.permits.acquire_many(all)).await;
        }
    }
}

fn ended() -> Error {
    unavailable("the connection ended before the broker confirmed")
}

/// The way to the task that owns the channel.
#[derive(Debug)]
pub(super) struct ConfirmChannel {
    batches: mpsc::UnboundedSender<PublishBatch>,
    permits: Arc<Semaphore>,
}

impl ConfirmChannel {
    async fn send(&self, messages: Vec<Message>) -> Result<(), Error> {
        let wanted = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let permits = Arc::clone(&self.permits).acquire_many_owned(wanted).await.map_err(|_| ended())?;
        let (reply, result) = oneshot::channel();
        self.batches.send(PublishBatch { messages, reply, permits }).map_err(|_| ended())?;
        result.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Sets up the publishing connection.
#[derive(Debug)]
pub(super) struct PublishSetup {
    /// What is declared.
    pub(super) topology: Topology,
    /// Tracks the task that owns the channel.
    pub(super) tasks: Shutdown,
    /// How long the broker may confirm nothing while messages are unconfirmed.
    pub(super) patience: Duration,
}

#[async_trait]
impl ConnectionSetup for PublishSetup {
    type Resources = ConfirmChannel;
    const PURPOSE: &'static str = "publish";

    async fn set_up(&self, open: &OpenConnection) -> Result<ConfirmChannel, Error> {
        let lost = self.topology.lost(open.connection()).await?;
        self.topology.declare(open.connection(), open.major(), &lost).await?;
        let channel = channel::open(open.connection()).await?;
        let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
        selected.map_err(|error| channel::unavailable(&error))?;
        // A broker can have lost the stream of the journal and still have its queue (observed on RabbitMQ 4.3 after a kill). It
        // accepts declarations, and closes the connection on the first publish. A broker that blocks publishers sends nothing;
        // their publishes return the reason.
        let first = publish_task::publish_alone(&channel, Message::marker("probe", &self.topology));
        if let Ok(published) = timeout(FIRST_CONFIRM, first).await {
            published?;
        }
        // The permits limit how many batches there are.
        let (batches, received) = mpsc::unbounded_channel();
        self.tasks.spawn(publish_task::run(channel, received, open.clone(), self.patience));
        Ok(ConfirmChannel { batches, permits: Arc::new(Semaphore::new(MAX_UNCONFIRMED)) })
    }
}
