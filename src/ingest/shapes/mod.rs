//! From what was posted to what it announces: pure functions over bytes and headers.
//!
//! The route for one tenant takes any of four shapes and tells them apart by what they must have:
//! `CloudEvents` (binary by its `ce-*` headers, structured by `specversion`), EventBridge (`detail`), a
//! Genesys notification (`topicName`), and our own flat form. EventBridge and structured `CloudEvents` may come
//! as an array. The `data` of a `CloudEvents` event may itself be a flat form, a notification, or an
//! EventBridge event or its `detail`.
//!
//! Every id that an event names becomes one of its customers. Nothing else of a body is kept.

mod cloudevents;
mod eventbridge;
mod flat;
mod genesys;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::{
    At, CustomerId, Digest, Event, EventId, KeyHasher, Kind, Modified, Shape, Stamps, TenantId, Timestamp,
};

use super::malformed::{Malformed, join, parse};

/// The most events that one request may bring.
pub const MAX_EVENTS: usize = 1_000;

/// The most customers that one event may name.
pub const MAX_CUSTOMERS: usize = 1_000;

/// What a request brought.
#[derive(Clone, Debug)]
pub struct Posted {
    /// It was an array.
    pub batch: bool,
    /// Each event, in order.
    pub items: Vec<Item>,
}

/// One posted event.
#[derive(Clone, Debug)]
pub enum Item {
    /// It announces something about customers.
    Announced(Announcement),
    /// It is well-formed and of no interest.
    Ignored {
        /// The envelope in which it came.
        shape: Shape,
        /// Why it is of no interest.
        reason: &'static str,
    },
}

/// What an event announces, with the customers' own ids: not yet fit for the queue.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The envelope in which it came.
    pub shape: Shape,
    /// The id by which its sender knows it, if it has one.
    pub sender_id: Option<SenderId>,
    /// What happened.
    pub kind: Kind,
    /// When, by Genesys' clocks.
    pub stamps: Stamps,
    /// Whom it is about; at least one.
    pub customers: Vec<CustomerId>,
    /// The tenant that it names, if it names one.
    pub tenant: Option<TenantId>,
}

/// A sender's id of an event.
#[derive(Clone)]
pub struct SenderId {
    /// What is shown.
    id: String,
    /// What makes it unique where `id` alone does not (the source of a `CloudEvents` event).
    source: String,
}

impl std::fmt::Debug for SenderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A sender may have put anything into it.
        f.write_str("SenderId([redacted])")
    }
}

impl SenderId {
    /// Takes an id that is unique by itself.
    pub(super) fn of(id: impl Into<String>) -> Self {
        Self { id: id.into(), source: String::new() }
    }

    /// Returns the id of one of several events that came under this one.
    fn of_part(&self, index: usize) -> Self {
        Self { id: format!("{}.{index}", self.id), source: self.source.clone() }
    }
}

impl Posted {
    /// Names the events by the id of the message that brought them, which its sender has signed. It takes
    /// the place of the ids that they carry themselves, but for those of `CloudEvents`, which are as good.
    pub(super) fn name(&mut self, message: &SenderId) {
        for (index, item) in self.items.iter_mut().enumerate() {
            match item {
                Item::Announced(announcement) if announcement.shape != Shape::CloudEvents => {
                    announcement.sender_id = Some(if self.batch { message.of_part(index) } else { message.clone() });
                }
                Item::Announced(_) | Item::Ignored { .. } => {}
            }
        }
    }
}

/// Reads a request to the flat route.
///
/// # Errors
///
/// It is not the flat form; the field at fault is named.
pub fn read_flat(body: &[u8]) -> Result<Posted, Malformed> {
    Ok(Posted { batch: false, items: vec![flat::read(body, "", None, Shape::Flat)?] })
}

/// Reads the tenant that a request to the flat route names, and nothing else.
///
/// # Errors
///
/// There is none, or it is no tenant id.
pub fn read_tenant(body: &[u8]) -> Result<TenantId, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TenantOnly {
        tenant_id: String,
    }
    let TenantOnly { tenant_id } = parse(body, "")?;
    tenant_id.parse().map_err(|error| Malformed::new("tenantId", error))
}

/// Reads a request to a tenant's route, in any shape.
///
/// # Errors
///
/// It is none of the shapes, or a field of its shape is at fault; the field is named.
pub fn read_any(headers: &HeaderMap, body: &[u8]) -> Result<Posted, Malformed> {
    if cloudevents::is_binary(headers) {
        return Ok(Posted { batch: false, items: vec![cloudevents::read_binary(headers, body)?] });
    }
    if body.trim_ascii().first() != Some(&b'[') {
        return Ok(Posted { batch: false, items: vec![read_one(body, "")?] });
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
    Ok(Posted { batch: true, items: elements.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

/// The fields by which the shapes are told apart.
#[derive(Deserialize)]
struct Probe {
    #[serde(default)]
    specversion: Option<IgnoredAny>,
    #[serde(default)]
    detail: Option<IgnoredAny>,
    #[serde(default, rename = "topicName")]
    topic_name: Option<IgnoredAny>,
}

fn read_one(body: &[u8], path: &str) -> Result<Item, Malformed> {
    let probe: Probe = parse(body, path)?;
    match probe {
        Probe { specversion: Some(_), .. } => cloudevents::read_structured(body, path),
        Probe { detail: Some(_), .. } => eventbridge::read(body, path),
        Probe { topic_name: Some(_), .. } => genesys::read_notification(body, path),
        Probe { .. } => flat::read(body, path, None, Shape::Flat),
    }
}

impl Announcement {
    /// Makes the event for the queue: customers become digests, under each scheme given, the present one
    /// first; nothing personal remains.
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

    /// The id to show: the sender's, unless it could tell whom the event is about; then its hash, under the scheme of
    /// the customers' keys, for such an id is as easily guessed as a customer's.
    fn shown_id(&self, hasher: &KeyHasher) -> EventId {
        let Some(sender) = &self.sender_id else { return EventId::fresh() };
        let lower = sender.id.to_ascii_lowercase();
        let tells = self.customers.iter().any(|customer| lower.contains(&customer.expose().to_ascii_lowercase()));
        let shown = if tells { None } else { sender.id.parse().ok() };
        shown.unwrap_or_else(|| {
            let digest = hex::encode(&hasher.hash(&sender.id)[..16]);
            // 32 hex digits are an event id.
            digest.parse().unwrap_or_else(|_| EventId::fresh())
        })
    }

    /// What the dedup window goes by: tenant, shape and the sender's id. With neither id nor stamp there is
    /// nothing to go by, so each is its own.
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

/// Collects the customers that an event names, each once.
#[derive(Debug, Default)]
struct Customers(Vec<CustomerId>);

impl Customers {
    fn add(&mut self, path: &str, field: &str, id: &str) -> Result<(), Malformed> {
        let customer: CustomerId = id.parse().map_err(|error| Malformed::new(join(path, field), error))?;
        if self.0.contains(&customer) {
            return Ok(());
        }
        if self.0.len() == MAX_CUSTOMERS {
            let expected = format!("expected at most {MAX_CUSTOMERS} customers in one event");
            return Err(Malformed::new(join(path, field), expected));
        }
        self.0.push(customer);
        Ok(())
    }
}

fn modified(path: &str, field: &str, text: Option<&str>) -> Result<Option<Modified>, Malformed> {
    text.map(|text| text.parse().map_err(|error| Malformed::new(join(path, field), error))).transpose()
}

fn at(path: &str, field: &str, text: Option<&str>) -> Result<Option<At>, Malformed> {
    text.map(|text| text.parse().map_err(|error| Malformed::new(join(path, field), error))).transpose()
}

/// Puts the stamps together: an event that tells no time of its own happened when it was modified.
fn stamps(modified: Option<Modified>, at: Option<At>) -> Stamps {
    Stamps { modified, at: at.or(modified.map(At::from_modified)) }
}

/// An event id that a sender gave: not empty.
fn sender_id(path: &str, field: &str, id: Option<String>) -> Result<Option<SenderId>, Malformed> {
    match id {
        Some(id) if id.is_empty() => Err(Malformed::new(join(path, field), "must not be empty")),
        Some(id) => Ok(Some(SenderId::of(id))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
