//! Replay: a work queue gets events from the journal again: those that it may never have handed out, when it was
//! lost, or those whose effects the store may have lost.
//!
//! # Protocol
//!
//! 1. Whoever finds a work queue missing beside a journal, or had a consumer cancelled by the broker,
//!    publishes an **order** to the queue of replays, confirmed, *before* the work queue is made again: so
//!    there is never a new work queue without an order for it.
//! 2. One consuming process takes the order. It reads the journal from the given time to a **marker**, which
//!    it puts there itself once it is reading, and publishes what belongs to the lost queues again, confirmed.
//!    Everything that is published after the marker finds its work queue by itself.
//! 3. Only then the order is acknowledged. If the process ends before, another takes the order.
//!
//! An order for effects that may be lost begins at step 2. What is published again says so in a header. Events
//! that had been applied are applied again, which has no second effect. An order without a time is for the whole
//! journal.
//!
//! # What a failure leaves behind
//!
//! The order; it is taken again after a pause, by this process or another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;

use super::link::{Live, pauses};
use super::publisher::{Message, Publisher, json_properties};
use super::topology::{self, Topology};

/// How many of the journal's messages are under way at once.
const CHUNK: u16 = 512;

/// The longest silence of a journal that has not shown the marker yet.
const SILENCE: Duration = Duration::from_secs(30);

/// How much older than the mark of a queue an event may be that the queue had not handed out: clocks of
/// several machines, and the order of a queue that is only nearly that of time.
const MARGIN: Duration = Duration::from_secs(60);

/// The header of a marker.
const MARKER: &str = "marker";

/// The header of what comes from the journal.
const REPLAYED: &str = "replayed";

/// From which time on each lost queue is to be replayed, in milliseconds; `None`: from the beginning.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    since: BTreeMap<String, Option<i64>>,
}

impl Order {
    /// Makes the order for lost queues, from what is known of what they had handed out.
    pub(super) fn new(lost: impl IntoIterator<Item = String>, marks: &BTreeMap<String, Timestamp>) -> Self {
        let margin = i64::try_from(MARGIN.as_millis()).unwrap_or(i64::MAX);
        let since = |queue: &String| marks.get(queue).map(|mark| mark.as_millis().saturating_sub(margin));
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

    /// Returns where reading begins: at the earliest of all, as the argument of a stream's consumer.
    fn offset(&self) -> AMQPValue {
        let earliest = self.since.values().min().copied().flatten();
        match earliest.and_then(|millis| u64::try_from(millis / 1000).ok()) {
            Some(seconds) => AMQPValue::Timestamp(seconds),
            None => AMQPValue::LongString("first".into()),
        }
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
        let channel = topology::open(live.connection()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), order.offset());
        let mut journal = consume(&channel, &self.topology.journal, CHUNK, arguments).await?;
        let marker = Uuid::now_v7().to_string();
        let mut headers = FieldTable::default();
        headers.insert(MARKER.into(), AMQPValue::LongString(marker.as_str().into()));
        self.publisher.publish(vec![direct(&self.topology.journal, headers, Vec::new())]).await?;

        let (mut events, mut chunk, mut last) = (0, Vec::new(), 0);
        loop {
            let silent = |_elapsed| Error::Unavailable { reason: "the journal is silent".to_owned() };
            let Some(said) = timeout(SILENCE, journal.next()).await.map_err(silent)? else {
                return Err(Error::Unavailable { reason: "the journal's consumer was cancelled".to_owned() });
            };
            let delivery = said.map_err(|error| topology::unavailable(&error))?;
            last = last.max(delivery.delivery_tag);
            let ended = marks(&delivery, &marker);
            chunk.extend(self.again(order, delivery));
            if ended || chunk.len() >= usize::from(CHUNK / 2) || last % u64::from(CHUNK / 2) == 0 {
                events += chunk.len() as u64;
                self.publish(std::mem::take(&mut chunk)).await?;
                acknowledge(&channel, last).await?;
            }
            if ended {
                break;
            }
        }
        self.metrics.replayed_events.increment(events);
        tracing::info!(events, "the journal was replayed");
        // What is not closed in good order here is closed when it is dropped.
        let _ = channel.close(200, "replayed".into()).await;
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

/// Tells whether a delivery comes from the journal.
pub(super) fn is_replayed(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref();
    matches!(headers.and_then(|headers| headers.inner().get(REPLAYED)), Some(AMQPValue::Boolean(true)))
}

fn marks(delivery: &lapin::message::Delivery, marker: &str) -> bool {
    let headers = delivery.properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get(MARKER)) {
        Some(AMQPValue::LongString(text)) => text.as_bytes() == marker.as_bytes(),
        Some(AMQPValue::ShortString(text)) => text.as_str() == marker,
        Some(_) | None => false,
    }
}

fn direct(queue: &str, headers: FieldTable, body: Vec<u8>) -> Message {
    let properties = json_properties().with_headers(headers);
    Message { exchange: String::new(), routing_key: queue.to_owned(), properties, body: body.into() }
}

async fn consume(channel: &Channel, queue: &str, prefetch: u16, arguments: FieldTable) -> Result<Consumer, Error> {
    let failed = |error: lapin::Error| topology::unavailable(&error);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.map_err(failed)
}

async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), Error> {
    let acknowledged = channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
    acknowledged.map_err(|error| topology::unavailable(&error))
}
