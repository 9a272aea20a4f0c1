//! Searches for contacts: by an identifier, by a number or an address, by a text.
//!
//! They have a read lag of their own, `search_lag`, on top of that of contacts. Of several contacts with the same identifier the
//! one that was changed last is found; of those that never changed, the one with the lowest number.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::SandboxState;
use super::contacts::JsonObject;
use super::errors::ApiError;
use super::fields::Fields;
use super::oauth::{self, AuthenticatedClient};
use super::shapes;

/// The fields with phone numbers.
const PHONES: [&str; 4] = ["workPhone", "cellPhone", "homePhone", "otherPhone"];
/// The fields with e-mail addresses.
const EMAILS: [&str; 3] = ["workEmail", "personalEmail", "otherEmail"];

/// What a search looks for in the fields of a contact.
pub(super) enum Wanted {
    Phone(String),
    Email(String),
    ExternalId { source: String, value: String },
    Text(String),
}

impl Wanted {
    /// Returns whether a generated contact may be found, so that a search for somebody else does not generate all of them.
    pub(super) fn may_be_generated(&self) -> bool {
        match self {
            Self::Phone(number) => number.get(5..9) == Some("5550"),
            Self::Email(email) => email.to_ascii_lowercase().ends_with("@example.com"),
            Self::ExternalId { value, .. } => value.starts_with("CUST-"),
            Self::Text(_) => true,
        }
    }

    /// Returns whether a contact with these fields is found.
    pub(super) fn is_in(&self, fields: &Fields) -> bool {
        let e164 = |phone: &Value, number: &str| phone["e164"].as_str() == Some(number);
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        match self {
            Self::Phone(number) => {
                let whats_app = fields.get("whatsAppId").map(|id| &id["phoneNumber"]);
                PHONES.iter().filter_map(|field| fields.get(*field)).chain(whats_app).any(|phone| e164(phone, number))
            }
            Self::Email(email) => {
                EMAILS.iter().filter_map(|field| text(field)).any(|known| known.eq_ignore_ascii_case(email))
            }
            Self::ExternalId { source, value } => {
                let ids = fields.get("externalIds").and_then(Value::as_array);
                ids.into_iter().flatten().any(|id| {
                    let known = id["externalSource"]["id"].as_str().unwrap_or_default();
                    known.eq_ignore_ascii_case(source) && id["value"].as_str() == Some(value)
                })
            }
            Self::Text(wanted) => {
                let names = ["firstName", "lastName"].into_iter().filter_map(text);
                names
                    .chain(EMAILS.iter().filter_map(|field| text(field)))
                    .any(|known| known.eq_ignore_ascii_case(wanted))
                    || Self::Phone(wanted.clone()).is_in(fields)
            }
        }
    }
}

/// The query of a search.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SearchParameters {
    #[serde(default)]
    lookup_val: String,
    #[serde(default)]
    q: String,
}

/// Answers `POST …/identifierlookup/contacts`: the contact that has the identifier, or 404.
pub(super) async fn identifier(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    body: Result<JsonObject, ApiError>,
) -> Result<Response, ApiError> {
    client.require(oauth::VIEW)?;
    let JsonObject(fields) = body?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let value = text("value").ok_or_else(|| ApiError::bad_request("value must be a text"))?;
    let wanted = match text("type").as_deref() {
        Some("Phone") if value.starts_with('+') => Wanted::Phone(value),
        Some("Email") => Wanted::Email(value),
        Some("ExternalId") => {
            let source = fields.get("externalSource").and_then(|source| source["id"].as_str()).unwrap_or_default();
            Wanted::ExternalId { source: source.to_owned(), value }
        }
        _ => return Err(ApiError::bad_request("type must be Phone (with + and country code), Email or ExternalId")),
    };
    sandbox.calls.count_search();
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let behaviour = sandbox.behaviour();
    let view = sandbox.directory.find(&wanted, behaviour.longest_lag())?;
    Ok(Json(shapes::api(&view)).into_response())
}

/// Answers `GET …/reversewhitepageslookup`.
pub(super) async fn reverse(
    sandbox: State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    Query(parameters): Query<SearchParameters>,
) -> Result<Response, ApiError> {
    let text = parameters.lookup_val;
    let wanted = if text.contains('@') { Wanted::Email(text) } else { Wanted::Phone(text) };
    list(&sandbox, &client, &wanted, "contacts")
}

/// Answers `GET …/contacts?q=`.
pub(super) async fn contacts(
    sandbox: State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    Query(parameters): Query<SearchParameters>,
) -> Result<Response, ApiError> {
    list(&sandbox, &client, &Wanted::Text(parameters.q), "entities")
}

fn list(
    sandbox: &SandboxState,
    client: &AuthenticatedClient,
    wanted: &Wanted,
    name: &str,
) -> Result<Response, ApiError> {
    client.require(oauth::VIEW)?;
    sandbox.calls.count_search();
    if let Some(failure) = sandbox.injected_failure(client.kind) {
        return Ok(failure);
    }
    let behaviour = sandbox.behaviour();
    let found = sandbox.directory.find(wanted, behaviour.longest_lag());
    let found: Vec<Value> = found.iter().map(shapes::api).collect();
    Ok(Json(json!({ name: found, "pageSize": 25, "pageNumber": 1, "total": found.len() })).into_response())
}
