//! Announcements: what an event says of a change, and where the change's answer names its events.

use axum::response::{IntoResponseParts, ResponseParts};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::Timestamp;

use super::oauth::{ORGANISATION, Role};
use super::shapes;
use super::world::View;

/// The header of a write's answer that names the events it caused, separated by commas.
const EVENTS: HeaderName = HeaderName::from_static("sandbox-events");

/// The ids of the events that a write caused; a part of its answer.
#[derive(Debug, Default)]
pub(super) struct Announced(pub(super) Vec<Uuid>);

impl IntoResponseParts for Announced {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        let ids: Vec<_> = self.0.iter().map(Uuid::to_string).collect();
        if let Some(ids) = HeaderValue::try_from(ids.join(",")).ok().filter(|ids| !ids.is_empty()) {
            parts.headers_mut().insert(EVENTS, ids);
        }
        Ok(parts)
    }
}

/// What is announced of one contact.
pub(super) struct Change {
    /// The id of its event, the same in every copy.
    pub(super) id: Uuid,
    topic: String,
    template: &'static str,
    body: Value,
}

impl Change {
    /// A contact was created, changed or merged: the contact topic, with the whole contact.
    pub(super) fn of_contact(view: &View) -> Self {
        Self {
            id: Uuid::new_v4(),
            topic: format!("v2.externalcontacts.contacts.{}", view.id),
            template: "v2.externalcontacts.contacts.{id}",
            body: shapes::topic(view),
        }
    }

    /// A contact was deleted: the audit topic.
    pub(super) fn of_deletion(view: &View, by: Role, at: Timestamp) -> Self {
        Self {
            id: Uuid::new_v4(),
            topic: format!("v2.audits.entitytype.Contact.entityid.{}", view.id),
            template: "v2.audits.entitytype.{id}.entityid.{id}",
            body: json!({
                "id": Uuid::new_v4(), "userHomeOrgId": ORGANISATION, "username": { "id": "" },
                "clientId": { "id": by.id() }, "serviceName": "ExternalContacts", "eventTime": at.to_string(),
                "action": "Delete", "entityType": "Contact",
                "entity": { "id": view.id, "name": shapes::full_name(view) }, "propertyChanges": [],
            }),
        }
    }

    /// Wraps it as EventBridge does: `time` in whole seconds, `detail.timestamp` in milliseconds.
    pub(super) fn envelope(&self, now: Timestamp) -> Value {
        let second = Timestamp::from_millis(now.as_millis().div_euclid(1_000) * 1_000).to_string();
        json!({
            "version": "0", "id": self.id, "detail-type": self.template,
            "source": format!("aws.partner/genesys.com/cloud/{ORGANISATION}/sandbox"),
            "account": "123456789012", "time": second.replace(".000Z", "Z"), "region": "us-east-1", "resources": [],
            "detail": {
                "topicName": self.topic, "version": "2", "eventBody": self.body,
                "metadata": { "CorrelationId": Uuid::new_v4() }, "timestamp": now.to_string(),
            },
        })
    }
}
