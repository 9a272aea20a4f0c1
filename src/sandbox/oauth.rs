//! OAuth: clients, the tokens they were given, and what a token may do.
//!
//! Two clients are known, by credentials that everyone may know: `sandbox` reads, `editor` also
//! writes. Tokens are opaque and remembered until they expire, are revoked, or a hundred thousand
//! newer ones were given out. The bearer [`EDITOR_BEARER`] is a token of `editor` that always works.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::domain::Timestamp;

use super::Genesys;
use super::errors::Refusal;
use super::shapes;

/// A bearer that always works, for curl.
pub(super) const EDITOR_BEARER: &str = "sandbox-editor";
/// The organisation that everything belongs to.
pub(super) const ORGANISATION: &str = "5a4d0000-0000-4000-8000-000000000001";

/// May read contacts.
pub(super) const VIEW: &str = "externalContacts:contact:view";
/// May create contacts.
pub(super) const ADD: &str = "externalContacts:contact:add";
/// May change contacts.
pub(super) const EDIT: &str = "externalContacts:contact:edit";
/// May delete contacts.
pub(super) const DELETE: &str = "externalContacts:contact:delete";
/// May merge contacts.
pub(super) const MERGE: &str = "externalContacts:identity:merge";

/// How many tokens are remembered.
const MAX_TOKENS: usize = 100_000;

/// The OAuth clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Reads, unless the behaviour `permissions` says otherwise.
    Sandbox,
    /// Reads and writes.
    Editor,
}

impl Role {
    /// All roles.
    pub(super) const ALL: [Self; 2] = [Self::Sandbox, Self::Editor];

    /// The client id, which is the secret too.
    const fn client(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Editor => "editor",
        }
    }

    /// The client's id as an entity at Genesys.
    pub(super) const fn id(self) -> &'static str {
        match self {
            Self::Sandbox => "5a4d0000-0000-4000-8000-0000000000a1",
            Self::Editor => "5a4d0000-0000-4000-8000-0000000000a2",
        }
    }

    const fn role_id(self) -> &'static str {
        match self {
            Self::Sandbox => "5a4d0000-0000-4000-8000-0000000000b1",
            Self::Editor => "5a4d0000-0000-4000-8000-0000000000b2",
        }
    }

    fn permissions(self) -> Vec<String> {
        match self {
            Self::Sandbox => vec![VIEW.to_owned()],
            Self::Editor => [VIEW, ADD, EDIT, DELETE, MERGE].map(str::to_owned).to_vec(),
        }
    }
}

/// The tokens that were given out.
#[derive(Default)]
pub(super) struct Tokens(Mutex<Given>);

#[derive(Default)]
struct Given {
    grants: HashMap<String, Grant>,
    oldest_first: VecDeque<String>,
    count: u64,
}

#[derive(Clone, Copy)]
struct Grant {
    role: Role,
    expires: Timestamp,
}

impl Tokens {
    fn give(&self, role: Role, expires: Timestamp) -> String {
        let token = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let mut given = self.0.lock();
        if given.oldest_first.len() >= MAX_TOKENS
            && let Some(oldest) = given.oldest_first.pop_front()
        {
            given.grants.remove(&oldest);
        }
        given.grants.insert(token.clone(), Grant { role, expires });
        given.oldest_first.push_back(token.clone());
        given.count += 1;
        token
    }

    fn role_of(&self, token: &str, now: Timestamp) -> Option<Role> {
        let grant = self.0.lock().grants.get(token).copied()?;
        (now < grant.expires).then_some(grant.role)
    }

    /// Revokes all tokens given out so far.
    pub(super) fn revoke_all(&self) {
        let mut given = self.0.lock();
        given.grants.clear();
        given.oldest_first.clear();
    }

    /// Returns how many tokens were ever given out.
    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }
}

/// Who makes a request: the client that its bearer token was given to. A request without a valid
/// token is refused with 401 before anything else of it is looked at.
pub(super) struct Client {
    pub(super) role: Role,
    permissions: Vec<String>,
}

impl Client {
    /// Refuses with 403 unless the client has the permission, itself or by `*` for its action.
    pub(super) fn require(&self, permission: &'static str) -> Result<(), Refusal> {
        let by_any_action = |held: &str| {
            let prefix = held.strip_suffix('*').filter(|prefix| prefix.ends_with(':'));
            prefix.is_some_and(|prefix| permission.starts_with(prefix))
        };
        if self.permissions.iter().any(|held| held == permission || by_any_action(held)) {
            Ok(())
        } else {
            Err(Refusal::missing_permissions(permission))
        }
    }
}

impl FromRequestParts<Arc<Genesys>> for Client {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, genesys: &Arc<Genesys>) -> Result<Self, Refusal> {
        let token = credentials(&parts.headers, "bearer").ok_or(Refusal::authentication_required())?;
        let role = if token == EDITOR_BEARER {
            Role::Editor
        } else {
            genesys.tokens.role_of(token, genesys.clock.now()).ok_or(Refusal::bad_credentials())?
        };
        let imposed = (role == Role::Sandbox).then(|| genesys.behaviour().permissions.clone()).flatten();
        Ok(Self { role, permissions: imposed.unwrap_or_else(|| role.permissions()) })
    }
}

/// Answers the token endpoint (RFC 6749 section 4.4), with its errors in the form of section 5.2.
pub(super) async fn token(
    State(genesys): State<Arc<Genesys>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    // A body that cannot be read has no fields, and is refused for lacking them.
    let body = body.unwrap_or_default();
    let form: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
    let field = |name| form.get(name).map_or("", String::as_str);
    let basic = credentials(&headers, "basic").map(decode_basic);
    let (id, secret) = match &basic {
        Some(decoded) => decoded.as_ref().map_or(("", ""), |(id, secret)| (id, secret)),
        None => (field("client_id"), field("client_secret")),
    };
    let Some(role) = Role::ALL.into_iter().find(|role| role.client() == id && role.client() == secret) else {
        let mut refused = refused(StatusCode::UNAUTHORIZED, "invalid_client", "client authentication failed");
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"sandbox\""));
        return refused;
    };
    match field("grant_type") {
        "client_credentials" => {}
        "" => return refused(StatusCode::BAD_REQUEST, "invalid_request", "grant_type is missing"),
        _ => return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", "only client_credentials is supported"),
    }
    let lifetime = genesys.behaviour().token_lifetime;
    let token = genesys.tokens.give(role, genesys.clock.now().plus(Duration::from_secs(lifetime)));
    Json(json!({ "access_token": token, "token_type": "bearer", "expires_in": lifetime })).into_response()
}

/// Answers `GET /api/v2/tokens/me`: whose token this is.
pub(super) async fn token_info(client: Client) -> Json<Value> {
    let organisation = json!({ "id": ORGANISATION, "name": "Sandbox" });
    Json(json!({
        "organization": organisation, "homeOrganization": organisation,
        "authorizedScope": [], "clonedUser": null, "dateTokenIdles": null,
        "OAuthClient": {
            "id": client.role.id(), "name": client.role.client(),
            "authorizedGrantType": "CLIENT_CREDENTIALS", "scope": [],
            "roleDivisions": [{ "roleId": client.role.role_id(), "divisionId": "*" }],
            "state": "active", "organization": organisation,
        },
    }))
}

/// Answers `GET /api/v2/authorization/subjects/me`: what this token may do.
pub(super) async fn subject(client: Client) -> Json<Value> {
    let mut policies: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for permission in &client.permissions {
        let mut parts = permission.splitn(3, ':');
        let (domain, entity, action) = (parts.next(), parts.next(), parts.next());
        let (domain, entity, action) = (domain.unwrap_or_default(), entity.unwrap_or_default(), action.unwrap_or("*"));
        match policies.iter_mut().find(|policy| (policy.0, policy.1) == (domain, entity)) {
            Some(policy) => policy.2.push(action),
            None => policies.push((domain, entity, vec![action])),
        }
    }
    let policies: Vec<_> = policies
        .into_iter()
        .map(|(domain, entity, actions)| json!({ "domain": domain, "entityName": entity, "actions": actions }))
        .collect();
    Json(json!({
        "id": client.role.id(), "name": client.role.client(),
        "grants": [{
            "division": shapes::division(),
            "role": { "id": client.role.role_id(), "name": client.role.client(), "policies": policies },
        }],
    }))
}

fn refused(status: StatusCode, error: &str, description: &str) -> Response {
    (status, Json(json!({ "error": error, "error_description": description }))).into_response()
}

/// Returns the credentials of the Authorization header, if it has this scheme.
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (given, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

fn decode_basic(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    decoded.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
}
