//! Dead letters: what is said of an event that was given up on, and reading them again.
//!
//! The message of a decodable event is the event itself, so that it can be put back; that of anything else
//! tells its length, SHA-256 and reason, never its bytes. The reason, and how often the event had been
//! out, stand in headers.

use std::sync::Arc;

use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error, Payload, Reason, Undecodable, wire};

use super::publisher::{Message, json_properties};
use super::topology;

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
    let failed = |error: lapin::Error| topology::unavailable(&error);
    let channel = topology::open(connection).await?;
    let mut found = Vec::new();
    while found.len() < limit {
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await.map_err(failed)?;
        let Some(got) = got else { break };
        found.push(understand(&got.properties, &got.data));
    }
    // Everything that was taken and not acknowledged goes back with the channel.
    channel.close(200, "read".into()).await.map_err(failed)?;
    Ok(found)
}

fn understand(properties: &BasicProperties, body: &[u8]) -> DeadLetter {
    let header = |name: &str| properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    let payload = match wire::decode(body) {
        Ok(event) => Payload::Event(Arc::new(event)),
        Err(undecodable) => Payload::Undecodable(told(body).unwrap_or(undecodable)),
    };
    let reason = match (header(REASON), &payload) {
        (Some(AMQPValue::LongString(reason)), _) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        (Some(AMQPValue::ShortString(reason)), _) => reason.to_string(),
        (Some(_) | None, Payload::Undecodable(undecodable)) => undecodable.reason.as_str().to_owned(),
        (Some(_) | None, Payload::Event(_)) => "not given".to_owned(),
    };
    let redelivered = match header(REDELIVERED) {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(_) | None => None,
    };
    let id = properties.message_id().as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let seconds = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let since = seconds.map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)));
    DeadLetter { id, reason, since, redelivered, payload }
}

fn told(body: &[u8]) -> Option<Undecodable> {
    let Told { length, sha256, reason } = serde_json::from_slice(body).ok()?;
    let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason)?;
    Some(Undecodable { length, sha256, reason })
}
