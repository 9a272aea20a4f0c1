//! Reads the journal: a stream on the broker, from which reading removes nothing.
//!
//! A reader starts at a time and ends at a **marker**, a message without a body that it publishes to the stream after it
//! has started: everything before the marker was published earlier. Other readers skip the marker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::{Event, Timestamp};
use crate::queue::{Error, Journal};

use super::authenticity::MessageKeys;
use super::channel;
use super::message::{Message, text_header};
use super::publisher::ConfirmedPublisher;
use super::topology::Topology;

/// How many messages of the stream the broker sends ahead.
const PREFETCH: u16 = 512;

/// How many messages one call returns at most.
const CHUNK: usize = 256;

/// The longest wait for the next message before the marker.
const SILENCE: Duration = Duration::from_secs(30);

/// How much earlier than the requested time reading starts: the clocks of several machines differ, and the order of a
/// queue is only roughly that of time.
const MARGIN: Duration = Duration::from_secs(60);

/// The header of a marker.
const MARKER: &str = "marker";

/// A reader of the journal.
#[derive(Debug)]
pub(super) struct StreamReader {
    channel: Channel,
    consumer: Consumer,
    marker: String,
    keys: Arc<MessageKeys>,
    ended: bool,
}

impl StreamReader {
    /// Starts to read at a time, less the margin; `None`: at the beginning.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the broker fails.
    pub(super) async fn start(
        connection: &Connection,
        topology: &Topology,
        publisher: &ConfirmedPublisher,
        since: Option<Timestamp>,
    ) -> Result<Self, Error> {
        let channel = channel::open(connection).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset(since));
        channel::prefetch(&channel, PREFETCH).await?;
        let consumer = channel::consume(&channel, &topology.journal, arguments).await?;
        let marker = Uuid::now_v7().to_string();
        let mut headers = FieldTable::default();
        headers.insert(MARKER.into(), AMQPValue::LongString(marker.as_str().into()));
        publisher.publish(vec![Message::to_queue(&topology.journal, headers, Vec::new())]).await?;
        Ok(Self { channel, consumer, marker, keys: Arc::clone(&topology.keys), ended: false })
    }

    /// Returns the next messages, without markers; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the broker fails or is silent. The reader cannot be used again.
    pub(super) async fn messages(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let (mut chunk, mut last) = (Vec::new(), 0);
        for _ in 0..CHUNK {
            let silent = |_elapsed| Error::Unavailable { reason: "the journal is silent".to_owned() };
            let Some(received) = timeout(SILENCE, self.consumer.next()).await.map_err(silent)? else {
                return Err(Error::Unavailable { reason: "the journal's consumer was cancelled".to_owned() });
            };
            let delivery = received.map_err(|error| channel::unavailable(&error))?;
            last = delivery.delivery_tag;
            match text_header(&delivery.properties, MARKER) {
                Some(marker) if marker == self.marker => {
                    self.ended = true;
                    break;
                }
                Some(_) => {}
                None => chunk.push(delivery),
            }
        }
        // For a stream this only allows the broker to send more.
        channel::acknowledge_up_to(&self.channel, last).await?;
        if self.ended {
            channel::close(self.channel.clone()).await;
        }
        Ok(Some(chunk))
    }
}

#[async_trait]
impl Journal for StreamReader {
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let Some(messages) = self.messages().await? else { return Ok(None) };
        // What cannot be decoded is a dead letter, or will be.
        let events = messages.iter().filter_map(|message| self.keys.decode(&message.data).ok());
        Ok(Some(events.filter(|event| event.again.is_none()).collect()))
    }
}

/// Returns the start of reading, as the argument of a stream's consumer.
fn offset(since: Option<Timestamp>) -> AMQPValue {
    match since.and_then(|since| u64::try_from(since.as_millis() / 1000).ok()) {
        Some(seconds) => AMQPValue::Timestamp(seconds.saturating_sub(MARGIN.as_secs())),
        None => AMQPValue::LongString("first".into()),
    }
}
