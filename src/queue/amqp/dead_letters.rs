//! Dead letters: writing, listing, redriving and purging them.
//!
//! The message of a dead letter is the event itself, so that it can be published again. For bytes that cannot be decoded
//! the message has their length, SHA-256 and the reason, never the bytes. Headers carry the reason and the number of
//! redeliveries.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::domain::Timestamp;
use crate::queue::{
    DeadLetter, DeadLetterReason, DeadLetterSelection, Error, MAX_SEARCHED, Payload, Redriven, Undecodable,
};

use super::authenticity::MessageKeys;
use super::channel;
use super::message::{Message, header, text_header};
use super::publisher::ConfirmedPublisher;
use super::topology::Topology;

/// How many dead letters are redriven or purged at once.
const CHUNK: usize = 256;

/// How many requests for a dead letter are in flight at once.
const CONCURRENT_GETS: usize = 32;

/// The longest wait for an answer of the broker.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for another operation on the dead letters.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest wait until returned dead letters are visible again. Another process may have taken some.
const RETURN_TIMEOUT: Duration = Duration::from_millis(500);

/// How often they are counted meanwhile.
const COUNT_EVERY: Duration = Duration::from_millis(5);

/// The header of the reason.
const REASON: &str = "reason";

/// The header of the number of redeliveries.
const REDELIVERED: &str = "redelivered";

/// The message type for bytes that cannot be decoded.
const UNDECODABLE: &str = "undecodable";

/// The stored description of bytes that cannot be decoded.
#[derive(Serialize, Deserialize)]
struct UndecodableRecord {
    length: usize,
    sha256: String,
    reason: String,
}

/// Creates the dead letter of a delivery.
pub(super) fn message(
    queue: &str,
    payload: &Payload,
    body: &[u8],
    reason: DeadLetterReason,
    redelivered: u32,
    now: Timestamp,
) -> Message {
    let mut headers = FieldTable::default();
    headers.insert(REASON.into(), AMQPValue::LongString(reason.as_str().into()));
    headers.insert(REDELIVERED.into(), AMQPValue::LongLongInt(redelivered.into()));
    let (kind, body) = match payload {
        Payload::Event(event) => (event.kind.as_str(), body.to_vec()),
        Payload::Undecodable(Undecodable { length, sha256, .. }) => {
            let record =
                UndecodableRecord { length: *length, sha256: sha256.clone(), reason: reason.as_str().to_owned() };
            // A struct of strings and a number always serializes to JSON.
            (UNDECODABLE, serde_json::to_vec(&record).expect("strings and numbers are JSON"))
        }
    };
    let mut message = Message::to_queue(queue, headers, body);
    message.properties = message
        .properties
        .with_message_id(Uuid::now_v7().to_string().into())
        .with_type(kind.into())
        .with_timestamp(u64::try_from(now.as_millis() / 1000).unwrap_or(0));
    message
}

/// Returns the oldest dead letters, at most `limit`, and keeps them.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails.
pub(super) async fn read(connection: &Connection, topology: &Topology, limit: usize) -> Result<Vec<DeadLetter>, Error> {
    let mut letters = DeadLetterCursor::open(connection, topology, limit).await?;
    let mut found = Vec::new();
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        found.extend(chunk.iter().map(|(_, letter)| letter.clone()));
    }
    letters.return_rest().await?;
    Ok(found)
}

/// Publishes the selected dead letters again. Each is acknowledged after the broker has confirmed the event. Dead letters
/// that are not selected or cannot be decoded are held until the end and then returned.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails. Some events are published then; their dead letters may still exist and
/// can be redriven again.
pub(super) async fn redrive(
    connection: &Connection,
    topology: &Topology,
    publisher: &ConfirmedPublisher,
    which: &DeadLetterSelection,
) -> Result<Redriven, Error> {
    let mut redriven = Redriven::default();
    let mut letters = DeadLetterCursor::open(connection, topology, searched(which)).await?;
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        let (mut tags, mut messages) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
        for (tag, letter) in chunk.iter().filter(|(_, letter)| which.holds(&letter.id)) {
            match &letter.payload {
                Payload::Event(event) => {
                    messages.push(Message::of_event(&event.redriven(), topology));
                    tags.push(*tag);
                }
                Payload::Undecodable(_) => redriven.kept += 1,
            }
        }
        publisher.publish(messages).await?;
        letters.acknowledge(&tags).await?;
        redriven.events += tags.len() as u64;
    }
    letters.return_rest().await?;
    Ok(redriven)
}

/// Deletes the selected dead letters; returns how many.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails: some may be deleted.
pub(super) async fn purge(
    connection: &Connection,
    topology: &Topology,
    which: &DeadLetterSelection,
) -> Result<u64, Error> {
    let mut purged = 0;
    let mut letters = DeadLetterCursor::open(connection, topology, searched(which)).await?;
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        let selected = chunk.iter().filter(|(_, letter)| which.holds(&letter.id));
        let tags: Vec<u64> = selected.map(|(tag, _)| *tag).collect();
        letters.acknowledge(&tags).await?;
        purged += tags.len() as u64;
    }
    letters.return_rest().await?;
    Ok(purged)
}

/// Returns how many dead letters are searched.
const fn searched(which: &DeadLetterSelection) -> usize {
    match which {
        DeadLetterSelection::All => usize::MAX,
        DeadLetterSelection::Ids(_) => MAX_SEARCHED,
    }
}

/// The dead letters at the time of its creation, oldest first. They are held until they are acknowledged or returned.
struct DeadLetterCursor<'a> {
    channel: Channel,
    topology: &'a Topology,
    left: u64,
    held: u64,
}

impl<'a> DeadLetterCursor<'a> {
    async fn open(connection: &Connection, topology: &'a Topology, limit: usize) -> Result<Self, Error> {
        let channel = answer(channel::open(connection)).await?;
        let left = answer(channel::count(&channel, &topology.dead_letters)).await?.min(limit as u64);
        Ok(Self { channel, topology, left, held: 0 })
    }

    /// Takes more dead letters; none at the end.
    async fn next(&mut self) -> Result<Vec<(u64, DeadLetter)>, Error> {
        let mut chunk = Vec::new();
        while self.left > 0 && chunk.len() < CHUNK {
            let asked = self.left.min(CONCURRENT_GETS as u64);
            let got = try_join_all((0..asked).map(|_| answer(get(&self.channel, &self.topology.dead_letters)))).await?;
            let found = got.iter().flatten().count() as u64;
            // Another process may have taken some.
            self.left = if found < asked { 0 } else { self.left - asked };
            self.held += found;
            let keys = &self.topology.keys;
            let letters =
                got.iter().flatten().map(|got| (got.delivery_tag, read_message(keys, &got.properties, &got.data)));
            chunk.extend(letters);
        }
        Ok(chunk)
    }

    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), Error> {
        for tag in tags {
            answer(async {
                let acknowledged = self.channel.basic_ack(*tag, BasicAckOptions::default()).await;
                acknowledged.map_err(|error| channel::unavailable(&error))
            })
            .await?;
            self.held -= 1;
        }
        Ok(())
    }

    /// Returns what was not acknowledged, and waits briefly until it is visible to the next operation.
    async fn return_rest(self) -> Result<(), Error> {
        if self.held > 0 {
            let all = BasicNackOptions { multiple: true, requeue: true };
            answer(async { self.channel.basic_nack(0, all).await.map_err(|error| channel::unavailable(&error)) })
                .await?;
            let deadline = Instant::now() + RETURN_TIMEOUT;
            while answer(channel::count(&self.channel, &self.topology.dead_letters)).await? < self.held
                && Instant::now() < deadline
            {
                sleep(COUNT_EVERY).await;
            }
        }
        // A channel that cannot be closed cleanly is closed when it is dropped.
        let _ = timeout(ANSWER_TIMEOUT, channel::close(self.channel)).await;
        Ok(())
    }
}

/// Takes the oldest message, if there is one.
async fn get(channel: &Channel, queue: &str) -> Result<Option<BasicGetMessage>, Error> {
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
    got.map_err(|error| channel::unavailable(&error))
}

/// Waits for an answer of the broker, for a limited time.
async fn answer<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    channel::within(ANSWER_TIMEOUT, answer).await
}

fn read_message(keys: &MessageKeys, properties: &BasicProperties, body: &[u8]) -> DeadLetter {
    let payload = match keys.decode(body) {
        Ok(event) => Payload::Event(Arc::new(event)),
        Err(undecodable) => Payload::Undecodable(read_record(body).unwrap_or(undecodable)),
    };
    let reason = match (text_header(properties, REASON), &payload) {
        (Some(reason), _) => reason.into_owned(),
        (None, Payload::Undecodable(undecodable)) => undecodable.reason.as_str().to_owned(),
        (None, Payload::Event(_)) => "not given".to_owned(),
    };
    let redelivered = match header(properties, REDELIVERED) {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(_) | None => None,
    };
    // A message from another program may have no id; the digest of its body identifies it.
    let id = properties.message_id().as_ref().map_or_else(|| digest(body), ToString::to_string);
    let seconds = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let since = seconds.map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)));
    DeadLetter { id, reason, since, redelivered, payload }
}

fn digest(body: &[u8]) -> String {
    hex::encode(&Sha256::digest(body)[..8])
}

fn read_record(body: &[u8]) -> Option<Undecodable> {
    let UndecodableRecord { length, sha256, reason } = serde_json::from_slice(body).ok()?;
    let reason = DeadLetterReason::ALL.into_iter().find(|known| known.as_str() == reason)?;
    Some(Undecodable { length, sha256, reason })
}
