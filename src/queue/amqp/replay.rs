//! Replay: a work queue gets events from the journal again: those that it may never have handed out, when it was
//! lost, or those whose effects the store may have lost.
//!
//! # Protocol
//!
//! 1. Whoever finds a work queue missing beside a journal, or had a consumer cancelled by the broker,
//!    publishes an **order** to the queue of replays, confirmed, *before* the work queue is made again: so
//!    there is never a new work queue without an order for it.
//! 2. One consuming process takes the order. It reads the [journal](super::journal) from a minute before the given time
//!    to a marker, and publishes what belongs to the lost queues again, confirmed. Everything that is published after
//!    the marker finds its work queue by itself.
//! 3. Only then the order is acknowledged. If the process ends before, another takes the order.
//!
//! An order for effects that may be lost begins at step 2. What is published again says so in a header
//! ([`Redelivery::Restored`](crate::domain::Redelivery::Restored)). Events that had been applied are applied again, which has no
//! second effect. An order without a time is for the whole journal.
//!
//! # What a failure leaves behind
//!
//! The order; it is taken again after a pause, by this process or another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use backoff::backoff::Backoff;
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;

use super::connection::{Live, pauses};
use super::headers::header;
use super::journal::{Reading, acknowledge, consume, direct};
use super::publisher::{Message, Publisher};
use super::topology::{self, Topology};

/// The header of what is handed out once more.
pub(super) const REPLAYED: &str = "replayed";

/// From which time on each lost queue is to be replayed, in milliseconds; `None`: from the beginning.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    since: BTreeMap<String, Option<i64>>,
}

impl Order {
    /// Makes the order for lost queues, from what is known of what they had handed out.
    pub(super) fn new(lost: impl IntoIterator<Item = String>, marks: &BTreeMap<String, Timestamp>) -> Self {
        let since = |queue: &String| marks.get(queue).map(|mark| mark.as_millis());
        Self { since: lost.into_iter().map(|queue| (queue.clone(), since(&queue))).collect() }
    }

    /// Makes the order durable.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: it may be durable all the same.
    pub(super) async fn place(&self, topology: &Topology, publisher: &Publisher) -> Result<(), Error> {
        // A map of texts and numbers is always JSON.
        let body = serde_json::to_vec(self).expect("texts and numbers are JSON");
        publisher.publish(vec![direct(&topology.replays, FieldTable::default(), body)]).await
    }

    /// Returns where reading begins: at the earliest of all; `None`: at the beginning.
    fn earliest(&self) -> Option<Timestamp> {
        self.since.values().min().copied().flatten().map(Timestamp::from_millis)
    }
}

impl fmt::Display for Order {
    /// Each queue and from when on, as one reads times.
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

/// Carries orders out, on one connection.
#[derive(Clone, Debug)]
pub(super) struct Replayer {
    pub(super) topology: Topology,
    pub(super) publisher: Arc<Publisher>,
    pub(super) metrics: Arc<Metrics>,
}

impl Replayer {
    /// Takes orders for as long as the connection lives.
    pub(super) async fn run(self, live: Live) {
        let mut pauses = pauses();
        loop {
            let failed = tokio::select! {
                biased;
                () = live.ended() => return,
                ended = self.serve(&live) => ended,
            };
            let reason = failed.err().map_or_else(|| "the channel ended".to_owned(), |error| error.to_string());
            tracing::warn!(reason, "replays of the journal are interrupted, trying again");
            let pause = pauses.next_backoff().unwrap_or(pauses.max_interval);
            // Either way it is time to go on.
            let _ = timeout(pause, live.ended()).await;
        }
    }

    async fn serve(&self, live: &Live) -> Result<(), Error> {
        let channel = topology::open(live.connection()).await?;
        let mut orders = consume(&channel, &self.topology.replays, 1, FieldTable::default()).await?;
        while let Some(order) = orders.next().await {
            let delivery = order.map_err(|error| topology::unavailable(&error))?;
            match serde_json::from_slice::<Order>(&delivery.data) {
                Ok(order) => self.replay(live, &order).await?,
                Err(error) => tracing::error!(%error, "an order to replay the journal is none, it is dropped"),
            }
            acknowledge(&channel, delivery.delivery_tag).await?;
        }
        Ok(())
    }

    async fn replay(&self, live: &Live, order: &Order) -> Result<(), Error> {
        tracing::warn!(%order, "the journal is replayed");
        let connection = live.connection();
        let mut journal = Reading::start(connection, &self.topology, &self.publisher, order.earliest()).await?;
        let mut events = 0;
        while let Some(messages) = journal.messages().await? {
            let again: Vec<Message> = messages.into_iter().filter_map(|message| self.again(order, message)).collect();
            events += again.len() as u64;
            self.publish(again).await?;
        }
        self.metrics.replayed_events.increment(events);
        tracing::info!(events, "the journal was replayed");
        Ok(())
    }

    /// Makes the message that takes an event of the journal to its work queue, if that was lost.
    fn again(&self, order: &Order, delivery: lapin::message::Delivery) -> Option<Message> {
        let queue = self.topology.queue_of(delivery.routing_key.as_str())?;
        order.since.contains_key(queue).then(|| {
            let mut headers = delivery.properties.headers().clone().unwrap_or_default();
            headers.insert(REPLAYED.into(), AMQPValue::Boolean(true));
            Message {
                exchange: String::new(),
                routing_key: queue.to_owned(),
                properties: delivery.properties.with_headers(headers),
                body: delivery.data.into(),
            }
        })
    }

    /// Publishes until it is confirmed: what was confirmed in vain before has no second effect.
    async fn publish(&self, messages: Vec<Message>) -> Result<(), Error> {
        let mut pauses = pauses();
        loop {
            match self.publisher.publish(messages.clone()).await {
                Err(Error::Unavailable { reason }) => {
                    tracing::debug!(reason, "a replay waits for the broker");
                    sleep(pauses.next_backoff().unwrap_or(pauses.max_interval)).await;
                }
                done => return done,
            }
        }
    }
}

/// Tells whether a delivery is handed out once more.
pub(super) fn is_restored(properties: &BasicProperties) -> bool {
    matches!(header(properties, REPLAYED), Some(AMQPValue::Boolean(true)))
}
