//! What Genesys itself sends: a topic and a body, in an envelope that depends on the transport.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::domain::{At, Kind, Modified, Precision, Shape, Stamps};

use super::{Announcement, Customers, Item, Malformed, SenderId, at, join, modified, parse, sender_id, stamps};

const CONTACTS: &str = "v2.externalcontacts.contacts.";
const AUDITS: &str = "v2.audits.entitytype.";

/// A notification as it comes over a WebSocket; also EventBridge's `detail`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Notification<'a> {
    pub(super) topic_name: String,
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default, borrow)]
    pub(super) event_body: Option<&'a RawValue>,
}

/// What the envelope around a topic and its body tells.
pub(super) struct Envelope {
    pub(super) shape: Shape,
    pub(super) sender_id: Option<SenderId>,
    pub(super) at: Option<At>,
}

/// What a topic is about.
enum Topic<'a> {
    /// A contact, whose id stands in the topic if it is a concrete one.
    Contact(Option<&'a str>),
    Audit,
    Other(&'static str),
}

/// A contact as the topics tell it: references are ids; as the API tells it, they are objects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Contact {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    modify_date: Option<String>,
    #[serde(default)]
    canonical_contact_id: Option<String>,
    #[serde(default)]
    canonical_contact: Option<Reference>,
    #[serde(default)]
    merge_set: Option<Vec<Reference>>,
    #[serde(default)]
    merged_from: Option<Vec<Reference>>,
    #[serde(default)]
    merged_to: Option<Reference>,
    #[serde(default)]
    merge_operation: Option<MergeOperation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MergeOperation {
    #[serde(default, alias = "sourceContact")]
    source_contact_id: Option<Reference>,
    #[serde(default, alias = "targetContact")]
    target_contact_id: Option<Reference>,
    #[serde(default, alias = "resultingContact")]
    resulting_contact_id: Option<Reference>,
}

/// An id, or an object that has one.
struct Reference(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Audit {
    entity_type: String,
    action: String,
    #[serde(default)]
    event_time: Option<EventTime>,
    entity: Reference,
}

/// A time as audits write it, or in milliseconds since the epoch.
enum EventTime {
    Text(String),
    Millis(i64),
}

/// Reads a notification that stands by itself.
pub(super) fn read_notification(body: &[u8], path: &str) -> Result<Item, Malformed> {
    let notification: Notification<'_> = parse(body, path)?;
    let sender_id = sender_id(path, "id", notification.id.clone())?;
    let envelope = Envelope { shape: Shape::Notification, sender_id, at: None };
    read_topic(&notification, path, envelope)
}

/// Reads a topic and its body.
pub(super) fn read_topic(notification: &Notification<'_>, path: &str, envelope: Envelope) -> Result<Item, Malformed> {
    let topic = topic(&notification.topic_name);
    let in_topic = match topic {
        Topic::Other(reason) => return Ok(Item::Ignored { shape: envelope.shape, reason }),
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
                // The template of a topic names nobody.
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

fn read_contact(body: &[u8], path: &str, in_topic: Option<&str>, envelope: Envelope) -> Result<Item, Malformed> {
    let contact: Contact = parse(body, path)?;
    let mut customers = Customers::default();
    if let Some(id) = &contact.id {
        customers.add(path, "id", id)?;
    }
    if let Some(id) = in_topic {
        customers.add("", "topicName", id)?;
    }
    contact.name_the_others(path, &mut customers)?;
    if customers.0.is_empty() {
        return Err(Malformed::new(join(path, "id"), "is missing, and the topic names no contact either"));
    }
    let merged = contact.merged_to.is_some() || contact.merged_from.is_some_and(|from| !from.is_empty());
    let modified = modified(path, "modifyDate", contact.modify_date.as_deref())?;
    Ok(announced(envelope, if merged { Kind::Merged } else { Kind::Updated }, modified, None, customers))
}

impl Contact {
    /// Adds everyone else whom the contact is, was, or becomes.
    fn name_the_others(&self, path: &str, customers: &mut Customers) -> Result<(), Malformed> {
        if let Some(id) = &self.canonical_contact_id {
            customers.add(path, "canonicalContactId", id)?;
        }
        let one = |field, reference: &Option<Reference>, customers: &mut Customers| match reference {
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

fn read_audit(body: &[u8], path: &str, envelope: Envelope) -> Result<Item, Malformed> {
    /// What decides whether an audit is of interest; all else is read only then.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct About {
        entity_type: String,
    }
    let shape = envelope.shape;
    let about: About = parse(body, path)?;
    if about.entity_type != "Contact" {
        return Ok(Item::Ignored { shape, reason: "an audit that is about no contact" });
    }
    let audit: Audit = parse(body, path)?;
    let kind = match audit.action.as_str() {
        "Create" => Kind::Created,
        "Update" => Kind::Updated,
        "Delete" => Kind::Deleted,
        _ => return Ok(Item::Ignored { shape, reason: "an audited action that changes no contact" }),
    };
    debug_assert_eq!(audit.entity_type, about.entity_type);
    let happened = match audit.event_time {
        Some(EventTime::Text(text)) => at(path, "eventTime", Some(&text))?.map(At::whole_seconds_if_zero_millis),
        Some(EventTime::Millis(millis)) => Some(At::new(millis, Precision::Millis).whole_seconds_if_zero_millis()),
        None => None,
    };
    let mut customers = Customers::default();
    customers.add(path, "entity.id", &audit.entity.0)?;
    Ok(announced(envelope, kind, None, happened, customers))
}

fn announced(
    envelope: Envelope,
    kind: Kind,
    modified: Option<Modified>,
    happened: Option<At>,
    customers: Customers,
) -> Item {
    let stamps: Stamps = stamps(modified, happened.or(envelope.at));
    Item::Announced(Announcement {
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
                struct Object {
                    id: String,
                }
                let object = Object::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Reference(object.id))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for EventTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = EventTime;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an RFC 3339 date-time, or milliseconds since the epoch")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EventTime, E> {
                Ok(EventTime::Text(text.to_owned()))
            }

            fn visit_i64<E: serde::de::Error>(self, millis: i64) -> Result<EventTime, E> {
                Ok(EventTime::Millis(millis))
            }

            fn visit_u64<E: serde::de::Error>(self, millis: u64) -> Result<EventTime, E> {
                i64::try_from(millis)
                    .map(EventTime::Millis)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(millis), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
