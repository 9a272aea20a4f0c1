//! A dead letter as it stands in the log: the event where it can be decoded, else none of its bytes.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Payload, Reason, Undecodable, wire};

#[derive(Serialize, Deserialize)]
struct Form<'a> {
    reason: String,
    at: Timestamp,
    length: usize,
    sha256: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
}

/// Writes a dead letter.
pub(super) fn write(wire: &[u8], reason: Reason, at: Timestamp) -> Vec<u8> {
    let event = match wire::decode(wire) {
        // What was decoded is one JSON value.
        Ok(_) => serde_json::from_slice(wire).ok(),
        Err(_) => None,
    };
    let sha256 = hex::encode(Sha256::digest(wire));
    let letter = Form { reason: reason.as_str().to_owned(), at, length: wire.len(), sha256, event };
    // Serializing fails only on maps with keys that are no text and on failing writers: neither is here.
    serde_json::to_vec(&letter).expect("texts and numbers are JSON")
}

/// Returns the event of a dead letter as it is put back, if it is one.
pub(super) fn redriven(bytes: &[u8]) -> Option<Bytes> {
    let event = serde_json::from_slice::<Form<'_>>(bytes).ok()?.event?;
    let event = wire::decode(event.get().as_bytes()).ok()?;
    Some(wire::encode(&event.redriven()))
}

/// Reads a dead letter; what is none (a damaged file) is told of as such.
pub(super) fn read(number: u64, bytes: &[u8]) -> DeadLetter {
    let id = number.to_string();
    let Ok(letter) = serde_json::from_slice::<Form<'_>>(bytes) else {
        let sha256 = hex::encode(Sha256::digest(bytes));
        let payload = Payload::Undecodable(Undecodable { length: bytes.len(), sha256, reason: Reason::Undecodable });
        return DeadLetter { id, reason: "not given".to_owned(), since: None, redelivered: None, payload };
    };
    let Form { reason, at, length, sha256, event } = letter;
    let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason).unwrap_or(Reason::Undecodable);
    let told = Undecodable { length, sha256, reason: known };
    let event = event.and_then(|event| wire::decode(event.get().as_bytes()).ok());
    let payload = event.map_or(Payload::Undecodable(told), |event| Payload::Event(Arc::new(event)));
    DeadLetter { id, reason, since: Some(at), redelivered: None, payload }
}
