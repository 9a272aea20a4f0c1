//! The event shapes: pure functions from headers and bytes to announcements.
//!
//! The route of one tenant accepts four shapes, and detects the shape by a mandatory field: `CloudEvents` (binary by its
//! `ce-*` headers, structured by `specversion`), EventBridge (`detail`), a Genesys notification (`topicName`), and the
//! flat form of this program. A request may be an array. The `data` of a `CloudEvents` event may be a flat form, a
//! notification, an EventBridge event, or the `detail` of one.
//!
//! Every customer id in an event becomes one of its customers. Nothing else of the body is kept.
//!
//! Senders fill in templates, and some write `""` or `null` for a field without a value. So an optional field with such
//! a value is treated as absent; except the id of an event, which must not be `""`.

mod cloudevents;
mod eventbridge;
mod fields;
mod flat;
mod genesys;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::{CustomerId, Digest, Event, EventId, KeyHasher, Kind, Shape, Stamps, TenantId, Timestamp};

use super::malformed::{Malformed, join, parse};

/// The maximum number of events in one request.
pub const MAX_EVENTS: usize = 1_000;

/// The maximum number of customers in one event.
pub const MAX_CUSTOMERS: usize = 1_000;

/// The events of one request.
#[derive(Clone, Debug)]
pub struct PostedRequest {
    /// Whether the request was an array.
    pub batch: bool,
    /// The events, in the order of the request.
    pub items: Vec<PostedEvent>,
}

/// One posted event.
#[derive(Clone, Debug)]
pub enum PostedEvent {
    /// It reports a change of customers.
    Announced(Announcement),
    /// It is well-formed but changes no profile.
    Ignored {
        /// Its shape.
        shape: Shape,
        /// Why it is ignored.
        reason: &'static str,
    },
}

/// A posted event, still with customer ids; [`into_event`](Self::into_event) makes it fit for the queue.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Its shape.
    pub shape: Shape,
    /// Its id at the sender, if it has one.
    pub sender_id: Option<SenderId>,
    /// What happened.
    pub kind: Kind,
    /// When it happened, by the clocks of Genesys.
    pub stamps: Stamps,
    /// Its customers; at least one.
    pub customers: Vec<CustomerId>,
    /// The tenant that it names, if any.
    pub tenant: Option<TenantId>,
}

/// The id of an event at its sender.
#[derive(Clone)]
pub struct SenderId {
    /// The id that people see.
    id: String,
    /// Makes `id` unique if it is not (the source of a `CloudEvents` event); else empty.
    source: String,
}

impl std::fmt::Debug for SenderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A sender may write anything into it, also personal data.
        f.write_str("SenderId([redacted])")
    }
}

impl SenderId {
    /// Creates an id that is unique without a source.
    pub(super) fn of(id: impl Into<String>) -> Self {
        Self { id: id.into(), source: String::new() }
    }

    /// Returns the id of one event of a message with this id.
    fn of_part(&self, index: usize) -> Self {
        Self { id: format!("{}.{index}", self.id), source: self.source.clone() }
    }
}

impl PostedRequest {
    /// Sets the signed id of the message as the id of its events. It replaces their own ids, except those of
    /// `CloudEvents`, which are equally unique.
    pub(super) fn set_message_id(&mut self, message: &SenderId) {
        for (index, item) in self.items.iter_mut().enumerate() {
            match item {
                PostedEvent::Announced(announcement) if announcement.shape != Shape::CloudEvents => {
                    announcement.sender_id = Some(if self.batch { message.of_part(index) } else { message.clone() });
                }
                PostedEvent::Announced(_) | PostedEvent::Ignored { .. } => {}
            }
        }
    }
}

/// Parses a request of the flat route.
///
/// # Errors
///
/// It is not the flat form; the error names the field.
pub fn read_flat(body: &[u8]) -> Result<PostedRequest, Malformed> {
    Ok(PostedRequest { batch: false, items: vec![flat::read(body, "", None, Shape::Flat)?] })
}

/// Parses only the tenant id of a request of the flat route.
///
/// # Errors
///
/// The tenant id is missing or invalid.
pub fn read_tenant(body: &[u8]) -> Result<TenantId, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TenantField {
        tenant_id: String,
    }
    let TenantField { tenant_id } = parse(body, "")?;
    tenant_id.parse().map_err(|error| Malformed::new("tenantId", error))
}

/// Parses a request of a tenant's route, in any shape.
///
/// # Errors
///
/// It has none of the shapes, or a field of its shape is invalid; the error names the field.
pub fn read_any(headers: &HeaderMap, body: &[u8]) -> Result<PostedRequest, Malformed> {
    if cloudevents::is_binary(headers) {
        return Ok(PostedRequest { batch: false, items: vec![cloudevents::read_binary(headers, body)?] });
    }
    if body.trim_ascii().first() != Some(&b'[') {
        return Ok(PostedRequest { batch: false, items: vec![read_one(body, "")?] });
    }
    let elements: Vec<&RawValue> = parse(body, "")?;
    if elements.is_empty() {
        return Err(Malformed::new("body", "expected at least one event, got an empty array"));
    }
    if elements.len() > MAX_EVENTS {
        let expected = format!("expected at most {MAX_EVENTS} events, got {}", elements.len());
        return Err(Malformed::new("body", expected));
    }
    let read = |(index, element): (usize, &&RawValue)| read_one(element.get().as_bytes(), &format!("[{index}]"));
    Ok(PostedRequest { batch: true, items: elements.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

/// The fields that distinguish the shapes.
#[derive(Deserialize)]
struct ShapeProbe {
    #[serde(default)]
    specversion: Option<IgnoredAny>,
    #[serde(default)]
    detail: Option<IgnoredAny>,
    #[serde(default, rename = "topicName")]
    topic_name: Option<IgnoredAny>,
}

fn read_one(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let probe: ShapeProbe = parse(body, path)?;
    match probe {
        ShapeProbe { specversion: Some(_), .. } => cloudevents::read_structured(body, path),
        ShapeProbe { detail: Some(_), .. } => eventbridge::read(body, path),
        ShapeProbe { topic_name: Some(_), .. } => genesys::read_notification(body, path),
        ShapeProbe { .. } => flat::read(body, path, None, Shape::Flat),
    }
}

impl Announcement {
    /// Creates the event for the queue, without personal data: customer ids become digests, one per key scheme, the
    /// present scheme first.
    #[must_use]
    pub fn into_event(self, tenant: &TenantId, hashers: &[KeyHasher], received_at: Timestamp) -> Event {
        let mut keys = Vec::with_capacity(self.customers.len() * hashers.len());
        for customer in &self.customers {
            for hasher in hashers {
                let digest = hasher.identify(tenant, customer).digest();
                if !keys.contains(&digest) {
                    keys.push(digest);
                }
            }
        }
        Event {
            id: self.shown_id(hashers.first().unwrap_or(&KeyHasher::Sha256)),
            identity: self.identity(tenant),
            tenant: tenant.clone(),
            keys,
            kind: self.kind,
            stamps: self.stamps,
            received_at,
            shape: self.shape,
            traceparent: None,
            force: false,
            again: None,
        }
    }

    /// Returns the id that people see: the sender's id; or its hash if it contains a customer id. The hash uses the
    /// scheme of the entry keys, because such an id is as easy to guess as a customer id.
    fn shown_id(&self, hasher: &KeyHasher) -> EventId {
        let Some(sender) = &self.sender_id else { return EventId::fresh() };
        let lower = sender.id.to_ascii_lowercase();
        let names_customer =
            self.customers.iter().any(|customer| lower.contains(&customer.expose().to_ascii_lowercase()));
        let shown = if names_customer { None } else { sender.id.parse().ok() };
        shown.unwrap_or_else(|| {
            let digest = hex::encode(&hasher.hash(&sender.id)[..16]);
            // 32 hex digits are always a valid event id.
            digest.parse().unwrap_or_else(|_| EventId::fresh())
        })
    }

    /// Returns the identity for the dedup window: a digest of tenant, shape and sender id. An event without id and
    /// stamps cannot be recognised again, so its identity is random.
    fn identity(&self, tenant: &TenantId) -> Digest {
        if self.sender_id.is_none() && self.stamps == Stamps::default() {
            return Digest::from_bytes(rand::random());
        }
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        part(tenant.as_str());
        part(self.shape.as_str());
        if let Some(sender) = &self.sender_id {
            part(&sender.source);
            part(&sender.id);
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        Digest::from_bytes(short)
    }
}

#[cfg(test)]
mod tests;
