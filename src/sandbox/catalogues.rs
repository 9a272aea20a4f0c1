//! What an organisation can send and what it audits: the topics of notifications, the services of audits.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};
use std::sync::Arc;

use super::SandboxState;
use super::errors::ApiError;
use super::oauth::AuthenticatedClient;

/// May read audits.
const AUDITS: &str = "audits:audit:view";

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
        topic("v2.audits.entitytype.{id}.entityid.{id}", AUDITS),
        topic("v2.externalcontacts.contacts.{id}", super::oauth::VIEW),
    ] }))
}

/// Answers `GET /api/v2/audits/query/realtime/servicemapping`.
pub(super) async fn audited_services(client: AuthenticatedClient) -> Result<Json<Value>, ApiError> {
    client.require(AUDITS)?;
    let actions = ["Create", "Update", "Delete"];
    Ok(Json(json!({ "services": [
        { "name": "ExternalContacts", "entities": [{ "name": "Contact", "actions": actions }] },
    ] })))
}
