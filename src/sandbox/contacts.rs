//! The contact routes.
//!
//! A request is checked in this order: its token (401), the form of the id (404: what is no UUID
//! names nobody), the permission (403), the body (413, 400), and then whether the contact is there.
//! It acts when it arrives; only its answer takes `latency` on its way back. So a read can be
//! overtaken by a change that was made while its answer was under way, as it is at Genesys.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde_json::Value;
use uuid::Uuid;

use crate::domain::CustomerId;

use super::Genesys;
use super::announcement::{Announced, Change};
use super::errors::Refusal;
use super::fields::Fields;
use super::oauth::{self, Client};
use super::shapes;
use super::world::View;

/// The field of a read that tells when it was read, in milliseconds since the epoch.
const READ_AT: &str = "sandboxReadAt";

/// How many contacts one merge may name.
const MERGE_SIZE: std::ops::RangeInclusive<usize> = 2..=25;

/// The contact that a path names: a UUID, in lower case.
pub(super) struct Asked {
    customer: CustomerId,
    id: Option<Uuid>,
}

/// A body that is a JSON object. Its Content-Type is not looked at: curl sends a form's by default.
pub(super) struct Object(pub(super) Fields);

/// Answers `GET …/contacts/{id}`: the canonical contact.
pub(super) async fn read(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    asked: Asked,
) -> Result<Response, Refusal> {
    client.require(oauth::VIEW)?;
    genesys.calls.count(&asked.customer);
    if let Some(fault) = genesys.fault(client.role) {
        return Ok(fault);
    }
    let behaviour = genesys.behaviour();
    let view = genesys.world.read(asked.id()?, behaviour.read_lag)?;
    let mut contact = shapes::api(&view);
    if behaviour.stamp_reads {
        // Taken after the read, so that what it shows is never newer than the stamp.
        contact[READ_AT] = genesys.clock.now().as_millis().into();
    }
    Ok(Json(contact).into_response())
}

/// Answers `GET …/contacts/{id}/unresolved`: the very contact, also when it was merged.
pub(super) async fn read_unresolved(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    asked: Asked,
) -> Result<Response, Refusal> {
    client.require(oauth::VIEW)?;
    if let Some(fault) = genesys.fault(client.role) {
        return Ok(fault);
    }
    let view = genesys.world.read_unresolved(asked.id()?, genesys.behaviour().read_lag)?;
    Ok(Json(shapes::api(&view)).into_response())
}

/// Answers `POST …/contacts`.
pub(super) async fn create(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    body: Result<Object, Refusal>,
) -> Result<Response, Refusal> {
    client.require(oauth::ADD)?;
    let Object(fields) = body?;
    let behaviour = genesys.behaviour();
    let room = genesys.events.room(&behaviour, 1).await?;
    let created = genesys.world.create(fields, behaviour.read_lag)?;
    let announced = room.send([Change::of_contact(&created)]);
    Ok((StatusCode::CREATED, announced, Json(shapes::api(&created))).into_response())
}

/// Answers `PUT …/contacts/{id}`: replaces all that can be written.
pub(super) async fn replace(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    asked: Asked,
    body: Result<Object, Refusal>,
) -> Result<(Announced, Json<Value>), Refusal> {
    client.require(oauth::EDIT)?;
    let Object(fields) = body?;
    change(&genesys, |lag| genesys.world.replace(asked.id()?, fields, lag)).await
}

/// Answers `PATCH …/contacts/{id}`: changes the given fields (a JSON merge patch, RFC 7396).
pub(super) async fn amend(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    asked: Asked,
    body: Result<Object, Refusal>,
) -> Result<(Announced, Json<Value>), Refusal> {
    client.require(oauth::EDIT)?;
    let Object(fields) = body?;
    change(&genesys, |lag| genesys.world.amend(asked.id()?, fields, lag)).await
}

async fn change(
    genesys: &Genesys,
    make: impl FnOnce(std::time::Duration) -> Result<View, Refusal>,
) -> Result<(Announced, Json<Value>), Refusal> {
    let behaviour = genesys.behaviour();
    let room = genesys.events.room(&behaviour, 1).await?;
    let changed = make(behaviour.read_lag)?;
    let announced = room.send([Change::of_contact(&changed)]);
    Ok((announced, Json(shapes::api(&changed))))
}

/// Answers `DELETE …/contacts/{id}`: the canonical contact and with it all its ancestors are gone.
pub(super) async fn remove(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    asked: Asked,
) -> Result<(StatusCode, Announced, ()), Refusal> {
    client.require(oauth::DELETE)?;
    let behaviour = genesys.behaviour();
    let room = genesys.events.room(&behaviour, 1).await?;
    let deleted = genesys.world.delete(asked.id()?, behaviour.read_lag)?;
    let announced = room.send([Change::of_deletion(&deleted, client.role, genesys.clock.now())]);
    Ok((StatusCode::NO_CONTENT, announced, ()))
}

/// Answers `POST …/contacts/merge`: a new canonical contact; those named become its ancestors.
pub(super) async fn merge(
    State(genesys): State<Arc<Genesys>>,
    client: Client,
    body: Result<Object, Refusal>,
) -> Result<(Announced, Json<Value>), Refusal> {
    client.require(oauth::MERGE)?;
    let Object(mut fields) = body?;
    let ids = contact_ids(&fields)?;
    let overriding = match fields.remove("valueOverride") {
        None | Some(Value::Null) => Fields::new(),
        Some(Value::Object(overriding)) => overriding,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(Refusal::bad_request("valueOverride must be an object"));
        }
    };
    let behaviour = genesys.behaviour();
    let room = genesys.events.room(&behaviour, ids.len() + 1).await?;
    let merge = genesys.world.merge(&ids, overriding, behaviour.read_lag)?;
    let announced = room.send([&merge.canonical].into_iter().chain(&merge.ancestors).map(Change::of_contact));
    Ok((announced, Json(shapes::api(&merge.canonical))))
}

fn contact_ids(fields: &Fields) -> Result<Vec<Uuid>, Refusal> {
    let ids = fields.get("contactIds").and_then(Value::as_array).filter(|ids| MERGE_SIZE.contains(&ids.len()));
    let ids = ids.ok_or(Refusal::bad_request("contactIds must be a list of 2 to 25 contact ids"))?;
    let id = |id: &Value| id.as_str().and_then(|id| id.parse().ok()).ok_or(Refusal::not_found());
    ids.iter().map(id).collect()
}

impl Asked {
    fn id(&self) -> Result<Uuid, Refusal> {
        self.id.ok_or(Refusal::not_found())
    }
}

impl FromRequestParts<Arc<Genesys>> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, genesys: &Arc<Genesys>) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, genesys).await.map_err(|_| Refusal::not_found())?;
        let given: CustomerId = text.parse().map_err(|_| Refusal::not_found())?;
        let customer: CustomerId = given.hashed_form().parse().map_err(|_| Refusal::not_found())?;
        let id = customer.is_uuid().then(|| customer.expose().parse().ok()).flatten();
        Ok(Self { customer, id })
    }
}

impl FromRequest<Arc<Genesys>> for Object {
    type Rejection = Refusal;

    async fn from_request(request: Request, genesys: &Arc<Genesys>) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, genesys).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(failed) if failed.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Refusal::too_large()
            }
            _ => Refusal::bad_request("the body could not be read"),
        })?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(Refusal::bad_request("the body must be a JSON object"))
            }
            Err(error) => Err(Refusal::bad_request(format!(
                "the body is not JSON: line {}, column {}",
                error.line(),
                error.column()
            ))),
        }
    }
}
