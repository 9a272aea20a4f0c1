//! What the parts of the AMQP queue share, and the setup of the consuming connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;
use crate::shutdown::Shutdown;

use super::broker::Broker;
use super::config::Config;
use super::connection::{BrokerAbsence, ConnectionSetup, OpenConnection, SupervisedConnection};
use super::publisher::{ConfirmedPublisher, PublishSetup};
use super::restore::Restorer;
use super::supervisor;
use super::topology::Topology;

/// How long a publish waits for a connection that is down, if its event can go nowhere else.
const RECONNECT_GRACE: Duration = Duration::from_millis(250);

/// The longest that a start waits for its first attempt to connect, if it can go on without the broker.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);

/// What the parts of the queue share.
#[derive(Debug)]
pub(super) struct AmqpContext {
    pub(super) broker: Arc<Broker>,
    pub(super) topology: Topology,
    pub(super) publisher: Arc<ConfirmedPublisher>,
    pub(super) consuming: OnceLock<SupervisedConnection<()>>,
    pub(super) prefetch: u16,
    pub(super) clock: SharedClock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tasks: Shutdown,
    pub(super) closing: CancellationToken,
    /// The number of unsettled and delayed deliveries.
    pub(super) unsettled: AtomicUsize,
    pub(super) losses: Arc<Mutex<QueueLosses>>,
}

/// What is known about the work queues, in case one is lost.
#[derive(Debug, Default)]
pub(super) struct QueueLosses {
    /// The mark of each queue at the end of its last channel.
    marks: BTreeMap<String, Timestamp>,
    /// For each queue with events that were moved to its end: when the oldest of them was received. No mark is later.
    moved: BTreeMap<String, Timestamp>,
    /// Queues whose consumers the broker cancelled.
    cancelled: BTreeSet<String>,
}

impl QueueLosses {
    /// Returns the earliest mark of some queues; `None` if one of them has none.
    fn earliest_mark(&self, queues: &BTreeSet<String>) -> Option<Timestamp> {
        queues.iter().map(|queue| self.marks.get(queue).copied()).min().flatten()
    }
}

impl AmqpContext {
    /// Opens the publishing connection; see [`Amqp::open`](super::Amqp::open).
    pub(super) async fn connect(
        config: &Config,
        absence: BrokerAbsence,
        clock: SharedClock,
        tasks: &Shutdown,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let broker = Arc::new(Broker::new(config)?);
        let topology = Topology::new(config);
        let patience = config.publish_timeout * 2;
        let setup = PublishSetup { topology: topology.clone(), tasks: tasks.clone(), patience };
        let publishing = supervisor::start(Arc::clone(&broker), setup, tasks);
        let reconnect = match absence {
            BrokerAbsence::Wait => {
                publishing.get_eventually().await?;
                RECONNECT_GRACE
            }
            BrokerAbsence::GoOn => {
                publishing.attempt(Instant::now() + FIRST_ATTEMPT).await?;
                Duration::ZERO
            }
        };
        Ok(Self {
            broker,
            topology,
            publisher: Arc::new(ConfirmedPublisher::new(publishing, config.publish_timeout, reconnect)),
            consuming: OnceLock::new(),
            prefetch: config.prefetch,
            clock,
            metrics,
            tasks: tasks.clone(),
            closing: CancellationToken::new(),
            unsettled: AtomicUsize::new(0),
            losses: Arc::default(),
        })
    }

    /// Returns the consuming connection; the first call starts it.
    pub(super) fn consuming(&self) -> &SupervisedConnection<()> {
        self.consuming.get_or_init(|| {
            let (restorer, losses) = (self.restorer(), Arc::clone(&self.losses));
            let setup = ConsumeSetup { restorer, losses, tasks: self.tasks.clone() };
            let consuming = supervisor::start(Arc::clone(&self.broker), setup, &self.tasks);
            // The start is over, so a refusal ends nothing here: what is missing may be declared again.
            consuming.is_patient.store(true, Ordering::Release);
            consuming
        })
    }

    /// Returns what orders restores and carries them out.
    pub(super) fn restorer(&self) -> Restorer {
        Restorer {
            topology: self.topology.clone(),
            publisher: Arc::clone(&self.publisher),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Keeps the marks of the work queues, in the order of their shards, for a restore.
    pub(super) fn keep_marks(&self, marks: &[Option<Timestamp>]) {
        let losses = &mut *self.losses.lock();
        for (queue, mark) in self.topology.work_queues().iter().zip(marks) {
            let bound = losses.moved.get(queue);
            let mark = mark.map(|mark| bound.map_or(mark, |moved| mark.min(*moved)));
            losses.marks.extend(mark.map(|mark| (queue.clone(), mark)));
        }
    }

    /// Notes that an event is published again at the end of its queue.
    pub(super) fn moved_to_the_end(&self, queue: &str, received_at: Option<Timestamp>) {
        let Some(received_at) = received_at else { return };
        let moved = &mut self.losses.lock().moved;
        match moved.get_mut(queue) {
            Some(oldest) => *oldest = received_at.min(*oldest),
            None => drop(moved.insert(queue.to_owned(), received_at)),
        }
    }

    /// Notes that the work queues are empty.
    pub(super) fn nothing_is_moved(&self) {
        self.losses.lock().moved.clear();
    }

    /// Notes that the broker cancelled the consumer of a shard.
    pub(super) fn consumer_cancelled(&self, shard: usize) {
        self.losses.lock().cancelled.extend(self.topology.work_queues().get(shard).cloned());
    }
}

/// Sets up the consuming connection.
struct ConsumeSetup {
    restorer: Restorer,
    losses: Arc<Mutex<QueueLosses>>,
    tasks: Shutdown,
}

#[async_trait]
impl ConnectionSetup for ConsumeSetup {
    type Resources = ();
    const PURPOSE: &'static str = "consume";

    /// Orders the restore of lost work queues, then declares them. The sequence matters, see [`super::restore`].
    async fn set_up(&self, open: &OpenConnection) -> Result<(), Error> {
        let topology = &self.restorer.topology;
        let mut lost: BTreeSet<String> = topology.lost(open.connection()).await?.into_iter().collect();
        let cancelled = self.losses.lock().cancelled.clone();
        lost.extend(cancelled.iter().cloned());
        if !lost.is_empty() {
            let except: Vec<String> = lost.iter().cloned().collect();
            topology.declare(open.connection(), open.major(), &except).await?;
            let since = self.losses.lock().earliest_mark(&lost);
            self.restorer.order(open.connection(), lost, since).await?;
            self.losses.lock().cancelled.retain(|queue| !cancelled.contains(queue));
        }
        topology.declare(open.connection(), open.major(), &[]).await?;
        self.tasks.spawn(self.restorer.clone().run(open.clone()));
        Ok(())
    }
}
