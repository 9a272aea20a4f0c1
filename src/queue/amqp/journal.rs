//! Reads the journal: a stream on the broker, from which reading removes nothing.
//!
//! A reader ends at an offset, or at a **marker**, a message without a body that is published to the stream after the
//! reader has started: everything before the marker was published earlier. Other readers skip the marker.
//!
//! # Clocks
//!
//! A start in time is given as an age and judged by the broker's clock, which also dates the parts of the stream. So the
//! clock of this process only measures how long ago something was, and may differ from that of the broker.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::Event;
use crate::queue::{Error, Journal};

use super::authenticity::MessageKeys;
use super::channel;
use super::connection::OpenConnection;
use super::message::{MARKER, Message, header, text_header};
use super::publisher::ConfirmedPublisher;
use super::topology::Topology;

/// How many messages of the stream the broker sends ahead.
const PREFETCH: u16 = 512;

/// How many messages one call returns at most.
const CHUNK: usize = 256;

/// The longest wait for the next message before the end.
const SILENCE: Duration = Duration::from_secs(30);

/// How much older than the requested age reading starts: the clocks of several machines differ, and the order of a
/// queue is only roughly that of time.
const MARGIN: Duration = Duration::from_secs(60);

/// The header with the offset of a message in the stream.
const OFFSET: &str = "x-stream-offset";

/// Where a reader starts.
#[derive(Clone, Copy, Debug)]
enum StreamStart {
    /// At the oldest message.
    First,
    /// Somewhere before the end.
    Last,
    /// At what was published this long ago, less the margin.
    Age(Duration),
    /// At this offset, or the oldest message after it.
    Offset(u64),
}

/// Where a reader ends.
#[derive(Debug)]
enum StreamEnd {
    /// At the marker with this id.
    Marker(String),
    /// Before the message at this offset.
    Offset(u64),
}

/// A reader of the journal.
#[derive(Debug)]
pub(super) struct StreamReader {
    channel: Channel,
    consumer: Consumer,
    next: u64,
    end: StreamEnd,
    ended: bool,
    keys: Arc<MessageKeys>,
    /// Keeps a connection that was replaced meanwhile.
    _open: Option<OpenConnection>,
}

impl StreamReader {
    /// Starts to read what was published within an age, and the margin, and before this call; `None`: everything.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the broker fails.
    pub(super) async fn start(
        connection: &Connection,
        topology: &Topology,
        publisher: &ConfirmedPublisher,
        age: Option<Duration>,
    ) -> Result<Self, Error> {
        let marker = Uuid::now_v7().to_string();
        let start = age.map_or(StreamStart::First, StreamStart::Age);
        let reader = Self::open(connection, topology, start, StreamEnd::Marker(marker.clone())).await?;
        publish_marker(topology, publisher, &marker).await?;
        Ok(reader)
    }

    /// Starts to read a range of offsets.
    ///
    /// # Errors
    ///
    /// As of [`StreamReader::start`].
    pub(super) async fn of_range(
        connection: &Connection,
        topology: &Topology,
        range: Range<u64>,
    ) -> Result<Self, Error> {
        let end = StreamEnd::Offset(range.end);
        Self::open(connection, topology, StreamStart::Offset(range.start), end).await
    }

    async fn open(
        connection: &Connection,
        topology: &Topology,
        start: StreamStart,
        end: StreamEnd,
    ) -> Result<Self, Error> {
        let channel = channel::open(connection).await?;
        channel::prefetch(&channel, PREFETCH).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), start.argument());
        let consumer = channel::consume(&channel, &topology.journal, arguments).await?;
        let next = match start {
            StreamStart::Offset(offset) => offset,
            StreamStart::First | StreamStart::Last | StreamStart::Age(_) => 0,
        };
        Ok(Self { channel, consumer, next, end, ended: false, keys: Arc::clone(&topology.keys), _open: None })
    }

    /// Returns this reader as one that keeps its connection.
    pub(super) fn holding(self, open: OpenConnection) -> Self {
        Self { _open: Some(open), ..self }
    }

    /// Returns whether this reader continues with a range of offsets.
    pub(super) fn is_of(&self, range: &Range<u64>) -> bool {
        self.next == range.start && matches!(self.end, StreamEnd::Offset(end) if end == range.end)
    }

    /// Returns the offset after the last message that was read; after the end, the offset of the end.
    pub(super) const fn next_offset(&self) -> u64 {
        self.next
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
            let delivery = self.delivery().await?;
            last = delivery.delivery_tag;
            let offset = offset(&delivery).unwrap_or(self.next);
            let marker = text_header(&delivery.properties, MARKER);
            self.ended = match &self.end {
                StreamEnd::Marker(id) => marker.as_deref() == Some(id),
                StreamEnd::Offset(end) => offset >= *end,
            };
            // The broker may send earlier messages of the same part of the stream.
            let is_wanted = offset >= self.next && marker.is_none();
            self.next = self.next.max(offset + u64::from(!self.ended));
            if self.ended {
                break;
            }
            if is_wanted {
                chunk.push(delivery);
            }
            if matches!(self.end, StreamEnd::Offset(end) if self.next >= end) {
                self.ended = true;
                break;
            }
        }
        // For a stream this only allows the broker to send more.
        channel::acknowledge_up_to(&self.channel, last).await?;
        if self.ended {
            channel::close(self.channel.clone()).await;
        }
        Ok(Some(chunk))
    }

    async fn delivery(&mut self) -> Result<Delivery, Error> {
        let silent = |_elapsed| Error::Unavailable { reason: "the journal is silent".to_owned() };
        let received = timeout(SILENCE, self.consumer.next()).await.map_err(silent)?;
        let cancelled = || Error::Unavailable { reason: "the journal's consumer was cancelled".to_owned() };
        received.ok_or_else(cancelled)?.map_err(|error| channel::unavailable(&error))
    }
}

/// Returns the offsets of what was published within an age, and the margin, and before this call; `None`: everything.
///
/// # Errors
///
/// [`Error::Unavailable`]: the broker fails.
pub(super) async fn range(
    connection: &Connection,
    topology: &Topology,
    publisher: &ConfirmedPublisher,
    age: Option<Duration>,
) -> Result<Range<u64>, Error> {
    let marker = Uuid::now_v7().to_string();
    let open = async |start| StreamReader::open(connection, topology, start, StreamEnd::Marker(marker.clone())).await;
    let mut last = open(StreamStart::Last).await?;
    let first = match age {
        Some(age) => Some(open(StreamStart::Age(age)).await?),
        None => None,
    };
    publish_marker(topology, publisher, &marker).await?;
    let start = match first {
        Some(mut first) => {
            // If nothing else was published within the age, this is the marker.
            let start = offset(&first.delivery().await?).unwrap_or(0);
            channel::close(first.channel).await;
            start
        }
        None => 0,
    };
    while last.messages().await?.is_some() {}
    Ok(start.min(last.next)..last.next)
}

async fn publish_marker(topology: &Topology, publisher: &ConfirmedPublisher, marker: &str) -> Result<(), Error> {
    publisher.publish(vec![Message::marker(marker, topology)]).await
}

fn offset(delivery: &Delivery) -> Option<u64> {
    match header(&delivery.properties, OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
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

impl StreamStart {
    /// Returns the argument of a stream's consumer. An interval counts back from the present time of the broker.
    fn argument(self) -> AMQPValue {
        match self {
            Self::First => AMQPValue::LongString("first".into()),
            Self::Last => AMQPValue::LongString("last".into()),
            Self::Age(age) => AMQPValue::LongString(format!("{}s", age.saturating_add(MARGIN).as_secs()).into()),
            Self::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        }
    }
}
