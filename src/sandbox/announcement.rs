//! The event of a change, and the header of the answer that names the events of a change.

use axum::response::{IntoResponseParts, ResponseParts};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::Timestamp;

use super::contact::ContactView;
use super::oauth::{ClientKind, ORGANISATION};
use super::shapes;

/// The header that names the events of a write, separated by commas.
const EVENTS: HeaderName = HeaderName::from_static("sandbox-events");

/// The ids of the events of a write; a part of its answer.
#[derive(Debug, Default)]
pub(super) struct CausedEvents(pub(super) Vec<Uuid>);

impl IntoResponseParts for CausedEvents {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        let ids: Vec<_> = self.0.iter().map(Uuid::to_string).collect();
        if let Some(ids) = HeaderValue::try_from(ids.join(",")).ok().filter(|ids| !ids.is_empty()) {
            parts.headers_mut().insert(EVENTS, ids);
        }
        Ok(parts)
    }
}

/// The event of one changed contact.
pub(super) struct ContactEvent {
    /// The event id, the same in every copy.
    pub(super) id: Uuid,
    topic: String,
    template: &'static str,
    body: Value,
}

impl ContactEvent {
    /// A contact was created, changed or merged: the contact topic, with the full contact.
    pub(super) fn of_contact(view: &ContactView) -> Self {
        Self {
            id: Uuid::new_v4(),
            topic: format!("v2.externalcontacts.contacts.{}", view.id),
            template: "v2.externalcontacts.contacts.{id}",
            body: shapes::topic(view),
        }
    }

    /// A contact was deleted: the audit topic.
    pub(super) fn of_deletion(view: &ContactView, by: ClientKind, at: Timestamp) -> Self {
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

    /// Returns the topic, and the event as a WebSocket delivers it.
    pub(super) fn notification(&self) -> (String, Value) {
        let notification = json!({
            "topicName": self.topic, "version": "2", "eventBody": self.body,
            "metadata": { "CorrelationId": Uuid::new_v4() },
        });
        (self.topic.clone(), notification)
    }

    /// Wraps the event like EventBridge: `time` in whole seconds, `detail.timestamp` in milliseconds.
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
