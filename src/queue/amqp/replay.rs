//! Replay: publishes events of the journal to work queues again, after a work queue was lost (with events that it may
//! never have delivered) or after the store may have lost the effects of events.
//!
//! # Protocol
//!
//! 1. A process that finds a work queue missing while the journal exists, or whose consumer the broker cancels, publishes
//!    a **replay request** to the queue of requests. The request is confirmed *before* the work queue is declared again,
//!    so there is never a new work queue without a request for it.
//! 2. One consuming process takes the request. It reads the [journal](super::journal) from a minute before the requested
//!    time to a marker, and publishes the events of the lost queues again, confirmed. What is published after the marker
//!    reaches the new work queue directly.
//! 3. Then the request is acknowledged. If the process ends before, another process takes the request.
//!
//! A request for lost effects starts at step 2. A request without a time covers the whole journal. A header marks what
//! is published again ([`Redelivery::Restored`](crate::domain::Redelivery::Restored)). Applying an event twice has one
//! effect.
//!
//! # Failures
//!
//! The request stays in its queue; this process or another takes it again after a pause.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::types::FieldTable;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;
use crate::supervise::Backoff;

use super::channel;
use super::connection::OpenConnection;
use super::journal::StreamReader;
use super::message::{Message, mark_replayed};
use super::publisher::ConfirmedPublisher;
use super::topology::Topology;

/// The time from which each work queue is to be replayed, in milliseconds; `None`: from the beginning.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestoreRequest {
    since: BTreeMap<String, Option<i64>>,
}

impl RestoreRequest {
    /// Creates the request for some queues, each from its mark.
    pub(super) fn new(queues: impl IntoIterator<Item = String>, marks: &BTreeMap<String, Timestamp>) -> Self {
        let since = |queue: &String| marks.get(queue).map(|mark| mark.as_millis());
        Self { since: queues.into_iter().map(|queue| (queue.clone(), since(&queue))).collect() }
    }

    /// Publishes the request; returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the request may be durable.
    pub(super) async fn publish(&self, topology: &Topology, publisher: &ConfirmedPublisher) -> Result<(), Error> {
        // A map from strings to numbers always serializes to JSON.
        let body = serde_json::to_vec(self).expect("strings and numbers are JSON");
        publisher.publish(vec![Message::to_queue(&topology.replays, FieldTable::default(), body)]).await
    }

    /// Returns the earliest time of all queues; `None`: the beginning.
    fn earliest(&self) -> Option<Timestamp> {
        self.since.values().min().copied().flatten().map(Timestamp::from_millis)
    }
}

impl fmt::Display for RestoreRequest {
    /// Writes each queue with its time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (queue, since)) in self.since.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            match since {
                Some(millis) => write!(f, "{comma}{queue} since {}", Timestamp::from_millis(*millis))?,
                None => write!(f, "{comma}{queue}")?,
            }
        }
        Ok(())
    }
}

/// Carries out replay requests on one connection.
#[derive(Clone, Debug)]
pub(super) struct Replayer {
    pub(super) topology: Topology,
    pub(super) publisher: Arc<ConfirmedPublisher>,
    pub(super) metrics: Arc<Metrics>,
}

impl Replayer {
    /// Takes requests until the connection ends.
    pub(super) async fn run(self, open: OpenConnection) {
        let mut backoff = Backoff::default();
        loop {
            let served = tokio::select! {
                biased;
                () = open.ended() => return,
                served = self.serve(&open) => served,
            };
            let reason = served.err().map_or_else(|| "the channel ended".to_owned(), |error| error.to_string());
            tracing::warn!(reason, "replays of the journal are interrupted, retrying");
            backoff.pause_until(open.ended()).await;
        }
    }

    async fn serve(&self, open: &OpenConnection) -> Result<(), Error> {
        let channel = channel::open(open.connection()).await?;
        channel::prefetch(&channel, 1).await?;
        let mut requests = channel::consume(&channel, &self.topology.replays, FieldTable::default()).await?;
        while let Some(request) = requests.next().await {
            let delivery = request.map_err(|error| channel::unavailable(&error))?;
            match serde_json::from_slice::<RestoreRequest>(&delivery.data) {
                Ok(request) => self.replay(open, &request).await?,
                Err(error) => tracing::error!(%error, "discarding an invalid replay request"),
            }
            channel::acknowledge_up_to(&channel, delivery.delivery_tag).await?;
        }
        Ok(())
    }

    async fn replay(&self, open: &OpenConnection, request: &RestoreRequest) -> Result<(), Error> {
        tracing::warn!(order = %request, "replaying the journal");
        let mut journal =
            StreamReader::start(open.connection(), &self.topology, &self.publisher, request.earliest()).await?;
        let mut events = 0;
        while let Some(messages) = journal.messages().await? {
            let again: Vec<Message> =
                messages.into_iter().filter_map(|message| self.redelivery(request, message)).collect();
            events += again.len() as u64;
            self.publish(again).await?;
        }
        self.metrics.replayed_events.increment(events);
        tracing::info!(events, "the journal was replayed");
        Ok(())
    }

    /// Creates the message that brings an event of the journal to its work queue, if the request includes that queue.
    fn redelivery(&self, request: &RestoreRequest, delivery: lapin::message::Delivery) -> Option<Message> {
        let queue = self.topology.queue_of(delivery.routing_key.as_str())?;
        request.since.contains_key(queue).then(|| {
            let mut headers = delivery.properties.headers().clone().unwrap_or_default();
            mark_replayed(&mut headers);
            Message {
                exchange: String::new(),
                routing_key: queue.to_owned(),
                properties: delivery.properties.with_headers(headers),
                body: delivery.data.into(),
            }
        })
    }

    /// Publishes until the broker confirms. Messages that were durable after an error have no second effect.
    async fn publish(&self, messages: Vec<Message>) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match self.publisher.publish(messages.clone()).await {
                Err(Error::Unavailable { reason }) => {
                    tracing::debug!(reason, "a replay waits for the broker");
                    sleep(backoff.next_delay()).await;
                }
                result => return result,
            }
        }
    }
}
