//! The events of Genesys: a topic and a body, in an envelope that depends on the transport.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::contact;
use crate::domain::{EventTime, Identifier, Kind, Modified, Precision, Shape, Stamps};

use super::super::malformed::check_depth;
use super::fields::{CustomerList, Doubt, OptionalPart, OptionalText, stamps};
use super::{Announcement, Malformed, PostedEvent, SenderId, conversation, join, parse};

const CONTACTS: &str = "v2.externalcontacts.contacts.";
const AUDITS: &str = "v2.audits.entitytype.";
const CONVERSATIONS: &str = "v2.detail.events.conversation.";

/// The audited actions that change nothing.
const READING: [&str; 5] = ["Read", "View", "Search", "Export", "Download"];

/// A notification as a WebSocket delivers it; also the `detail` of EventBridge.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Notification<'a> {
    pub(super) topic_name: String,
    #[serde(default)]
    pub(super) id: OptionalText,
    #[serde(default, borrow)]
    pub(super) event_body: Option<&'a RawValue>,
}

/// The data of the envelope around a topic and its body.
pub(super) struct Envelope {
    pub(super) shape: Shape,
    pub(super) sender_id: Option<SenderId>,
    pub(super) at: Option<EventTime>,
    pub(super) doubt: Doubt,
}

/// The subject of a topic.
enum Topic<'a> {
    /// A contact; with its id if the topic contains it.
    Contact(Option<&'a str>),
    /// The same contact with what it had before a merge, so no merge.
    Unresolved(Option<&'a str>),
    /// An audit; with the id of its contact if the topic contains it.
    Audit(Option<&'a str>),
    /// The start of a conversation, or of its wait for an agent.
    Conversation,
    /// Another subject, ignored for this reason.
    Other(&'static str),
}

/// A contact. In topics its references are ids; in the API they are objects.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContactBody {
    #[serde(default)]
    id: OptionalText,
    #[serde(default)]
    modify_date: OptionalText,
    #[serde(default)]
    canonical_contact_id: OptionalText,
    #[serde(default)]
    canonical_contact: OptionalText,
    #[serde(default)]
    merge_set: OptionalPart<Vec<OptionalText>>,
    #[serde(default)]
    merged_from: OptionalPart<Vec<OptionalText>>,
    #[serde(default)]
    merged_to: OptionalText,
    #[serde(default)]
    merge_operation: OptionalPart<MergeOperation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MergeOperation {
    #[serde(default, alias = "sourceContact")]
    source_contact_id: OptionalText,
    #[serde(default, alias = "targetContact")]
    target_contact_id: OptionalText,
    #[serde(default, alias = "resultingContact")]
    resulting_contact_id: OptionalText,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditBody {
    action: String,
    #[serde(default)]
    event_time: OptionalText,
    /// Its name in an answer of the audit service.
    #[serde(default)]
    event_date: OptionalText,
    #[serde(default)]
    entity: OptionalText,
}

/// Parses a notification without an outer envelope.
pub(super) fn read_notification(body: &[u8], path: &str) -> Result<PostedEvent, Malformed> {
    let notification: Notification<'_> = parse(body, path)?;
    let mut doubt = Doubt::default();
    let sender_id = doubt.sender_id(&notification.id);
    let envelope = Envelope { shape: Shape::Notification, sender_id, at: None, doubt };
    read_topic(&notification, path, envelope)
}

/// Parses an answer of the audit service: the body of an audit event, with `eventDate` in place of `eventTime`.
pub(in crate::ingest) fn read_queried_audit(body: &[u8]) -> Result<PostedEvent, Malformed> {
    #[derive(Deserialize)]
    struct QueriedAudit {
        #[serde(default)]
        id: OptionalText,
    }
    check_depth(body, "")?;
    let audit: QueriedAudit = parse(body, "")?;
    let mut doubt = Doubt::default();
    let sender_id = doubt.sender_id(&audit.id);
    read_audit(body, "", None, Envelope { shape: Shape::Operator, sender_id, at: None, doubt })
}

/// Parses a topic and its body.
pub(super) fn read_topic(
    notification: &Notification<'_>,
    path: &str,
    envelope: Envelope,
) -> Result<PostedEvent, Malformed> {
    let topic = topic(&notification.topic_name);
    let path = join(path, "eventBody");
    let body = notification.event_body.map(|body| body.get().as_bytes());
    let body = body.ok_or_else(|| Malformed::new(&path, "is missing"));
    match topic {
        Topic::Other(reason) => Ok(PostedEvent::Ignored { shape: envelope.shape, reason }),
        Topic::Conversation => Ok(conversation::read(notification.event_body, envelope.shape)),
        Topic::Audit(in_topic) => read_audit(body?, &path, in_topic, envelope),
        Topic::Contact(in_topic) => read_contact(body, &path, in_topic, true, envelope),
        Topic::Unresolved(in_topic) => read_contact(body, &path, in_topic, false, envelope),
    }
}

fn topic(name: &str) -> Topic<'_> {
    if let Some(rest) = name.strip_prefix(CONTACTS) {
        return match rest.split_once('.') {
            None => Topic::Contact(concrete(rest)),
            Some((id, "unresolved")) => Topic::Unresolved(concrete(id)),
            Some((_, sub)) if sub.starts_with("notes") => Topic::Other("a note of a contact"),
            Some((_, sub)) if sub.starts_with("journey") => Topic::Other("a journey of a contact"),
            Some(_) => Topic::Other("a topic below a contact that changes no profile"),
        };
    }
    if let Some(rest) = name.strip_prefix(AUDITS) {
        return Topic::Audit(rest.strip_prefix("Contact.entityid.").and_then(concrete));
    }
    match name {
        _ if name.starts_with(CONVERSATIONS) && (name.ends_with(".customer.start") || name.ends_with(".acd.start")) => {
            Topic::Conversation
        }
        "channel.metadata" => Topic::Other("a heartbeat"),
        _ if name.starts_with("v2.system.") => Topic::Other("a system topic"),
        _ => Topic::Other("a topic that is about no contact"),
    }
}

/// Returns the id in a topic; the template of a topic contains none.
fn concrete(id: &str) -> Option<&str> {
    Some(id).filter(|id| *id != "{id}" && !id.is_empty())
}

/// Reads the body of a contact topic; `tells_merges`: a body that names merged contacts is a merge. Without a body that can be
/// read, the id in the topic is the customer.
fn read_contact(
    body: Result<&[u8], Malformed>,
    path: &str,
    in_topic: Option<&str>,
    tells_merges: bool,
    mut envelope: Envelope,
) -> Result<PostedEvent, Malformed> {
    let doubt = &mut envelope.doubt;
    let parsed = body.and_then(|body| Ok((parse::<ContactBody>(body, path)?, contact::identifiers(body))));
    let (named, identifiers) = match parsed {
        Err(_) if in_topic.is_some() => {
            doubt.0 = true;
            Default::default()
        }
        parsed => parsed?,
    };
    let mut customers = CustomerList::default();
    customers.add_optional(path, "id", &named.id, doubt)?;
    customers.add_of_topic(in_topic, doubt)?;
    named.add_related(path, &mut customers, doubt)?;
    if customers.ids.is_empty() {
        return Err(Malformed::new(join(path, "id"), "is no customer id, and the topic names no contact either"));
    }
    let has_losers = doubt.part(&named.merged_from).is_some_and(|from| !from.is_empty());
    let merged = tells_merges && (named.merged_to != OptionalText::Absent || has_losers);
    let (modified, kind) = (doubt.time(&named.modify_date), if merged { Kind::Merged } else { Kind::Updated });
    Ok(announced(envelope, kind, (modified, None), customers, identifiers))
}

impl ContactBody {
    /// Adds the other ids that the contact has, had, or gets by a merge.
    fn add_related(&self, path: &str, customers: &mut CustomerList, doubt: &mut Doubt) -> Result<(), Malformed> {
        let one = [
            ("canonicalContactId", &self.canonical_contact_id),
            ("canonicalContact", &self.canonical_contact),
            ("mergedTo", &self.merged_to),
        ];
        let many = [("mergeSet", &self.merge_set), ("mergedFrom", &self.merged_from)];
        let many = many.map(|(field, list)| (field, doubt.part(list).map_or(&[][..], Vec::as_slice)));
        let many = many.into_iter().flat_map(|(field, list)| list.iter().map(move |id| (field, id)));
        let operation = doubt.part(&self.merge_operation).into_iter().flat_map(|operation| {
            [
                ("mergeOperation.sourceContactId", &operation.source_contact_id),
                ("mergeOperation.targetContactId", &operation.target_contact_id),
                ("mergeOperation.resultingContactId", &operation.resulting_contact_id),
            ]
        });
        for (field, id) in one.into_iter().chain(many).chain(operation) {
            customers.add_optional(path, field, id, doubt)?;
        }
        Ok(())
    }
}

fn read_audit(
    body: &[u8],
    path: &str,
    in_topic: Option<&str>,
    mut envelope: Envelope,
) -> Result<PostedEvent, Malformed> {
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
        // Here no contact topic reports what the audit calls by another name, such as a merge.
        action if shape == Shape::Operator && !READING.contains(&action) => Kind::Updated,
        _ => return Ok(PostedEvent::Ignored { shape, reason: "an audited action that changes no contact" }),
    };
    let happened: Option<EventTime> = match &audit.event_time {
        OptionalText::Integer(millis) => Some(EventTime::new(*millis, Precision::Millis)),
        OptionalText::Absent => envelope.doubt.time(&audit.event_date),
        text => envelope.doubt.time(text),
    };
    let mut customers = CustomerList::default();
    customers.add_of_topic(in_topic, &mut envelope.doubt)?;
    if customers.ids.is_empty() {
        customers.add(path, "entity.id", envelope.doubt.text(&audit.entity).unwrap_or_default())?;
    } else {
        customers.add_optional(path, "entity.id", &audit.entity, &mut envelope.doubt)?;
    }
    let happened = happened.map(EventTime::whole_seconds_if_zero_millis);
    Ok(announced(envelope, kind, (None, happened), customers, Vec::new()))
}

fn announced(
    envelope: Envelope,
    kind: Kind,
    (modified, happened): (Option<Modified>, Option<EventTime>),
    customers: CustomerList,
    identifiers: Vec<Identifier>,
) -> PostedEvent {
    let stamps: Stamps = stamps(modified, happened.or(envelope.at));
    PostedEvent::Announced(Announcement {
        shape: envelope.shape,
        sender_id: envelope.sender_id,
        kind,
        stamps,
        customers: customers.ids,
        identifiers,
        tenant: None,
        is_partial: envelope.doubt.0,
    })
}
