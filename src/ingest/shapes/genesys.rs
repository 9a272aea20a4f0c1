//! The events of Genesys: a topic and a body, in an envelope that depends on the transport.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::domain::{EventTime, Kind, Modified, Precision, Shape, Stamps};

use super::fields::{CustomerList, non_empty, sender_id, stamps, time};
use super::{Announcement, Malformed, PostedEvent, SenderId, join, parse};

const CONTACTS: &str = "v2.externalcontacts.contacts.";
const AUDITS: &str = "v2.audits.entitytype.";

/// A notification as a WebSocket delivers it; also the `detail` of EventBridge.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Notification<'a> {
    pub(super) topic_name: String,
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default, borrow)]
    pub(super) event_body: Option<&'a RawValue>,
}

/// The data of the envelope around a topic and its body.
pub(super) struct Envelope {
    pub(super) shape: Shape,
    pub(super) sender_id: Option<SenderId>,
    pub(super) at: Option<EventTime>,
}

/// The subject of a topic.
enum Topic<'a> {
    /// A contact; with its id if the topic contains it.
    Contact(Option<&'a str>),
    Audit,
    /// Another subject, ignored for this reason.
    Other(&'static str),
}

/// A contact. In topics its references are ids; in the API they are objects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContactBody {
    #[serde(default, deserialize_with = "non_empty")]
    id: Option<String>,
    #[serde(default)]
    modify_date: Option<String>,
    #[serde(default, deserialize_with = "non_empty")]
    canonical_contact_id: Option<String>,
    #[serde(default, deserialize_with = "non_empty")]
    canonical_contact: Option<Reference>,
    #[serde(default)]
    merge_set: Option<Vec<Reference>>,
    #[serde(default)]
    merged_from: Option<Vec<Reference>>,
    #[serde(default, deserialize_with = "non_empty")]
    merged_to: Option<Reference>,
    #[serde(default)]
    merge_operation: Option<MergeOperation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MergeOperation {
    #[serde(default, alias = "sourceContact", deserialize_with = "non_empty")]
    source_contact_id: Option<Reference>,
    #[serde(default, alias = "targetContact", deserialize_with = "non_empty")]
    target_contact_id: Option<Reference>,
    #[serde(default, alias = "resultingContact", deserialize_with = "non_empty")]
    resulting_contact_id: Option<Reference>,
}

/// An id, or an object with an id.
struct Reference(String);

impl AsRef<str> for Reference {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditBody {
    action: String,
    #[serde(default)]
    event_time: Option<AuditTime>,
    entity: Reference,
}

/// A time as text, or in milliseconds since the epoch.
enum AuditTime {
    Text(String),
    Millis(i64),
}

/// Parses a notification without an outer envelope.
pub(super) fn read_notification(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let notification: Notification<'_> = parse(body, path)?;
    let sender_id = sender_id(path, "id", notification.id.clone())?;
    let envelope = Envelope { shape: Shape::Notification, sender_id, at: None };
    read_topic(&notification, path, envelope)
}

/// Parses a topic and its body.
pub(super) fn read_topic(
    notification: &Notification<'_>,
    path: &str,
    envelope: Envelope,
) -> Result<PostedEvent, Malformed> {
    let topic = topic(&notification.topic_name);
    let in_topic = match topic {
        Topic::Other(reason) => return Ok(PostedEvent::Ignored { shape: envelope.shape, reason }),
        Topic::Contact(id) => id,
        Topic::Audit => None,
    };
    let path = join(path, "eventBody");
    let body = notification.event_body.ok_or_else(|| Malformed::new(&path, "is missing"))?.get().as_bytes();
    match topic {
        Topic::Audit => read_audit(body, &path, envelope),
        Topic::Contact(_) | Topic::Other(_) => read_contact(body, &path, in_topic, envelope),
    }
}

fn topic(name: &str) -> Topic<'_> {
    if let Some(rest) = name.strip_prefix(CONTACTS) {
        return match rest.split_once('.') {
            None | Some((_, "unresolved")) => {
                let id = rest.split('.').next().unwrap_or_default();
                // The template of a topic contains no id.
                Topic::Contact(Some(id).filter(|id| *id != "{id}" && !id.is_empty()))
            }
            Some((_, sub)) if sub.starts_with("notes") => Topic::Other("a note of a contact"),
            Some((_, sub)) if sub.starts_with("journey") => Topic::Other("a journey of a contact"),
            Some(_) => Topic::Other("a topic below a contact that changes no profile"),
        };
    }
    match name {
        _ if name.starts_with(AUDITS) => Topic::Audit,
        "channel.metadata" => Topic::Other("a heartbeat"),
        _ if name.starts_with("v2.system.") => Topic::Other("a system topic"),
        _ => Topic::Other("a topic that is about no contact"),
    }
}

fn read_contact(body: &[u8], path: &str, in_topic: Option<&str>, envelope: Envelope) -> Result<PostedEvent, Malformed> {
    let contact: ContactBody = parse(body, path)?;
    let mut customers = CustomerList::default();
    if let Some(id) = &contact.id {
        customers.add(path, "id", id)?;
    }
    if let Some(id) = in_topic {
        customers.add("", "topicName", id)?;
    }
    contact.add_related(path, &mut customers)?;
    if customers.0.is_empty() {
        return Err(Malformed::new(join(path, "id"), "is missing, and the topic names no contact either"));
    }
    let merged = contact.merged_to.is_some() || contact.merged_from.is_some_and(|from| !from.is_empty());
    let modified = time(path, "modifyDate", contact.modify_date.as_deref())?;
    Ok(announced(envelope, if merged { Kind::Merged } else { Kind::Updated }, modified, None, customers))
}

impl ContactBody {
    /// Adds the other ids that the contact has, had, or gets by a merge.
    fn add_related(&self, path: &str, customers: &mut CustomerList) -> Result<(), Malformed> {
        if let Some(id) = &self.canonical_contact_id {
            customers.add(path, "canonicalContactId", id)?;
        }
        let one = |field, reference: &Option<Reference>, customers: &mut CustomerList| match reference {
            Some(Reference(id)) => customers.add(path, field, id),
            None => Ok(()),
        };
        one("canonicalContact", &self.canonical_contact, customers)?;
        one("mergedTo", &self.merged_to, customers)?;
        for (field, list) in [("mergeSet", &self.merge_set), ("mergedFrom", &self.merged_from)] {
            for (index, Reference(id)) in list.iter().flatten().enumerate() {
                customers.add(path, &format!("{field}[{index}]"), id)?;
            }
        }
        if let Some(operation) = &self.merge_operation {
            one("mergeOperation.sourceContactId", &operation.source_contact_id, customers)?;
            one("mergeOperation.targetContactId", &operation.target_contact_id, customers)?;
            one("mergeOperation.resultingContactId", &operation.resulting_contact_id, customers)?;
        }
        Ok(())
    }
}

fn read_audit(body: &[u8], path: &str, envelope: Envelope) -> Result<PostedEvent, Malformed> {
    /// Decides whether an audit is about a contact; the other fields are parsed only then.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct AuditSubject {
        entity_type: String,
    }
    let shape = envelope.shape;
    let subject: AuditSubject = parse(body, path)?;
    if subject.entity_type != "Contact" {
        return Ok(PostedEvent::Ignored { shape, reason: "an audit that is about no contact" });
    }
    let audit: AuditBody = parse(body, path)?;
    let kind = match audit.action.as_str() {
        "Create" => Kind::Created,
        "Update" => Kind::Updated,
        "Delete" => Kind::Deleted,
        _ => return Ok(PostedEvent::Ignored { shape, reason: "an audited action that changes no contact" }),
    };
    let happened = match audit.event_time {
        Some(AuditTime::Text(text)) => {
            time(path, "eventTime", Some(&text))?.map(EventTime::whole_seconds_if_zero_millis)
        }
        Some(AuditTime::Millis(millis)) => {
            Some(EventTime::new(millis, Precision::Millis).whole_seconds_if_zero_millis())
        }
        None => None,
    };
    let mut customers = CustomerList::default();
    customers.add(path, "entity.id", &audit.entity.0)?;
    Ok(announced(envelope, kind, None, happened, customers))
}

fn announced(
    envelope: Envelope,
    kind: Kind,
    modified: Option<Modified>,
    happened: Option<EventTime>,
    customers: CustomerList,
) -> PostedEvent {
    let stamps: Stamps = stamps(modified, happened.or(envelope.at));
    PostedEvent::Announced(Announcement {
        shape: envelope.shape,
        sender_id: envelope.sender_id,
        kind,
        stamps,
        customers: customers.0,
        tenant: None,
    })
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Reference;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an id, or an object with an \"id\"")
            }

            fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<Reference, E> {
                Ok(Reference(id.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Reference, A::Error> {
                #[derive(Deserialize)]
                struct ReferenceObject {
                    id: String,
                }
                let object = ReferenceObject::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Reference(object.id))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for AuditTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = AuditTime;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an RFC 3339 date-time, or milliseconds since the epoch")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AuditTime, E> {
                Ok(AuditTime::Text(text.to_owned()))
            }

            fn visit_i64<E: serde::de::Error>(self, millis: i64) -> Result<AuditTime, E> {
                Ok(AuditTime::Millis(millis))
            }

            fn visit_u64<E: serde::de::Error>(self, millis: u64) -> Result<AuditTime, E> {
                i64::try_from(millis)
                    .map(AuditTime::Millis)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(millis), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
