//! OAuth: clients, their tokens and permissions.
//!
//! The clients have public credentials: `sandbox` reads, `editor` also writes. The tokens of `agent` stand for those of a user
//! of the organisation, and those of `partner` for those of another organisation. Tokens are opaque and valid until they
//! expire, are revoked, or a hundred thousand newer ones were issued. The bearer [`EDITOR_BEARER`] is a token of `editor`
//! that always works.

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

use super::SandboxState;
use super::errors::ApiError;
use super::shapes;

/// A bearer token that always works, for curl.
pub(super) const EDITOR_BEARER: &str = "sandbox-editor";
/// The organisation of all contacts.
pub(super) const ORGANISATION: &str = "5a4d0000-0000-4000-8000-000000000001";

/// The organisation of `partner`.
const OTHER_ORGANISATION: &str = "5a4d0000-0000-4000-8000-000000000002";

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
/// May read audits.
pub(super) const AUDITS: &str = "audits:audit:view";

/// The limit of valid tokens.
const MAX_TOKENS: usize = 100_000;

/// The OAuth clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    /// Reads, unless the behaviour `permissions` overrides that.
    Sandbox,
    /// Reads and writes.
    Editor,
    /// Reads.
    Agent,
    /// May do nothing, and belongs to another organisation.
    Partner,
}

impl ClientKind {
    /// All clients.
    pub(super) const ALL: [Self; 4] = [Self::Sandbox, Self::Editor, Self::Agent, Self::Partner];

    /// Returns the client id, which is also the secret.
    const fn credential(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Editor => "editor",
            Self::Agent => "agent",
            Self::Partner => "partner",
        }
    }

    /// Returns the id of the client as an entity at Genesys.
    pub(super) const fn id(self) -> &'static str {
        match self {
            Self::Sandbox => "5a4d0000-0000-4000-8000-0000000000a1",
            Self::Editor => "5a4d0000-0000-4000-8000-0000000000a2",
            Self::Agent => "5a4d0000-0000-4000-8000-0000000000a3",
            Self::Partner => "5a4d0000-0000-4000-8000-0000000000a4",
        }
    }

    const fn role_id(self) -> &'static str {
        match self {
            Self::Sandbox => "5a4d0000-0000-4000-8000-0000000000b1",
            Self::Editor => "5a4d0000-0000-4000-8000-0000000000b2",
            Self::Agent => "5a4d0000-0000-4000-8000-0000000000b3",
            Self::Partner => "5a4d0000-0000-4000-8000-0000000000b4",
        }
    }

    const fn organisation(self) -> &'static str {
        match self {
            Self::Sandbox | Self::Editor | Self::Agent => ORGANISATION,
            Self::Partner => OTHER_ORGANISATION,
        }
    }

    fn permissions(self) -> Vec<String> {
        match self {
            Self::Sandbox | Self::Agent => vec![VIEW.to_owned()],
            Self::Partner => Vec::new(),
            Self::Editor => [VIEW, ADD, EDIT, DELETE, MERGE].map(str::to_owned).to_vec(),
        }
    }
}

/// The issued tokens.
#[derive(Default)]
pub(super) struct TokenRegistry(Mutex<IssuedTokens>);

#[derive(Default)]
struct IssuedTokens {
    grants: HashMap<String, TokenGrant>,
    oldest_first: VecDeque<String>,
    count: u64,
}

#[derive(Clone, Copy)]
struct TokenGrant {
    kind: ClientKind,
    expires: Timestamp,
}

impl TokenRegistry {
    fn issue(&self, kind: ClientKind, expires: Timestamp) -> String {
        let token = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let mut issued = self.0.lock();
        if issued.oldest_first.len() >= MAX_TOKENS
            && let Some(oldest) = issued.oldest_first.pop_front()
        {
            issued.grants.remove(&oldest);
        }
        issued.grants.insert(token.clone(), TokenGrant { kind, expires });
        issued.oldest_first.push_back(token.clone());
        issued.count += 1;
        token
    }

    fn client_of(&self, token: &str, now: Timestamp) -> Option<ClientKind> {
        let grant = self.0.lock().grants.get(token).copied()?;
        (now < grant.expires).then_some(grant.kind)
    }

    /// Revokes all tokens issued so far.
    pub(super) fn revoke_all(&self) {
        let mut issued = self.0.lock();
        issued.grants.clear();
        issued.oldest_first.clear();
    }

    /// Returns the number of tokens issued since start.
    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }
}

/// The client of a request, by its bearer token. A request without a valid token is refused with 401 before any other
/// check.
pub(super) struct AuthenticatedClient {
    pub(super) kind: ClientKind,
    permissions: Vec<String>,
}

impl AuthenticatedClient {
    /// Refuses with 403 unless the client has the permission, either exactly or with `*` as its action.
    pub(super) fn require(&self, permission: &'static str) -> Result<(), ApiError> {
        let by_any_action = |held: &str| {
            let prefix = held.strip_suffix('*').filter(|prefix| prefix.ends_with(':'));
            prefix.is_some_and(|prefix| permission.starts_with(prefix))
        };
        if self.permissions.iter().any(|held| held == permission || by_any_action(held)) {
            Ok(())
        } else {
            Err(ApiError::missing_permissions(permission))
        }
    }
}

impl FromRequestParts<Arc<SandboxState>> for AuthenticatedClient {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, sandbox: &Arc<SandboxState>) -> Result<Self, ApiError> {
        let token = credentials(&parts.headers, "bearer").ok_or(ApiError::authentication_required())?;
        let kind = if token == EDITOR_BEARER {
            ClientKind::Editor
        } else {
            sandbox.tokens.client_of(token, sandbox.clock.now()).ok_or(ApiError::bad_credentials())?
        };
        let overridden = (kind == ClientKind::Sandbox).then(|| sandbox.behaviour().permissions.clone()).flatten();
        Ok(Self { kind, permissions: overridden.unwrap_or_else(|| kind.permissions()) })
    }
}

/// Answers the token endpoint (RFC 6749 section 4.4), with its errors in the form of section 5.2.
pub(super) async fn token(
    State(sandbox): State<Arc<SandboxState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    // An unreadable body has no fields, and is refused for that.
    let body = body.unwrap_or_default();
    let form: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
    let field = |name| form.get(name).map_or("", String::as_str);
    let basic = credentials(&headers, "basic").map(decode_basic);
    let (id, secret) = match &basic {
        Some(decoded) => decoded.as_ref().map_or(("", ""), |(id, secret)| (id, secret)),
        None => (field("client_id"), field("client_secret")),
    };
    let Some(kind) = ClientKind::ALL.into_iter().find(|kind| kind.credential() == id && kind.credential() == secret)
    else {
        let mut refused = refused(StatusCode::UNAUTHORIZED, "invalid_client", "client authentication failed");
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"sandbox\""));
        return refused;
    };
    match field("grant_type") {
        "client_credentials" => {}
        "" => return refused(StatusCode::BAD_REQUEST, "invalid_request", "grant_type is missing"),
        _ => return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", "only client_credentials is supported"),
    }
    let lifetime = sandbox.behaviour().token_lifetime;
    let token = sandbox.tokens.issue(kind, sandbox.clock.now().plus(Duration::from_secs(lifetime)));
    Json(json!({ "access_token": token, "token_type": "bearer", "expires_in": lifetime })).into_response()
}

/// Answers `GET /api/v2/tokens/me`: the client of the token.
pub(super) async fn token_info(client: AuthenticatedClient) -> Json<Value> {
    let organisation = json!({ "id": client.kind.organisation(), "name": "Sandbox" });
    Json(json!({
        "organization": organisation, "homeOrganization": organisation,
        "authorizedScope": [], "clonedUser": null, "dateTokenIdles": null,
        "OAuthClient": {
            "id": client.kind.id(), "name": client.kind.credential(),
            "authorizedGrantType": "CLIENT_CREDENTIALS", "scope": [],
            "roleDivisions": [{ "roleId": client.kind.role_id(), "divisionId": "*" }],
            "state": "active", "organization": organisation,
        },
    }))
}

/// Answers `GET /api/v2/authorization/subjects/me`: the permissions of the token.
pub(super) async fn subject(client: AuthenticatedClient) -> Json<Value> {
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
        "id": client.kind.id(), "name": client.kind.credential(),
        "grants": [{
            "division": shapes::division(),
            "role": { "id": client.kind.role_id(), "name": client.kind.credential(), "policies": policies },
        }],
    }))
}

fn refused(status: StatusCode, error: &str, description: &str) -> Response {
    (status, Json(json!({ "error": error, "error_description": description }))).into_response()
}

/// Returns the credentials of the Authorization header, if it has this scheme.
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (found, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

fn decode_basic(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    decoded.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
}
