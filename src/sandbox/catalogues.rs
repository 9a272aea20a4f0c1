//! What an organisation can send: the topics of notifications.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};
use std::sync::Arc;

use super::SandboxState;
use super::oauth::AuthenticatedClient;

/// Answers `GET /api/v2/notifications/availabletopics`; with `expand=transports` each topic has its transports.
pub(super) async fn topics(
    State(sandbox): State<Arc<SandboxState>>,
    _client: AuthenticatedClient,
    RawQuery(query): RawQuery,
) -> Json<Value> {
    let names_transports = query.unwrap_or_default().contains("transports");
    let behaviour = sandbox.behaviour();
    let topic = |id: &str, permission: &str| {
        let mut topic = json!({
            "id": id, "description": "A topic of the sandbox.", "requiresPermissions": [permission],
            "requiresDivisionPermissions": false, "visibility": "PUBLIC", "topicParameters": ["id"],
        });
        if names_transports {
            topic["transports"] = json!(behaviour.transports);
        }
        topic
    };
    Json(json!({ "entities": [
        topic("v2.audits.entitytype.{id}.entityid.{id}", super::oauth::AUDITS),
        topic("v2.externalcontacts.contacts.{id}", super::oauth::VIEW),
    ] }))
}
