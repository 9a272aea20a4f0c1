//! The routes about audits, with the answers that the official SDKs know.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::SandboxState;
use super::audit_log::{AuditQuery, AuditedAction, ENTITY_TYPE, SERVICE};
use super::contacts::JsonObject;
use super::errors::ApiError;
use super::oauth::{AUDITS, AuthenticatedClient};

/// Answers `GET /api/v2/audits/query/realtime/servicemapping`.
pub(super) async fn services(client: AuthenticatedClient) -> Result<Json<Value>, ApiError> {
    client.require(AUDITS)?;
    let actions = AuditedAction::ALL.map(AuditedAction::as_str);
    Ok(Json(json!({ "services": [{ "name": SERVICE, "entities": [{ "name": ENTITY_TYPE, "actions": actions }] }] })))
}

/// Answers `POST /api/v2/audits/query/realtime`. Failures of reads and the rate limit apply to it too.
pub(super) async fn query(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    body: Result<JsonObject, ApiError>,
) -> Result<Response, ApiError> {
    client.require(AUDITS)?;
    sandbox.audits.count_query();
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let JsonObject(fields) = body?;
    let query = AuditQuery::parse(&fields, sandbox.clock.now())?;
    Ok(Json(sandbox.audits.answer(&query)).into_response())
}
