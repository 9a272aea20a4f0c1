//! Dead letters: what is said of an event that was given up on, reading them again, putting them back, removing them.
//!
//! The message of a decodable event is the event itself, so that it can be put back; that of anything else
//! tells its length, SHA-256 and reason, never its bytes. The reason, and how often the event had been
//! out, stand in headers.

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
use crate::queue::{DeadLetter, Error, MAX_SEARCHED, Payload, Reason, Redriven, Undecodable, Which, wire};

use super::headers;
use super::publisher::{Message, Publisher, json_properties};
use super::topology::{self, Topology};

/// How many dead letters are put back or removed at once.
const CHUNK: usize = 256;

/// How many are asked for before the first of them has come.
const AT_ONCE: usize = 32;

/// The longest wait for an answer of the broker.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait for others who look through the dead letters.
pub(super) const TURN: Duration = Duration::from_secs(30);

/// The longest wait for what was given back. Others may take of it meanwhile.
const RETURN: Duration = Duration::from_millis(500);

/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The header of the reason.
const REASON: &str = "reason";

/// The header of how often the event had been redelivered.
const REDELIVERED: &str = "redelivered";

/// The type of a message that tells of something undecodable.
const UNDECODABLE: &str = "undecodable";

/// What is kept of something that is no event.
#[derive(Serialize, Deserialize)]
struct Told {
    length: usize,
    sha256: String,
    reason: String,
}

/// Makes the dead letter of a delivery.
pub(super) fn message(
    queue: &str,
    payload: &Payload,
    body: &[u8],
    reason: Reason,
    redelivered: u32,
    now: Timestamp,
) -> Message {
    let mut headers = FieldTable::default();
    headers.insert(REASON.into(), AMQPValue::LongString(reason.as_str().into()));
    headers.insert(REDELIVERED.into(), AMQPValue::LongLongInt(redelivered.into()));
    let (kind, body) = match payload {
        Payload::Event(event) => (event.kind.as_str(), body.to_vec()),
        Payload::Undecodable(Undecodable { length, sha256, .. }) => {
            let told = Told { length: *length, sha256: sha256.clone(), reason: reason.as_str().to_owned() };
            // A struct of texts and a number is always JSON.
            (UNDECODABLE, serde_json::to_vec(&told).expect("texts and numbers are JSON"))
        }
    };
    Message {
        exchange: String::new(),
        routing_key: queue.to_owned(),
        properties: json_properties()
            .with_message_id(Uuid::now_v7().to_string().into())
            .with_type(kind.into())
            .with_timestamp(u64::try_from(now.as_millis() / 1000).unwrap_or(0))
            .with_headers(headers),
        body: body.into(),
    }
}

/// Reads the oldest dead letters, at most `limit`, and leaves them where they are.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails.
pub(super) async fn read(connection: &Connection, queue: &str, limit: usize) -> Result<Vec<DeadLetter>, Error> {
    let mut letters = Letters::of(connection, queue, limit).await?;
    let mut found = Vec::new();
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        found.extend(chunk.iter().map(|(_, letter)| letter.clone()));
    }
    letters.give_back().await?;
    Ok(found)
}

/// Puts dead letters back that are events: each is published again, confirmed, and acknowledged only then. What is no
/// event, or not meant, stays: it is held until the end, and goes back with the channel.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails: what was published by then is back, and its dead letter is gone, or
/// comes back and is published once more.
pub(super) async fn redrive(
    connection: &Connection,
    topology: &Topology,
    publisher: &Publisher,
    which: &Which,
) -> Result<Redriven, Error> {
    let mut redriven = Redriven::default();
    let mut letters = Letters::of(connection, &topology.dead_letters, searched(which)).await?;
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
    letters.give_back().await?;
    Ok(redriven)
}

/// Removes dead letters for good; returns how many.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails: some may be gone.
pub(super) async fn purge(connection: &Connection, queue: &str, which: &Which) -> Result<u64, Error> {
    let mut purged = 0;
    let mut letters = Letters::of(connection, queue, searched(which)).await?;
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        let meant = chunk.iter().filter(|(_, letter)| which.holds(&letter.id));
        let tags: Vec<u64> = meant.map(|(tag, _)| *tag).collect();
        letters.acknowledge(&tags).await?;
        purged += tags.len() as u64;
    }
    letters.give_back().await?;
    Ok(purged)
}

/// How many dead letters are looked at.
const fn searched(which: &Which) -> usize {
    match which {
        Which::All => usize::MAX,
        Which::These(_) => MAX_SEARCHED,
    }
}

/// The dead letters that were there when it began, oldest first, taken and held until they are acknowledged or given
/// back.
struct Letters<'a> {
    channel: Channel,
    queue: &'a str,
    left: u64,
    held: u64,
}

impl<'a> Letters<'a> {
    async fn of(connection: &Connection, queue: &'a str, limit: usize) -> Result<Self, Error> {
        let channel = soon(topology::open(connection)).await?;
        let left = soon(topology::count(&channel, queue)).await?.min(limit as u64);
        Ok(Self { channel, queue, left, held: 0 })
    }

    /// Takes some more; none at the end.
    async fn next(&mut self) -> Result<Vec<(u64, DeadLetter)>, Error> {
        let mut chunk = Vec::new();
        while self.left > 0 && chunk.len() < CHUNK {
            let asked = self.left.min(AT_ONCE as u64);
            let got = try_join_all((0..asked).map(|_| soon(get(&self.channel, self.queue)))).await?;
            let found = got.iter().flatten().count() as u64;
            // Others may have taken some.
            self.left = if found < asked { 0 } else { self.left - asked };
            self.held += found;
            chunk.extend(got.iter().flatten().map(|got| (got.delivery_tag, understand(&got.properties, &got.data))));
        }
        Ok(chunk)
    }

    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), Error> {
        for tag in tags {
            soon(async {
                let acknowledged = self.channel.basic_ack(*tag, BasicAckOptions::default()).await;
                acknowledged.map_err(|error| topology::unavailable(&error))
            })
            .await?;
            self.held -= 1;
        }
        Ok(())
    }

    /// Gives back what was not acknowledged, and waits a moment until it is there again: who asks next finds it.
    async fn give_back(self) -> Result<(), Error> {
        if self.held > 0 {
            let all = BasicNackOptions { multiple: true, requeue: true };
            soon(async { self.channel.basic_nack(0, all).await.map_err(|error| topology::unavailable(&error)) })
                .await?;
            let deadline = Instant::now() + RETURN;
            while soon(topology::count(&self.channel, self.queue)).await? < self.held && Instant::now() < deadline {
                sleep(LOOK_EVERY).await;
            }
        }
        // What is not closed in good order here is closed when it is dropped.
        let _ = timeout(PATIENCE, self.channel.close(200, "done".into())).await;
        Ok(())
    }
}

/// Takes the oldest message; `None` if there is none.
async fn get(channel: &Channel, queue: &str) -> Result<Option<BasicGetMessage>, Error> {
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
    got.map_err(|error| topology::unavailable(&error))
}

/// Waits for what the broker has to answer.
async fn soon<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    topology::within(PATIENCE, answer).await
}

fn understand(properties: &BasicProperties, body: &[u8]) -> DeadLetter {
    let payload = match wire::decode(body) {
        Ok(event) => Payload::Event(Arc::new(event)),
        Err(undecodable) => Payload::Undecodable(told(body).unwrap_or(undecodable)),
    };
    let reason = match (headers::text(properties, REASON), &payload) {
        (Some(reason), _) => reason.into_owned(),
        (None, Payload::Undecodable(undecodable)) => undecodable.reason.as_str().to_owned(),
        (None, Payload::Event(_)) => "not given".to_owned(),
    };
    let redelivered = match headers::header(properties, REDELIVERED) {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(_) | None => None,
    };
    // A message of somebody else may have no id; what stands in it tells it from others.
    let id = properties.message_id().as_ref().map_or_else(|| digest(body), ToString::to_string);
    let seconds = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let since = seconds.map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)));
    DeadLetter { id, reason, since, redelivered, payload }
}

fn digest(body: &[u8]) -> String {
    hex::encode(&Sha256::digest(body)[..8])
}

fn told(body: &[u8]) -> Option<Undecodable> {
    let Told { length, sha256, reason } = serde_json::from_slice(body).ok()?;
    let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason)?;
    Some(Undecodable { length, sha256, reason })
}
