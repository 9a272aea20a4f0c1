//! Checks that a token has the required privileges, and no forbidden ones.
//!
//! The task that renewed a token checks it before the token fetches its first profile. So the check runs once for each
//! renewal, and not at the cost of a lookup. A cache must be able to view contacts, and to do nothing else: without
//! that permission no fetch works, and with a permission to change contacts a stolen token does harm. A missing
//! privilege and a forbidden one are therefore both refusals, not warnings: no profile is fetched.
//!
//! # Sources
//!
//! If the token response names scopes (RFC 6749 section 5.1), they decide. Genesys names none for client credentials.
//! Then two documents decide, which any token may read:
//!
//! 1. `GET /api/v2/tokens/me`: the scopes, which are checked like those of a token response.
//! 2. `GET /api/v2/authorization/subjects/me`: grants, each with a role, each role with policies, each policy with a
//!    domain, an entity and actions; together the permissions `domain:entity:action`. `*` in any part means all.
//!    Conditions and divisions only narrow where a permission holds, so they are ignored.
//!
//! Without required and forbidden permissions no document is read.
//!
//! Nothing of these documents is kept or logged. A refusal names the configured rules that the token breaks.

mod introspection;
mod policy;

use std::sync::Arc;

use tokio::time::Instant;

use super::Error;
use super::http_client::HttpClient;
use super::token::Token;

use introspection::{TokenInfo, TokenSubject, read};

pub(super) use introspection::IntrospectionUrls;
pub(super) use policy::PrivilegePolicy;
pub use policy::{InvalidPermission, InvalidScope, Permission, Scope};

/// Checks the tokens of one tenant.
#[derive(Debug)]
pub(super) struct PrivilegeVerifier {
    client: HttpClient,
    policy: PrivilegePolicy,
    urls: IntrospectionUrls,
}

impl PrivilegeVerifier {
    /// Creates a verifier. It sends nothing before the first token.
    pub(super) const fn new(client: HttpClient, policy: PrivilegePolicy, urls: IntrospectionUrls) -> Self {
        Self { client, policy, urls }
    }

    /// Checks a token until `deadline`. Reads its documents if its response named no scopes.
    ///
    /// # Errors
    ///
    /// [`Error::Privileges`] if the privileges are wrong, any other error if a document could not be read.
    pub(super) async fn verify(&self, token: &Token, deadline: Instant) -> Result<(), Error> {
        let scopes: Vec<&str> = token.scopes().collect();
        if !scopes.is_empty() || self.policy.ignores_permissions() {
            return refuse(self.policy.broken_by_scopes(&scopes));
        }
        let (info, subject) = tokio::try_join!(
            read::<TokenInfo>(&self.client, &self.urls.token, token, deadline),
            read::<TokenSubject>(&self.client, &self.urls.subject, token, deadline),
        )?;
        let mut broken = self.policy.broken_by_scopes(&info.scopes());
        broken.extend(self.policy.broken_by_permissions(&subject.permissions()));
        refuse(broken)
    }
}

fn refuse(broken: Vec<String>) -> Result<(), Error> {
    if broken.is_empty() { Ok(()) } else { Err(Error::Privileges { reason: Arc::from(broken.join(", ")) }) }
}

#[cfg(test)]
mod tests;
