//! The journal, read: a stream on the broker that takes nothing from anybody.
//!
//! It is read from a time to a **marker**, which the reader puts there itself once it is reading: the end of what was
//! published before. The marker is a message without a body; everyone else's readings pass it by.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::{Event, Timestamp};
use crate::queue::{Error, Journal, wire};

use super::headers;
use super::publisher::{Message, Publisher, json_properties};
use super::topology::{self, Topology};

/// How many of the journal's messages are under way at once.
const PREFETCH: u16 = 512;

/// How many of them are handed over at once.
const CHUNK: usize = 256;

/// The longest silence of a journal that has not shown the marker yet.
const SILENCE: Duration = Duration::from_secs(30);

/// How much earlier than a time reading begins: clocks of several machines, and the order of a queue that is only
/// nearly that of time.
const MARGIN: Duration = Duration::from_secs(60);

/// The header of a marker.
const MARKER: &str = "marker";

/// A journal that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    channel: Channel,
    consumer: Consumer,
    marker: String,
    ended: bool,
}

impl Reading {
    /// Begins to read at a time and a little before; `None`: at the beginning.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the broker fails.
    pub(super) async fn start(
        connection: &Connection,
        topology: &Topology,
        publisher: &Publisher,
        since: Option<Timestamp>,
    ) -> Result<Self, Error> {
        let channel = topology::open(connection).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset(since));
        let consumer = consume(&channel, &topology.journal, PREFETCH, arguments).await?;
        let marker = Uuid::now_v7().to_string();
        let mut headers = FieldTable::default();
        headers.insert(MARKER.into(), AMQPValue::LongString(marker.as_str().into()));
        publisher.publish(vec![direct(&topology.journal, headers, Vec::new())]).await?;
        Ok(Self { channel, consumer, marker, ended: false })
    }

    /// Returns the next messages, markers left out; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the broker fails, or is silent. The reading is of no more use then.
    pub(super) async fn messages(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let (mut chunk, mut last) = (Vec::new(), 0);
        for _ in 0..CHUNK {
            let silent = |_elapsed| Error::Unavailable { reason: "the journal is silent".to_owned() };
            let Some(said) = timeout(SILENCE, self.consumer.next()).await.map_err(silent)? else {
                return Err(Error::Unavailable { reason: "the journal's consumer was cancelled".to_owned() });
            };
            let delivery = said.map_err(|error| topology::unavailable(&error))?;
            last = delivery.delivery_tag;
            match headers::text(&delivery.properties, MARKER) {
                Some(marker) if marker == self.marker => {
                    self.ended = true;
                    break;
                }
                Some(_) => {}
                None => chunk.push(delivery),
            }
        }
        // To a stream this only says that more may come.
        acknowledge(&self.channel, last).await?;
        if self.ended {
            // What is not closed in good order here is closed when it is dropped.
            let _ = self.channel.close(200, "read".into()).await;
        }
        Ok(Some(chunk))
    }
}

#[async_trait]
impl Journal for Reading {
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let Some(messages) = self.messages().await? else { return Ok(None) };
        // What cannot be decoded is among the dead letters by now, or will be.
        let events = messages.iter().filter_map(|message| wire::decode(&message.data).ok());
        Ok(Some(events.filter(|event| event.again.is_none()).collect()))
    }
}

/// Returns where reading begins, as the argument of a stream's consumer.
fn offset(since: Option<Timestamp>) -> AMQPValue {
    match since.and_then(|since| u64::try_from(since.as_millis() / 1000).ok()) {
        Some(seconds) => AMQPValue::Timestamp(seconds.saturating_sub(MARGIN.as_secs())),
        None => AMQPValue::LongString("first".into()),
    }
}

/// Makes a message that goes to a queue by its name.
pub(super) fn direct(queue: &str, headers: FieldTable, body: Vec<u8>) -> Message {
    let properties = json_properties().with_headers(headers);
    Message { exchange: String::new(), routing_key: queue.to_owned(), properties, body: body.into() }
}

/// Consumes a queue, at most so many messages at once.
pub(super) async fn consume(
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    arguments: FieldTable,
) -> Result<Consumer, Error> {
    let failed = |error: lapin::Error| topology::unavailable(&error);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.map_err(failed)
}

/// Acknowledges everything up to a tag.
pub(super) async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), Error> {
    let acknowledged = channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
    acknowledged.map_err(|error| topology::unavailable(&error))
}
