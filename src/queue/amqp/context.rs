//! What the parts of the AMQP queue share, and the setup of the consuming connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;
use crate::shutdown::Shutdown;

use super::broker::Broker;
use super::connection::{ConnectionSetup, OpenConnection, SupervisedConnection};
use super::publisher::ConfirmedPublisher;
use super::replay::{Replayer, RestoreRequest};
use super::supervisor;
use super::topology::Topology;

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
    /// Queues whose consumers the broker cancelled.
    cancelled: BTreeSet<String>,
}

impl AmqpContext {
    /// Returns the consuming connection; the first call starts it.
    pub(super) fn consuming(&self) -> &SupervisedConnection<()> {
        self.consuming.get_or_init(|| {
            let replayer = Replayer {
                topology: self.topology.clone(),
                publisher: Arc::clone(&self.publisher),
                metrics: Arc::clone(&self.metrics),
            };
            let setup = ConsumeSetup { replayer, losses: Arc::clone(&self.losses), tasks: self.tasks.clone() };
            let consuming = supervisor::start(Arc::clone(&self.broker), setup, &self.tasks);
            if self.publisher.connection().is_patient.load(Ordering::Acquire) {
                // The start went on without the broker, so its first refusal ends nothing here either.
                consuming.is_patient.store(true, Ordering::Release);
            }
            consuming
        })
    }

    /// Keeps the marks of the work queues, in the order of their shards, for a replay.
    pub(super) fn keep_marks(&self, marks: &[Option<Timestamp>]) {
        let known = &mut self.losses.lock().marks;
        for (queue, mark) in self.topology.work_queues().iter().zip(marks) {
            known.extend(mark.map(|mark| (queue.clone(), mark)));
        }
    }

    /// Notes that the broker cancelled the consumer of a shard.
    pub(super) fn consumer_cancelled(&self, shard: usize) {
        self.losses.lock().cancelled.extend(self.topology.work_queues().get(shard).cloned());
    }
}

/// Sets up the consuming connection.
struct ConsumeSetup {
    replayer: Replayer,
    losses: Arc<Mutex<QueueLosses>>,
    tasks: Shutdown,
}

#[async_trait]
impl ConnectionSetup for ConsumeSetup {
    type Resources = ();
    const PURPOSE: &'static str = "consume";

    /// Requests the replay of lost work queues, then declares them. The order matters, see [`super::replay`].
    async fn set_up(&self, open: &OpenConnection) -> Result<(), Error> {
        let Replayer { topology, publisher, .. } = &self.replayer;
        let mut lost: BTreeSet<String> = topology.lost(open.connection()).await?.into_iter().collect();
        let cancelled = self.losses.lock().cancelled.clone();
        lost.extend(cancelled.iter().cloned());
        if !lost.is_empty() {
            let request = RestoreRequest::new(lost, &self.losses.lock().marks);
            request.publish(topology, publisher).await?;
            self.losses.lock().cancelled.retain(|queue| !cancelled.contains(queue));
        }
        topology.declare(open.connection(), open.major(), &[]).await?;
        self.tasks.spawn(self.replayer.clone().run(open.clone()));
        Ok(())
    }
}
