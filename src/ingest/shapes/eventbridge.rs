//! Amazon EventBridge events, as the partner event source of Genesys sends them.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::Shape;

use super::fields::{sender_id, time};
use super::genesys::{Envelope, Notification, read_topic};
use super::{Malformed, PostedEvent, join, parse};

#[derive(Deserialize)]
struct EventBridgeEvent<'a> {
    id: String,
    #[serde(default)]
    time: Option<String>,
    #[serde(borrow)]
    detail: &'a RawValue,
}

/// Parses one EventBridge event.
pub(super) fn read(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let event: EventBridgeEvent<'_> = parse(body, path)?;
    let envelope = Envelope {
        shape: Shape::EventBridge,
        sender_id: sender_id(path, "id", Some(event.id))?,
        at: time(path, "time", event.time.as_deref())?,
    };
    let path = join(path, "detail");
    let detail: Notification<'_> = parse(event.detail.get().as_bytes(), &path)?;
    read_topic(&detail, &path, envelope)
}
