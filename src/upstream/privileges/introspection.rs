//! The two documents of Genesys about a token.

use http::header;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::super::Error;
use super::super::exchange::GenesysResponse;
use super::super::http_client::HttpClient;
use super::super::token::Token;
use super::policy::HeldPermission;

/// The largest document about a token, in bytes: an administrator's roles in many divisions are long.
const MAX_DOCUMENT: usize = 8 * 1024 * 1024;

/// The URLs of the two documents.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct IntrospectionUrls {
    /// The client of the token, and its scopes.
    pub(in crate::upstream) token: Url,
    /// The permissions of the token.
    pub(in crate::upstream) subject: Url,
}

/// Reads one of the documents until `deadline`.
pub(super) async fn read<T: for<'de> Deserialize<'de>>(
    client: &HttpClient,
    url: &Url,
    token: &Token,
    deadline: Instant,
) -> Result<T, Error> {
    let request = client
        .get(url.clone())
        .header(header::AUTHORIZATION, token.header())
        .header(header::ACCEPT, "application/json");
    let response = GenesysResponse::receive(request, MAX_DOCUMENT, deadline).await?;
    if response.status != http::StatusCode::OK {
        return Err(response.error());
    }
    serde_json::from_slice(&response.body).map_err(|_| Error::Unusable { reason: "not a description of the token" })
}

/// The scopes in `GET /api/v2/tokens/me`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenInfo {
    #[serde(default)]
    authorized_scope: Option<Vec<String>>,
    #[serde(default, rename = "OAuthClient")]
    client: Option<TokenClient>,
}

#[derive(Deserialize)]
struct TokenClient {
    #[serde(default)]
    scope: Option<Vec<String>>,
}

impl TokenInfo {
    /// Returns the scopes of the token and of its client.
    pub(super) fn scopes(&self) -> Vec<&str> {
        let own = self.authorized_scope.iter().flatten();
        let of_client = self.client.iter().flat_map(|client| client.scope.iter().flatten());
        own.chain(of_client).map(String::as_str).collect()
    }
}

/// `GET /api/v2/authorization/subjects/me`. `grants` is required, so that no other document is taken for this one.
#[derive(Deserialize)]
pub(super) struct TokenSubject {
    grants: Vec<SubjectGrant>,
}

#[derive(Deserialize)]
struct SubjectGrant {
    role: SubjectRole,
}

#[derive(Deserialize)]
struct SubjectRole {
    #[serde(default)]
    policies: Option<Vec<RolePolicy>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RolePolicy {
    domain: String,
    #[serde(default)]
    entity_name: Option<String>,
    #[serde(default)]
    actions: Option<Vec<String>>,
}

impl TokenSubject {
    /// Returns every permission of the grants. A policy without an entity holds for all entities.
    pub(super) fn permissions(&self) -> Vec<HeldPermission<'_>> {
        let policies = self.grants.iter().flat_map(|grant| grant.role.policies.iter().flatten());
        let permissions = policies.flat_map(|policy| {
            let entity = policy.entity_name.as_deref().unwrap_or("*");
            let actions = policy.actions.iter().flatten();
            actions.map(move |action| HeldPermission([&policy.domain, entity, action]))
        });
        permissions.collect()
    }
}
