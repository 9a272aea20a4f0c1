//! The message of a dead letter: the event itself, so that it can be published again. For bytes that cannot be decoded the message
//! has their length, SHA-256 and the reason, never the bytes. Headers carry the reason and the number of redeliveries.

use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, DeadLetterReason, Payload, Undecodable};

use super::authenticity::MessageKeys;
use super::message::{Message, header, text_header};

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

/// Reads the message of a dead letter.
pub(super) fn read_message(keys: &MessageKeys, properties: &BasicProperties, body: &[u8]) -> DeadLetter {
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
