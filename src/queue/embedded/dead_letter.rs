//! The stored form of a dead letter: with the event if it can be decoded, else without its bytes.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, DeadLetterReason, Payload, Undecodable, wire};

#[derive(Serialize, Deserialize)]
struct StoredDeadLetter<'a> {
    reason: String,
    at: Timestamp,
    length: usize,
    sha256: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
}

/// Encodes a dead letter.
pub(super) fn write(wire: &[u8], reason: DeadLetterReason, at: Timestamp) -> Vec<u8> {
    let event = match wire::decode(wire) {
        // What can be decoded is one JSON value.
        Ok(_) => serde_json::from_slice(wire).ok(),
        Err(_) => None,
    };
    let sha256 = hex::encode(Sha256::digest(wire));
    let letter = StoredDeadLetter { reason: reason.as_str().to_owned(), at, length: wire.len(), sha256, event };
    // Serialization fails only on map keys that are not strings and on failing writers. There are none here.
    serde_json::to_vec(&letter).expect("texts and numbers are JSON")
}

/// Returns the event of a dead letter as it is published again, if it can be decoded.
pub(super) fn redriven(bytes: &[u8]) -> Option<Bytes> {
    let event = serde_json::from_slice::<StoredDeadLetter<'_>>(bytes).ok()?.event?;
    let event = wire::decode(event.get().as_bytes()).ok()?;
    Some(wire::encode(&event.redriven()))
}

/// Decodes a dead letter. Bytes that are not one (a damaged file) are described as undecodable.
pub(super) fn read(number: u64, bytes: &[u8]) -> DeadLetter {
    let id = number.to_string();
    let Ok(letter) = serde_json::from_slice::<StoredDeadLetter<'_>>(bytes) else {
        let sha256 = hex::encode(Sha256::digest(bytes));
        let payload =
            Payload::Undecodable(Undecodable { length: bytes.len(), sha256, reason: DeadLetterReason::Undecodable });
        return DeadLetter { id, reason: "not given".to_owned(), since: None, redelivered: None, payload };
    };
    let StoredDeadLetter { reason, at, length, sha256, event } = letter;
    let known = DeadLetterReason::ALL
        .into_iter()
        .find(|known| known.as_str() == reason)
        .unwrap_or(DeadLetterReason::Undecodable);
    let undecodable = Undecodable { length, sha256, reason: known };
    let event = event.and_then(|event| wire::decode(event.get().as_bytes()).ok());
    let payload = event.map_or(Payload::Undecodable(undecodable), |event| Payload::Event(Arc::new(event)));
    DeadLetter { id, reason, since: Some(at), redelivered: None, payload }
}
