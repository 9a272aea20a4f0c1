//! Amazon EventBridge events, as the partner event source of Genesys sends them.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::Shape;

use super::fields::{Doubt, OptionalText};
use super::genesys::{Envelope, Notification, read_topic};
use super::{Malformed, PostedEvent, join, parse};

#[derive(Deserialize)]
struct EventBridgeEvent<'a> {
    #[serde(default)]
    id: OptionalText,
    #[serde(default)]
    time: OptionalText,
    #[serde(borrow)]
    detail: &'a RawValue,
}

/// Parses one EventBridge event.
pub(super) fn read(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let event: EventBridgeEvent<'_> = parse(body, path)?;
    let mut doubt = Doubt::default();
    let (sender_id, at) = (doubt.sender_id(&event.id), doubt.time(&event.time));
    let envelope = Envelope { shape: Shape::EventBridge, sender_id, at, doubt };
    let path = join(path, "detail");
    let detail: Notification<'_> = parse(event.detail.get().as_bytes(), &path)?;
    read_topic(&detail, &path, envelope)
}
