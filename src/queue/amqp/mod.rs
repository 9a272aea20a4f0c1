//! The AMQP queue: RabbitMQ, with quorum queues and a stream as journal.
//!
//! # Guarantees
//!
//! `publish` returns after the broker has confirmed every event and returned none: each event is stored by a majority of
//! the broker's nodes, in its work queue and in the journal. It stays in its work queue until it is acknowledged or
//! becomes a dead letter. If a work queue is deleted by others, it is declared again and restored from the journal.
//!
//! # Parts
//!
//! ```text
//! publish ── publisher ── connection ══ exchange ─┬─ work queue per shard ══ connection ── subscription ── deliveries
//!    │                                            └─ journal (stream) ── restore ───┐
//!    └──────── into the work queue again, and dead letters ─────────────────────────┘
//! ```
//!
//! `broker` connects, `supervisor` keeps a `connection` open, `topology` declares, `context` is what the parts share.
//! Publishing and consuming have a connection each, so that a broker that blocks publishes still delivers. The first
//! subscription opens the consuming connection. Where a name leads to the broker, both are replaced after their
//! [`MaxAge`](crate::max_age::MaxAge), so that the name is resolved again.
//!
//! # Failures
//!
//! - The broker is gone, silent, or blocks publishes (an alarm): publishers get [`Error::Unavailable`] at once or after
//!   `publish_timeout`; events in flight may be durable. Unsettled events are redelivered. Both connections are opened
//!   again with backoff, without a time limit.
//! - Something on the broker differs from its declaration: opening fails with the broker's text.
//!
//! Messages contain events, which carry no personal data.

mod authenticity;
mod broker;
mod channel;
mod config;
mod connection;
mod consumer_task;
mod context;
mod dead_letter_message;
mod dead_letters;
mod journal;
mod ledger;
mod message;
mod notices;
mod publish_task;
mod publisher;
mod restore;
mod restore_state;
mod returned;
mod routing_key;
mod settlements;
mod subscription;
mod supervisor;
pub mod survey;
mod topology;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Connection;
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::domain::{Event, Timestamp};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::{
    DeadLetter, DeadLetterSelection, DeadLetters, Depth, Error, Journal, Queue, Redriven, RestoreOutcome, Subscription,
};

use connection::OpenConnection;
use context::AmqpContext;
use journal::StreamReader;
use message::Message;
use subscription::AmqpSubscription;

pub use config::Config;
pub use connection::BrokerAbsence;

/// The longest time for closing, if the broker does not answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time for an order of a restore.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a probe waits for a connection that is down.
const PROBE_GRACE: Duration = Duration::from_millis(500);

/// RabbitMQ. See the module head.
#[derive(Debug)]
pub struct Amqp {
    context: Arc<AmqpContext>,
    timeout: Duration,
    subscription: Mutex<Option<ActiveSubscription>>,
    dead_letters: tokio::sync::Mutex<()>,
}

/// The consumer task of the present subscription, and how to end it.
#[derive(Debug)]
struct ActiveSubscription {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Amqp {
    /// Connects, declares, and returns once publishing works, or as `absence` says. To be called within a Tokio runtime;
    /// `tasks` tracks the connections.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`]: a URL, a file or the state of the broker is not usable.
    pub async fn open(
        config: &Config,
        absence: BrokerAbsence,
        clock: SharedClock,
        tasks: &Shutdown,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            context: Arc::new(AmqpContext::connect(config, absence, clock, tasks, metrics).await?),
            timeout: config.publish_timeout,
            subscription: Mutex::new(None),
            dead_letters: tokio::sync::Mutex::default(),
        }))
    }

    /// Waits for pending confirms, sends the last settlements, and closes both connections, within a few seconds. Then
    /// every method returns [`Error::Closed`] and every subscription ends. Closing twice is allowed.
    pub async fn close(&self) {
        let context = &self.context;
        context.publisher.flush().await;
        context.closing.cancel();
        let closing = async {
            self.end_subscription().await;
            if let Some(consuming) = context.consuming.get() {
                consuming.close().await;
            }
            context.publisher.connection().close().await;
        };
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the connections to the broker could not be closed cleanly in time");
        }
    }

    /// Ends the present subscription, which returns its unsettled events to the broker.
    async fn end_subscription(&self) {
        let active = self.subscription.lock().take();
        if let Some(ActiveSubscription { end, task }) = active {
            end.cancel();
            // The task ends within a bounded time; a panic was reported where it happened.
            let _ = task.await;
        }
    }

    /// Runs a request on the publishing connection, within the publish timeout.
    async fn request<T>(&self, request: impl AsyncFnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let ready = self.context.publisher.connection().now()?;
        // The broker does not read from a blocked connection, and each request would leave a channel open.
        ready.open.accepts_messages()?;
        channel::within(self.timeout, request(ready.open.connection())).await
    }

    /// Locks the dead letters, since another operation would hide the ones that it holds. Returns the lock and a
    /// connection.
    async fn dead_letters(&self) -> Result<(MutexGuard<'_, ()>, OpenConnection), Error> {
        let late = |_elapsed| Error::Unavailable { reason: "another operation uses the dead letters".to_owned() };
        let lock = timeout(dead_letters::LOCK_TIMEOUT, self.dead_letters.lock()).await.map_err(late)?;
        let open = self.context.publisher.connection().now()?.open.clone();
        // The broker does not read from a blocked connection, so each request would time out.
        open.accepts_messages()?;
        Ok((lock, open))
    }
}

#[async_trait]
impl super::Publisher for Amqp {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        let topology = &self.context.topology;
        self.context.publisher.publish(events.iter().map(|event| Message::of_event(event, topology)).collect()).await
    }
}

#[async_trait]
impl Queue for Amqp {
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error> {
        if self.context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        if let Err(error @ (Error::Misconfigured { .. } | Error::Closed)) = self.context.consuming().now() {
            return Err(error);
        }
        self.end_subscription().await;
        let end = self.context.closing.child_token();
        let (subscription, task) = AmqpSubscription::start(&self.context, prefetch, &end);
        let replaced = self.subscription.lock().replace(ActiveSubscription { end, task });
        if let Some(ActiveSubscription { end, .. }) = replaced {
            // A concurrent call subscribed meanwhile; this later one replaces it.
            end.cancel();
        }
        Ok(Box::new(subscription))
    }

    async fn ping(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PROBE_GRACE;
        if let Some(consuming) = self.context.consuming.get() {
            consuming.get(deadline).await?;
        }
        let ready = self.context.publisher.connection().get(deadline).await?;
        ready.open.accepts_messages()?;
        let missing = self.request(async |connection| self.context.topology.missing(connection).await).await?;
        // A process that only publishes loses nothing: the journal keeps what it publishes.
        let (Some(queue), Some(consuming)) = (missing, self.context.consuming.get()) else { return Ok(()) };
        // The consuming connection declares what is missing, after it ordered a restore. A paused subscription would not
        // notice.
        consuming.now()?.open.give_up();
        Err(Error::Unavailable { reason: format!("the queue {queue} does not exist") })
    }

    /// Counts what waits in the work queues and what this process has taken, not what other processes have taken.
    async fn depth(&self) -> Result<Depth, Error> {
        let (waiting, dead_letters) =
            self.request(async |connection| self.context.topology.count(connection).await).await?;
        let unsettled = self.context.unsettled.load(Ordering::Relaxed) as u64;
        if waiting + unsettled == 0 {
            self.context.nothing_is_moved();
        }
        Ok(Depth { events: waiting + unsettled, bytes: None, oldest: None, dead_letters })
    }

    async fn restore(&self, since: Timestamp) -> Result<RestoreOutcome, Error> {
        let ready = self.context.publisher.connection().now()?;
        let queues = self.context.topology.work_queues().iter().cloned().collect();
        let restorer = self.context.restorer();
        let order = restorer.order(ready.open.connection(), queues, Some(since));
        channel::within(ORDER_TIMEOUT, order).await?;
        Ok(RestoreOutcome::Ordered)
    }

    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error> {
        let AmqpContext { topology, publisher, clock, .. } = &*self.context;
        let (age, open) = (Some(clock.now().since(since)), publisher.connection().now()?.open.clone());
        let start = StreamReader::start(open.connection(), topology, publisher, age);
        let reader = channel::within(self.timeout, start).await?;
        Ok(Some(Box::new(reader.holding(open))))
    }

    async fn exchange_notices(&self, notice: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let open = self.context.publisher.connection().now()?.open.clone();
        open.accepts_messages()?;
        channel::within(self.timeout, notices::exchange(&open, &self.context.topology.notices, notice)).await
    }
}

#[async_trait]
impl DeadLetters for Amqp {
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let AmqpContext { topology, publisher, .. } = &*self.context;
        let (_lock, open) = self.dead_letters().await?;
        dead_letters::read(open.connection(), topology, publisher, limit).await
    }

    async fn redrive(&self, which: &DeadLetterSelection) -> Result<Redriven, Error> {
        let AmqpContext { topology, publisher, .. } = &*self.context;
        let (_lock, open) = self.dead_letters().await?;
        dead_letters::redrive(open.connection(), topology, publisher, which).await
    }

    async fn purge(&self, which: &DeadLetterSelection) -> Result<u64, Error> {
        let AmqpContext { topology, publisher, .. } = &*self.context;
        let (_lock, open) = self.dead_letters().await?;
        dead_letters::purge(open.connection(), topology, publisher, which).await
    }
}
