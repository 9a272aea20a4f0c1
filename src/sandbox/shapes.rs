//! The JSON forms of a contact: one for the API, and a flatter one for the contact topic.

use serde_json::{Value, json};
use uuid::Uuid;

use super::contact::ContactView;
use super::fields::Fields;

/// The path of everything about contacts.
pub(super) const EXTERNAL_CONTACTS: &str = "/api/v2/externalcontacts";
/// The path of all contacts.
pub(super) const CONTACTS: &str = "/api/v2/externalcontacts/contacts";
/// The path of the bulk request for contacts.
pub(super) const BULK: &str = "/api/v2/externalcontacts/bulk/contacts";
/// The one division of the sandbox.
pub(super) const DIVISION: &str = "5a4d0000-0000-4000-8000-0000000000d1";

/// Returns the `ExternalContact` of the API.
pub(super) fn api(view: &ContactView) -> Value {
    let contact = &view.contact;
    let mut fields = common(view);
    fields.extend([
        ("division".to_owned(), division()),
        ("selfUri".to_owned(), self_uri(view.id).into()),
        ("canonicalContact".to_owned(), reference(view.canonical)),
        ("mergeSet".to_owned(), view.merge_set.iter().copied().map(reference).collect()),
    ]);
    if !contact.merged_from.is_empty() {
        fields.insert("mergedFrom".to_owned(), contact.merged_from.iter().copied().map(reference).collect());
    }
    if let Some(to) = contact.merged_to {
        fields.insert("mergedTo".to_owned(), reference(to));
    }
    Value::Object(fields)
}

/// Returns the body of a contact event: the full contact, with plain ids as references.
pub(super) fn topic(view: &ContactView) -> Value {
    let contact = &view.contact;
    let ids = |ids: &[Uuid]| ids.iter().map(Uuid::to_string).collect::<Value>();
    let mut fields = common(view);
    fields.extend([
        ("division".to_owned(), json!({ "id": DIVISION })),
        ("canonicalContactId".to_owned(), view.canonical.to_string().into()),
        ("mergeSet".to_owned(), ids(&view.merge_set)),
    ]);
    if !contact.merged_from.is_empty() {
        fields.insert("mergedFrom".to_owned(), ids(&contact.merged_from));
    }
    if let Some(to) = contact.merged_to {
        fields.insert("mergedTo".to_owned(), to.to_string().into());
    }
    Value::Object(fields)
}

/// Returns the division as the API shows it.
pub(super) fn division() -> Value {
    json!({ "id": DIVISION, "name": "Home", "selfUri": format!("/api/v2/authorization/divisions/{DIVISION}") })
}

/// Returns the name of the contact in an audit record.
pub(super) fn full_name(view: &ContactView) -> String {
    let part = |name| view.contact.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}", part("firstName"), part("lastName")).trim().to_owned()
}

fn common(view: &ContactView) -> Fields {
    let contact = &view.contact;
    let mut fields = contact.fields.clone();
    fields.extend([
        ("id".to_owned(), view.id.to_string().into()),
        ("type".to_owned(), "Curated".into()),
        ("createDate".to_owned(), contact.created.to_string().into()),
        ("modifyDate".to_owned(), contact.modified.to_string().into()),
    ]);
    fields
}

fn reference(id: Uuid) -> Value {
    json!({ "id": id.to_string(), "selfUri": self_uri(id) })
}

fn self_uri(id: Uuid) -> String {
    format!("{CONTACTS}/{id}")
}
