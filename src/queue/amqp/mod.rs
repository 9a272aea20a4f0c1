//! The AMQP queue: RabbitMQ, with quorum queues and a stream as journal.
//!
//! # What it promises
//!
//! `publish` returns once the broker has confirmed every one of the events and returned none: each then
//! stands on a majority of the broker's nodes, in its work queue and in the journal. It stays in its work
//! queue until it is acknowledged or among the dead letters. A work queue that is deleted behind our back is
//! made again, and the journal replayed into it.
//!
//! # How it is built
//!
//! ```text
//! publish ── publisher ── link ══ exchange ─┬─ work queue per shard ══ link ── subscription ── deliveries
//!    │                                      └─ journal (stream) ── replay ─────┐
//!    └────────────── into the work queue again, and dead letters ──────────────┘
//! ```
//!
//! `broker` connects, `link` keeps one connection up, `topology` declares; publishing and consuming have a
//! connection each, so that a broker that takes no publishes still delivers. The consuming one is opened by
//! the first subscription.
//!
//! # What each failure leaves behind
//!
//! - The broker is gone, silent, or takes no publishes (an alarm): publishers get [`Error::Unavailable`] at
//!   once or after `publish_timeout`; what was under way may be durable all the same. Deliveries that are out
//!   come again. Both connections are made again with backoff, for as long as it takes.
//! - Something on the broker differs from what is declared: opening is refused with the broker's words.
//!
//! Messages hold events, which have no personal data in them.

mod broker;
mod config;
mod connection;
mod consumer_task;
mod dead_letters;
mod headers;
mod journal;
mod ledger;
mod publisher;
mod replay;
mod subscription;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
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

use super::{DeadLetter, DeadLetters, Depth, Error, Journal, Queue, Redriven, Restore, Subscription, Which};

use broker::Broker;
use connection::{Link, Live, Prepare};
use journal::Reading;
use publisher::{Message, Publisher, Publishing};
use replay::{Order, Replayer};
use topology::Topology;

pub use config::Config;

/// The longest that closing takes, when the broker does not answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a probe waits for a connection that is being made.
const LINK_PATIENCE: Duration = Duration::from_millis(500);

/// RabbitMQ. See the module's head.
#[derive(Debug)]
pub struct Amqp {
    shared: Arc<Shared>,
    timeout: Duration,
    subscription: Mutex<Option<Current>>,
    dead_letters: tokio::sync::Mutex<()>,
}

/// The present subscription's pump.
#[derive(Debug)]
struct Current {
    over: CancellationToken,
    pump: JoinHandle<()>,
}

/// What the parts share.
#[derive(Debug)]
struct Shared {
    broker: Arc<Broker>,
    topology: Topology,
    publisher: Arc<Publisher>,
    consuming: OnceLock<Link<()>>,
    prefetch: u16,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    tasks: Shutdown,
    closing: CancellationToken,
    /// How many deliveries are out or resting.
    out: AtomicUsize,
    losses: Arc<Mutex<Losses>>,
}

/// What is known for the case that a work queue is lost.
#[derive(Debug, Default)]
struct Losses {
    /// The mark of each queue when its last channel ended.
    marks: BTreeMap<String, Timestamp>,
    /// Queues whose consumers the broker cancelled.
    cancelled: BTreeSet<String>,
}

impl Amqp {
    /// Connects, declares, and returns once publishing works, however long that takes. To be called within
    /// a Tokio runtime; `tasks` tracks the connections.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`]: a link, a file, or what stands on the broker cannot work.
    pub async fn open(
        config: &Config,
        clock: SharedClock,
        tasks: &Shutdown,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        let broker = Arc::new(Broker::new(config)?);
        let topology = Topology::new(config);
        let patience = config.publish_timeout * 2;
        let publishing = Publishing { topology: topology.clone(), tasks: tasks.clone(), patience };
        let link = Link::start(Arc::clone(&broker), publishing, tasks);
        link.up_at_last().await?;
        let shared = Shared {
            broker,
            topology,
            publisher: Arc::new(Publisher::new(link, config.publish_timeout)),
            consuming: OnceLock::new(),
            prefetch: config.prefetch,
            clock,
            metrics,
            tasks: tasks.clone(),
            closing: CancellationToken::new(),
            out: AtomicUsize::new(0),
            losses: Arc::default(),
        };
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
            timeout: config.publish_timeout,
            subscription: Mutex::new(None),
            dead_letters: tokio::sync::Mutex::default(),
        }))
    }

    /// Waits for confirms that are due, tells the broker what was settled, and closes both connections in good
    /// order; a few seconds long at most. Then every method answers [`Error::Closed`] and every
    /// subscription ends. Closing twice is allowed.
    pub async fn close(&self) {
        let shared = &self.shared;
        shared.publisher.flush().await;
        shared.closing.cancel();
        let closing = async {
            self.end_subscription().await;
            if let Some(link) = shared.consuming.get() {
                link.close();
                link.closed().await;
            }
            shared.publisher.link().close();
            shared.publisher.link().closed().await;
        };
        if timeout(CLOSE_PATIENCE, closing).await.is_err() {
            tracing::warn!("the broker did not let its connections be closed in good order");
        }
    }

    /// Ends the present subscription, so that what it has out goes back to the broker.
    async fn end_subscription(&self) {
        let current = self.subscription.lock().take();
        if let Some(Current { over, pump }) = current {
            over.cancel();
            // It ends, within a bounded time; a panic has been told of where it happened.
            let _ = pump.await;
        }
    }

    /// Asks the broker something on the publishing connection, for at most the time that a publish may take.
    async fn ask<T>(&self, question: impl AsyncFnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let up = self.shared.publisher.link().now()?;
        topology::within(self.timeout, question(up.live.connection())).await
    }

    /// Waits until nobody else here holds dead letters, which would be missing, and returns a connection that works.
    async fn dead_letters(&self) -> Result<(MutexGuard<'_, ()>, Live), Error> {
        let late = |_elapsed| Error::Unavailable { reason: "another command is at the dead letters".to_owned() };
        let alone = timeout(dead_letters::TURN, self.dead_letters.lock()).await.map_err(late)?;
        let live = self.shared.publisher.link().now()?.live.clone();
        // A connection that the broker does not read from would be waited for.
        live.takes_publishes()?;
        Ok((alone, live))
    }
}

impl Shared {
    /// Returns the consuming link; the first call starts it.
    fn consuming(self: &Arc<Self>) -> &Link<()> {
        self.consuming.get_or_init(|| {
            let replayer = Replayer {
                topology: self.topology.clone(),
                publisher: Arc::clone(&self.publisher),
                metrics: Arc::clone(&self.metrics),
            };
            let consuming = Consuming { replayer, losses: Arc::clone(&self.losses), tasks: self.tasks.clone() };
            Link::start(Arc::clone(&self.broker), consuming, &self.tasks)
        })
    }

    /// Keeps the marks of the work queues, in order of their shards, for a replay.
    fn keep_marks(&self, marks: &[Option<Timestamp>]) {
        let known = &mut self.losses.lock().marks;
        for (queue, mark) in self.topology.work_queues().iter().zip(marks) {
            known.extend(mark.map(|mark| (queue.clone(), mark)));
        }
    }

    /// Notes that the broker cancelled the consumer of a shard.
    fn was_cancelled(&self, shard: usize) {
        self.losses.lock().cancelled.extend(self.topology.work_queues().get(shard).cloned());
    }
}

/// Prepares the consuming connection.
struct Consuming {
    replayer: Replayer,
    losses: Arc<Mutex<Losses>>,
    tasks: Shutdown,
}

#[async_trait]
impl Prepare for Consuming {
    type Made = ();
    const PURPOSE: &'static str = "consume";

    /// Orders the replay of lost work queues, then makes them again: in this order, see [`replay`].
    async fn prepare(&self, live: &Live) -> Result<(), Error> {
        let Replayer { topology, publisher, .. } = &self.replayer;
        let mut lost: BTreeSet<String> = topology.lost(live.connection()).await?.into_iter().collect();
        let cancelled = self.losses.lock().cancelled.clone();
        lost.extend(cancelled.iter().cloned());
        if !lost.is_empty() {
            let order = Order::new(lost, &self.losses.lock().marks);
            order.place(topology, publisher).await?;
            self.losses.lock().cancelled.retain(|queue| !cancelled.contains(queue));
        }
        topology.declare(live.connection(), live.major(), &[]).await?;
        self.tasks.spawn(self.replayer.clone().run(live.clone()));
        Ok(())
    }
}

#[async_trait]
impl super::Publisher for Amqp {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        let topology = &self.shared.topology;
        self.shared.publisher.publish(events.iter().map(|event| Message::of_event(event, topology)).collect()).await
    }
}

#[async_trait]
impl Queue for Amqp {
    async fn subscribe(&self, prefetch: usize) -> Result<Box<dyn Subscription>, Error> {
        if self.shared.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        if let Err(error @ (Error::Misconfigured { .. } | Error::Closed)) = self.shared.consuming().now() {
            return Err(error);
        }
        self.end_subscription().await;
        let over = self.shared.closing.child_token();
        let (subscription, pump) = subscription::Subscription::start(&self.shared, prefetch, &over);
        let replaced = self.subscription.lock().replace(Current { over, pump });
        if let Some(Current { over, .. }) = replaced {
            // Another call was as quick; the later one stays.
            over.cancel();
        }
        Ok(Box::new(subscription))
    }

    async fn ping(&self) -> Result<(), Error> {
        let deadline = Instant::now() + LINK_PATIENCE;
        if let Some(link) = self.shared.consuming.get() {
            link.up(deadline).await?;
        }
        let up = self.shared.publisher.link().up(deadline).await?;
        up.live.takes_publishes()?;
        self.ask(async |connection| self.shared.topology.answers(connection).await).await
    }

    /// What waits in the work queues, and what this process has taken of it; not what others have.
    async fn depth(&self) -> Result<Depth, Error> {
        let (waiting, dead_letters) = self.ask(async |connection| self.shared.topology.count(connection).await).await?;
        let out = self.shared.out.load(Ordering::Relaxed) as u64;
        Ok(Depth { events: waiting + out, bytes: None, dead_letters })
    }

    async fn restore(&self, since: Timestamp) -> Result<Restore, Error> {
        let topology = &self.shared.topology;
        let all = topology.work_queues().iter().cloned();
        let since = all.clone().map(|queue| (queue, since)).collect();
        Order::new(all, &since).place(topology, &self.shared.publisher).await?;
        Ok(Restore::Ordered)
    }

    async fn journal(&self, since: Timestamp) -> Result<Option<Box<dyn Journal>>, Error> {
        let Shared { topology, publisher, .. } = &*self.shared;
        let begin = async |connection: &Connection| Reading::start(connection, topology, publisher, Some(since)).await;
        Ok(Some(Box::new(self.ask(begin).await?)))
    }
}

#[async_trait]
impl DeadLetters for Amqp {
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let (_alone, live) = self.dead_letters().await?;
        dead_letters::read(live.connection(), &self.shared.topology.dead_letters, limit).await
    }

    async fn redrive(&self, which: &Which) -> Result<Redriven, Error> {
        let Shared { topology, publisher, .. } = &*self.shared;
        let (_alone, live) = self.dead_letters().await?;
        dead_letters::redrive(live.connection(), topology, publisher, which).await
    }

    async fn purge(&self, which: &Which) -> Result<u64, Error> {
        let (_alone, live) = self.dead_letters().await?;
        dead_letters::purge(live.connection(), &self.shared.topology.dead_letters, which).await
    }
}
