//! The contact routes.
//!
//! A request is checked in this order: the token (401), the form of the id (404 unless it is a UUID), the permission
//! (403), the body (413, 400), and then whether the contact exists. A request acts on arrival; only its answer is delayed
//! by `latency`. So, as at Genesys, a change can overtake the answer to a read.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::CustomerId;

use super::SandboxState;
use super::announcement::{CausedEvents, ContactEvent};
use super::audit_log::AuditedAction;
use super::contact::ContactView;
use super::errors::ApiError;
use super::fields::Fields;
use super::oauth::{self, AuthenticatedClient, ClientKind};
use super::shapes;

/// The field with the time of the read, in milliseconds since the epoch.
const READ_AT: &str = "sandboxReadAt";

/// The number of contacts in one merge.
const MERGE_SIZE: std::ops::RangeInclusive<usize> = 2..=25;

/// The maximum number of contacts in one bulk request.
const BULK_SIZE: usize = 100;

/// The contact id in a path: a UUID, in lower case.
pub(super) struct ContactPath {
    customer: CustomerId,
    id: Option<Uuid>,
}

/// A body that is a JSON object. Its Content-Type is ignored: curl sends that of a form by default.
pub(super) struct JsonObject(pub(super) Fields);

/// Answers `GET …/contacts/{id}`: the canonical contact.
pub(super) async fn read(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    path: ContactPath,
) -> Result<Response, ApiError> {
    client.require(oauth::VIEW)?;
    sandbox.calls.count(&path.customer);
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let behaviour = sandbox.behaviour();
    let view = sandbox.directory.read(path.id()?, behaviour.read_lag)?;
    let mut contact = shapes::api(&view);
    if behaviour.stamp_reads {
        // The stamp is taken after the read, so the profile is never newer than the stamp.
        contact[READ_AT] = sandbox.clock.now().as_millis().into();
    }
    Ok(Json(contact).into_response())
}

/// Answers `POST …/bulk/contacts`: the canonical contacts of up to 100 ids, in an order of its own.
pub(super) async fn read_many(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    body: Result<JsonObject, ApiError>,
) -> Result<Response, ApiError> {
    client.require(oauth::VIEW)?;
    let JsonObject(fields) = body?;
    let entities = fields.get("entities").and_then(Value::as_array).filter(|ids| (1..=BULK_SIZE).contains(&ids.len()));
    let entities = entities.ok_or(ApiError::bad_request("entities must be a list of 1 to 100 objects with an id"))?;
    let id = |entity: &Value| entity["id"].as_str().and_then(|id| id.parse::<CustomerId>().ok());
    let ids: Option<Vec<CustomerId>> = entities.iter().map(id).collect();
    let ids = ids.ok_or(ApiError::bad_request("each entity must have an id"))?;
    sandbox.calls.count_bulk(&ids);
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let behaviour = sandbox.behaviour();
    let read = |id: &CustomerId| {
        let view = id.expose().parse().ok().and_then(|id| sandbox.directory.read(id, behaviour.read_lag).ok());
        let Some(view) = view else {
            let error = json!({
                "message": "The requested resource was not found.", "code": "not.found", "status": 404,
                "retryable": false, "details": [],
            });
            return json!({ "id": id.expose(), "success": false, "status": 404, "error": error });
        };
        let mut contact = shapes::api(&view);
        if behaviour.stamp_reads {
            contact[READ_AT] = sandbox.clock.now().as_millis().into();
        }
        json!({ "id": id.expose(), "success": true, "status": 200, "entity": contact })
    };
    // Genesys promises no order.
    let results: Vec<Value> = ids.iter().rev().map(read).collect();
    let failed: Vec<usize> = (0..results.len()).filter(|index| results[*index]["success"] == false).collect();
    let answer = json!({ "results": results, "errorCount": failed.len(), "errorIndexes": failed });
    Ok(Json(answer).into_response())
}

/// Answers `GET …/contacts/{id}/unresolved`: the contact itself, even if it was merged.
pub(super) async fn read_unresolved(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    path: ContactPath,
) -> Result<Response, ApiError> {
    client.require(oauth::VIEW)?;
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let view = sandbox.directory.read_unresolved(path.id()?, sandbox.behaviour().read_lag)?;
    Ok(Json(shapes::api(&view)).into_response())
}

/// Answers `POST …/contacts`.
pub(super) async fn create(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    body: Result<JsonObject, ApiError>,
) -> Result<Response, ApiError> {
    client.require(oauth::ADD)?;
    let JsonObject(fields) = body?;
    let behaviour = sandbox.behaviour();
    let permit = sandbox.events.reserve(&behaviour, 1).await?;
    let created = sandbox.directory.create(fields, behaviour.longest_lag())?;
    sandbox.audits.record(client.kind, AuditedAction::Create, &created, sandbox.clock.now());
    let announced = permit.send([ContactEvent::of_contact(&created)]);
    Ok((StatusCode::CREATED, announced, Json(shapes::api(&created))).into_response())
}

/// Answers `PUT …/contacts/{id}`: replaces all writable fields.
pub(super) async fn replace(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    path: ContactPath,
    body: Result<JsonObject, ApiError>,
) -> Result<(CausedEvents, Json<Value>), ApiError> {
    client.require(oauth::EDIT)?;
    let JsonObject(fields) = body?;
    change(&sandbox, client.kind, |lag| sandbox.directory.replace(path.id()?, fields, lag)).await
}

/// Answers `PATCH …/contacts/{id}`: changes the given fields (a JSON merge patch, RFC 7396).
pub(super) async fn amend(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    path: ContactPath,
    body: Result<JsonObject, ApiError>,
) -> Result<(CausedEvents, Json<Value>), ApiError> {
    client.require(oauth::EDIT)?;
    let JsonObject(fields) = body?;
    change(&sandbox, client.kind, |lag| sandbox.directory.amend(path.id()?, fields, lag)).await
}

async fn change(
    sandbox: &SandboxState,
    client: ClientKind,
    make: impl FnOnce(std::time::Duration) -> Result<ContactView, ApiError>,
) -> Result<(CausedEvents, Json<Value>), ApiError> {
    let behaviour = sandbox.behaviour();
    let permit = sandbox.events.reserve(&behaviour, 1).await?;
    let changed = make(behaviour.longest_lag())?;
    sandbox.audits.record(client, AuditedAction::Update, &changed, sandbox.clock.now());
    let announced = permit.send([ContactEvent::of_contact(&changed)]);
    Ok((announced, Json(shapes::api(&changed))))
}

/// Answers `DELETE …/contacts/{id}`: deletes the canonical contact and so all its ancestors.
pub(super) async fn remove(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    path: ContactPath,
) -> Result<(StatusCode, CausedEvents, ()), ApiError> {
    client.require(oauth::DELETE)?;
    let behaviour = sandbox.behaviour();
    let permit = sandbox.events.reserve(&behaviour, 1).await?;
    let deleted = sandbox.directory.delete(path.id()?, behaviour.longest_lag())?;
    let now = sandbox.clock.now();
    sandbox.audits.record(client.kind, AuditedAction::Delete, &deleted, now);
    let announced = permit.send([ContactEvent::of_deletion(&deleted, client.kind, now)]);
    Ok((StatusCode::NO_CONTENT, announced, ()))
}

/// Answers `POST …/contacts/merge`: creates a new canonical contact; the named contacts become its ancestors.
pub(super) async fn merge(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    body: Result<JsonObject, ApiError>,
) -> Result<(CausedEvents, Json<Value>), ApiError> {
    client.require(oauth::MERGE)?;
    let JsonObject(mut fields) = body?;
    let ids = contact_ids(&fields)?;
    let overriding = match fields.remove("valueOverride") {
        None | Some(Value::Null) => Fields::new(),
        Some(Value::Object(overriding)) => overriding,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(ApiError::bad_request("valueOverride must be an object"));
        }
    };
    let behaviour = sandbox.behaviour();
    let permit = sandbox.events.reserve(&behaviour, ids.len() + 1).await?;
    let merge = sandbox.directory.merge(&ids, overriding, behaviour.longest_lag())?;
    sandbox.audits.record(client.kind, AuditedAction::Create, &merge.canonical, sandbox.clock.now());
    for ancestor in &merge.ancestors {
        sandbox.audits.record(client.kind, AuditedAction::Update, ancestor, sandbox.clock.now());
    }
    let announced = permit.send([&merge.canonical].into_iter().chain(&merge.ancestors).map(ContactEvent::of_contact));
    Ok((announced, Json(shapes::api(&merge.canonical))))
}

fn contact_ids(fields: &Fields) -> Result<Vec<Uuid>, ApiError> {
    let ids = fields.get("contactIds").and_then(Value::as_array).filter(|ids| MERGE_SIZE.contains(&ids.len()));
    let ids = ids.ok_or(ApiError::bad_request("contactIds must be a list of 2 to 25 contact ids"))?;
    let id = |id: &Value| id.as_str().and_then(|id| id.parse().ok()).ok_or(ApiError::not_found());
    ids.iter().map(id).collect()
}

impl ContactPath {
    fn id(&self) -> Result<Uuid, ApiError> {
        self.id.ok_or(ApiError::not_found())
    }
}

impl FromRequestParts<Arc<SandboxState>> for ContactPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, sandbox: &Arc<SandboxState>) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, sandbox).await.map_err(|_| ApiError::not_found())?;
        let given: CustomerId = text.parse().map_err(|_| ApiError::not_found())?;
        let customer: CustomerId = given.hashed_form().parse().map_err(|_| ApiError::not_found())?;
        let id = customer.is_uuid().then(|| customer.expose().parse().ok()).flatten();
        Ok(Self { customer, id })
    }
}

impl FromRequest<Arc<SandboxState>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, sandbox: &Arc<SandboxState>) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, sandbox).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(failed) if failed.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::too_large()
            }
            _ => ApiError::bad_request("the body could not be read"),
        })?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(ApiError::bad_request("the body must be a JSON object"))
            }
            Err(error) => Err(ApiError::bad_request(format!(
                "the body is not JSON: line {}, column {}",
                error.line(),
                error.column()
            ))),
        }
    }
}
