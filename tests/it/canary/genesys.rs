//! A fake Genesys with planted tokens and people. Its errors name the requested customer.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plants::{ADDRESS, AGENT_TOKEN, EMAIL, FIRST_NAME, GENESYS_TOKEN, LAST_NAME, PHONE, UUID};

/// An id with this prefix gets the status that follows it.
const STATUS: &str = "CANARY-CUSTOMER-4711-";

/// A running fake Genesys, which stops when this is dropped.
pub(super) struct Genesys {
    pub(super) address: SocketAddr,
    _running: DropGuard,
}

impl Genesys {
    pub(super) async fn start() -> Self {
        let routes = Router::new()
            .route("/oauth/token", post(token))
            .route("/api/v2/tokens/me", get(token_info))
            .route("/api/v2/authorization/subjects/me", get(subject))
            .route("/api/v2/externalcontacts/contacts/{id}", get(contact))
            .route("/api/v2/externalcontacts/identifierlookup/contacts", post(identifier))
            .route("/api/v2/externalcontacts/reversewhitepageslookup", get(list));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, running) = (listener.local_addr().unwrap(), CancellationToken::new());
        let ended = running.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                () = ended => {}
                served = axum::serve(listener, routes) => served.unwrap(),
            }
        });
        Self { address, _running: running.drop_guard() }
    }
}

/// Returns the id of a customer for which Genesys gives this answer.
pub(super) fn with_status(status: &str) -> String {
    format!("{STATUS}{status}")
}

/// All data of a person.
pub(super) fn person(id: &str) -> Value {
    json!({
        "id": id, "firstName": FIRST_NAME, "lastName": LAST_NAME, "workEmail": EMAIL, "workPhone": { "e164": PHONE },
        "address": { "address1": ADDRESS }, "customFields": { EMAIL: PHONE },
    })
}

async fn token() -> Response {
    json_text(StatusCode::OK, &json!({ "access_token": GENESYS_TOKEN, "token_type": "bearer", "expires_in": 86_399 }))
}

async fn token_info(headers: HeaderMap) -> Response {
    let token = headers["authorization"].to_str().unwrap();
    if ![GENESYS_TOKEN, AGENT_TOKEN].iter().any(|valid| token.strip_prefix("Bearer ") == Some(valid)) {
        return json_text(StatusCode::UNAUTHORIZED, &json!({ "message": token }));
    }
    let client = json!({ "id": "canary", "name": LAST_NAME, "scope": [] });
    let organisation = json!({ "id": "canary-organisation", "name": LAST_NAME });
    json_text(
        StatusCode::OK,
        &json!({ "OAuthClient": client, "authorizedScope": [], "organization": organisation, "user": { "email": EMAIL } }),
    )
}

async fn subject() -> Response {
    let policies = json!([{ "domain": "externalContacts", "entityName": "contact", "actions": ["view"] }]);
    json_text(StatusCode::OK, &json!({ "grants": [{ "role": { "policies": policies } }], "name": LAST_NAME }))
}

async fn identifier() -> Response {
    json_text(StatusCode::OK, &person(UUID))
}

async fn list() -> Response {
    json_text(StatusCode::OK, &json!({ "contacts": [person(UUID)] }))
}

async fn contact(Path(id): Path<String>) -> Response {
    let text =
        json!({ "message": format!("{id} is {FIRST_NAME} {LAST_NAME}, {EMAIL}"), "messageParams": { "id": id } });
    match id.strip_prefix(STATUS) {
        None => json_text(StatusCode::OK, &person(&id)),
        Some("merged") => json_text(StatusCode::OK, &person(UUID)),
        Some("malformed") => (StatusCode::OK, format!("{{\"id\":\"{id}\",\"firstName\":{FIRST_NAME}")).into_response(),
        Some("silent") => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            StatusCode::OK.into_response()
        }
        Some("302") => (StatusCode::FOUND, [("location", format!("/{EMAIL}?id={id}"))], id).into_response(),
        Some(status) => json_text(status.parse().unwrap(), &text),
    }
}

fn json_text(status: StatusCode, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("x-planted", GENESYS_TOKEN)];
    (status, headers, body.to_string()).into_response()
}
