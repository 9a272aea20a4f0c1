//! The event shapes: pure functions from headers and bytes to announcements.
//!
//! The route of one tenant accepts four shapes, and detects the shape by a mandatory field: `CloudEvents` (binary by its
//! `ce-*` headers, structured by `specversion`), EventBridge (`detail`), a Genesys notification (`topicName`), and the
//! flat form of this program. A request may be an array. The `data` of a `CloudEvents` event may be a flat form, a
//! notification, an EventBridge event, or the `detail` of one.
//!
//! Of a body only the customer ids are kept, and the phone numbers, e-mail addresses and external ids of a contact.
//!
//! An event that names a customer in a readable way evicts: a refused one would leave an outdated profile, and no sender
//! corrects an event. So an optional field that cannot be read is treated as absent, and counted. One that is `""` or
//! `null` is absent: senders fill in templates. In an array, the events that can be read are taken, and the others are
//! reported in their place. Only the tenant must be readable wherever it is named.

mod cloudevents;
mod conversation;
mod eventbridge;
mod fields;
mod flat;
pub(super) mod genesys;

use std::collections::HashSet;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::{
    CustomerId, CustomerQuery, Digest, Event, EventId, Identifier, KeyHasher, Kind, Shape, Stamps, TenantId, Timestamp,
};

use super::malformed::{self, Malformed, join, parse};

pub use fields::SenderId;

/// The maximum number of events in one request.
pub const MAX_EVENTS: usize = 1_000;

/// The maximum number of customers in one event.
pub const MAX_CUSTOMERS: usize = 1_000;

/// The start of the shown id of an event whose own id is hidden, so that the digest is not mistaken for an id.
const HIDDEN_ID: &str = "digest-";

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
    /// It is a conversation with these customers, who will probably be looked up. It changes no profile.
    Conversation {
        /// Its shape.
        shape: Shape,
        /// Its customers; at least one. They are named by the caller's number only if no contact is.
        customers: Vec<CustomerQuery>,
    },
    /// It is an element of an array that cannot be read.
    Rejected(Malformed),
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
    /// The identifiers in the body of its contact.
    pub identifiers: Vec<Identifier>,
    /// The tenant that it names, if any.
    pub tenant: Option<TenantId>,
    /// Whether an optional field of it could not be read.
    pub is_partial: bool,
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
                PostedEvent::Announced(_)
                | PostedEvent::Ignored { .. }
                | PostedEvent::Conversation { .. }
                | PostedEvent::Rejected(_) => {}
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
    let body = without_mark(body);
    malformed::check_depth(body, "")?;
    Ok(PostedRequest { batch: false, items: vec![flat::read(body, "", (None, None), Shape::Flat)?] })
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
    let TenantField { tenant_id } = parse(without_mark(body), "")?;
    tenant_id.parse().map_err(|error| Malformed::new("tenantId", error))
}

/// Parses a request of a tenant's route, in any shape. `headers` are those that the proof of the sender covers, if any:
/// the attributes of binary `CloudEvents` count only there.
///
/// # Errors
///
/// It has none of the shapes, or a mandatory field of its shape is invalid; in an array, this holds for every element.
/// The error names the field.
pub fn read_any(headers: Option<&HeaderMap>, body: &[u8]) -> Result<PostedRequest, Malformed> {
    let body = without_mark(body);
    if let Some(headers) = headers.filter(|headers| cloudevents::is_binary(headers)) {
        malformed::check_depth(body, "")?;
        return Ok(PostedRequest { batch: false, items: vec![cloudevents::read_binary(headers, body)?] });
    }
    if body.trim_ascii().first() != Some(&b'[') {
        return Ok(PostedRequest { batch: false, items: vec![read_one(body, "")?] });
    }
    let elements = malformed::elements(body)?;
    if elements.is_empty() {
        return Err(Malformed::new("body", "expected at least one event, got an empty array"));
    }
    if elements.len() > MAX_EVENTS {
        let expected = format!("expected at most {MAX_EVENTS} events, got {}", elements.len());
        return Err(Malformed::new("body", expected));
    }
    let read = |(index, element): (usize, &&RawValue)| {
        read_one(element.get().as_bytes(), &format!("[{index}]")).unwrap_or_else(PostedEvent::Rejected)
    };
    let items: Vec<PostedEvent> = elements.iter().enumerate().map(read).collect();
    match items.first() {
        Some(PostedEvent::Rejected(first)) if items.iter().all(|item| matches!(item, PostedEvent::Rejected(_))) => {
            Err(first.clone())
        }
        _ => Ok(PostedRequest { batch: true, items }),
    }
}

/// Returns whether a request looks like a binary `CloudEvents` event.
#[must_use]
pub fn is_binary(headers: &HeaderMap) -> bool {
    cloudevents::is_binary(headers)
}

/// Removes the byte order mark, which RFC 8259 section 8.1 allows a parser to ignore.
fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
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
    malformed::check_depth(body, path)?;
    let probe: ShapeProbe = parse(body, path)?;
    match probe {
        ShapeProbe { specversion: Some(_), .. } => cloudevents::read_structured(body, path),
        ShapeProbe { detail: Some(_), .. } => eventbridge::read(body, path),
        ShapeProbe { topic_name: Some(_), .. } => genesys::read_notification(body, path),
        ShapeProbe { .. } => flat::read(body, path, (None, None), Shape::Flat),
    }
}

impl Announcement {
    /// Creates the event for the queue, without identifiers. Customer ids become digests, one per key scheme, the present first.
    #[must_use]
    pub fn into_event(self, tenant: &TenantId, hashers: &[KeyHasher], received_at: Timestamp) -> Event {
        let mut seen = HashSet::new();
        let pairs = self.customers.iter().flat_map(|customer| hashers.iter().map(move |hasher| (customer, hasher)));
        let digests = pairs.map(|(customer, hasher)| hasher.identify(tenant, customer).digest());
        let keys = digests.filter(|digest| seen.insert(*digest)).collect();
        Event {
            id: self.shown_id(hashers.first().unwrap_or(&KeyHasher::Sha256)),
            identity: self.identity(tenant),
            tenant: tenant.clone(),
            keys,
            identifiers: Vec::new(),
            kind: self.kind,
            stamps: self.stamps,
            received_at,
            shape: self.shape,
            traceparent: None,
            force: false,
            again: None,
        }
    }

    /// Returns the id that people see. The sender's id is shown only if it is made by a machine and contains no customer
    /// id: any other text may be a name or a phone number. Otherwise its digest is shown, made with the scheme of the
    /// entry keys because such an id is as easy to guess as a customer id.
    fn shown_id(&self, hasher: &KeyHasher) -> EventId {
        let Some(sender) = &self.sender_id else { return EventId::fresh() };
        EventId::of_machine(&sender.id).filter(|_| !self.names_a_customer(&sender.id)).unwrap_or_else(|| {
            let digest = hex::encode(&hasher.hash(&sender.id)[..16]);
            // The prefix and 32 hex digits are always a valid event id.
            format!("{HIDDEN_ID}{digest}").parse().unwrap_or_else(|_| EventId::fresh())
        })
    }

    fn names_a_customer(&self, text: &str) -> bool {
        let lower = text.to_ascii_lowercase();
        self.customers.iter().any(|customer| lower.contains(&customer.expose().to_ascii_lowercase()))
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
