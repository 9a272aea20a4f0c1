//! `CloudEvents` 1.0, in the structured and the binary mode of the HTTP binding.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::domain::Shape;

use super::fields::{Doubt, OptionalText};
use super::genesys::{Envelope, Notification, read_topic};
use super::{Announcement, Malformed, PostedEvent, SenderId, flat, join, malformed, parse};

/// The attributes that are used, from headers or from the body.
struct Attributes {
    id: String,
    source: String,
    kind: String,
    time: OptionalText,
}

#[derive(Deserialize)]
struct StructuredEvent<'a> {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    time: OptionalText,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    data_base64: Option<String>,
}

/// Returns whether a request is in binary mode.
pub(super) fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion") || headers.contains_key("ce-id")
}

/// Parses an event in binary mode: its attributes are headers, its data is the body.
pub(super) fn read_binary(headers: &HeaderMap, body: &[u8]) -> Result<PostedEvent, Malformed> {
    let required = |name: &str| header(headers, name)?.ok_or_else(|| Malformed::new(name, "is missing"));
    version("ce-specversion", &required("ce-specversion")?)?;
    let attributes = Attributes {
        id: required("ce-id")?,
        source: required("ce-source")?,
        kind: required("ce-type")?,
        time: match header(headers, "ce-time") {
            Ok(Some(time)) if !time.is_empty() => OptionalText::Text(time),
            Ok(_) => OptionalText::Absent,
            Err(_) => OptionalText::Unreadable,
        },
    };
    read_data(attributes, body, "", "ce-")
}

/// Parses an event in structured mode: a JSON object.
pub(super) fn read_structured(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let event: StructuredEvent<'_> = parse(body, path)?;
    version(&join(path, "specversion"), &event.specversion)?;
    let attributes = Attributes { id: event.id, source: event.source, kind: event.kind, time: event.time };
    match (event.data, event.data_base64) {
        (Some(data), None) => read_data(attributes, data.get().as_bytes(), &join(path, "data"), ""),
        (None, Some(encoded)) => {
            let path = join(path, "data_base64");
            let data = STANDARD.decode(encoded).map_err(|_| Malformed::new(&path, "must be base64"))?;
            malformed::check_depth(&data, &path)?;
            read_data(attributes, &data, &path, "")
        }
        (None, None) => Err(Malformed::new(join(path, "data"), "is missing")),
        (Some(_), Some(_)) => Err(Malformed::new(join(path, "data_base64"), "must not be given together with data")),
    }
}

fn read_data(attributes: Attributes, data: &[u8], path: &str, prefix: &str) -> Result<PostedEvent, Malformed> {
    /// The fields that distinguish the kinds of data.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct DataProbe<'a> {
        #[serde(default, borrow)]
        detail: Option<&'a RawValue>,
        #[serde(default)]
        topic_name: Option<IgnoredAny>,
    }
    for (field, value) in [("id", &attributes.id), ("source", &attributes.source), ("type", &attributes.kind)] {
        if value.is_empty() {
            return Err(Malformed::new(format!("{prefix}{field}"), "must not be empty"));
        }
    }
    let sender_id = SenderId { id: attributes.id, source: attributes.source };
    let mut doubt = Doubt::default();
    let at = doubt.time(&attributes.time);
    let envelope = Envelope { shape: Shape::CloudEvents, sender_id: Some(sender_id), at, doubt };
    let probe: DataProbe<'_> = parse(data, path)?;
    if let Some(detail) = probe.detail {
        let path = join(path, "detail");
        return read_topic(&parse::<Notification<'_>>(detail.get().as_bytes(), &path)?, &path, envelope);
    }
    if probe.topic_name.is_some() {
        return read_topic(&parse::<Notification<'_>>(data, path)?, path, envelope);
    }
    Ok(match flat::read(data, path, (flat::kind_of(&attributes.kind), envelope.at), Shape::CloudEvents)? {
        // The id of the envelope is the id of the event.
        PostedEvent::Announced(announcement) => PostedEvent::Announced(Announcement {
            sender_id: envelope.sender_id,
            is_partial: announcement.is_partial || envelope.doubt.0,
            ..announcement
        }),
        other @ (PostedEvent::Ignored { .. } | PostedEvent::Conversation { .. } | PostedEvent::Rejected(_)) => other,
    })
}

fn version(field: &str, version: &str) -> Result<(), Malformed> {
    if version == "1.0" { Ok(()) } else { Err(Malformed::new(field, "expected \"1.0\"")) }
}

/// Returns a header, percent-decoded (section 3.1.3.2 of the HTTP binding).
fn header(headers: &HeaderMap, name: &str) -> Result<Option<String>, Malformed> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Malformed::new(name, "is given more than once"));
    }
    let text = percent_decode(value.as_bytes()).decode_utf8();
    text.map(|text| Some(text.into_owned())).map_err(|_| Malformed::new(name, "must be UTF-8"))
}
