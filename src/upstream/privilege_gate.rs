//! Refuses fetches while the privileges of the token are wrong: a decorator of the upstream port.
//!
//! It wraps the guard, so that a refusal uses no budget and does not wait. The first fetch passes and gets the result
//! of the check together with all fetches that wait for the token. After a refusal every fetch fails at once, and one
//! in each pause starts another check in the background. After the privileges have been corrected, a tenant is
//! therefore served again after one more refused fetch.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::metrics::{Metrics, UpstreamOutcome};

use super::guard::Guard;
use super::tokens::TokenCache;
use super::{Error, Expand, Fetched, FetchedMany, Requester, Search, Upstream};

/// The upstream of one tenant, which is available while its token is not refused.
#[derive(Debug)]
pub(super) struct PrivilegeGate<U> {
    inner: U,
    tokens: TokenCache,
    metrics: Arc<Metrics>,
}

impl<U> PrivilegeGate<Guard<U>> {
    /// Returns why no answer can be expected now, if that is so: the token is refused, or Genesys fails.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        self.tokens.refusal().or_else(|| self.inner.trouble())
    }
}

impl<U> PrivilegeGate<U> {
    /// Wraps `inner`, which fetches with these tokens.
    pub(super) const fn new(inner: U, tokens: TokenCache, metrics: Arc<Metrics>) -> Self {
        Self { inner, tokens, metrics }
    }

    /// Returns the inner upstream unless the token is refused.
    pub(super) fn admit(&self) -> Result<&U, Error> {
        let Some(reason) = self.tokens.refusal() else { return Ok(&self.inner) };
        self.tokens.recheck();
        self.metrics.upstream_requests.with(UpstreamOutcome::Privileges).increment(1);
        Err(Error::Privileges { reason })
    }
}

#[async_trait]
impl<U: Upstream> Upstream for PrivilegeGate<U> {
    async fn fetch(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.admit()?.fetch(tenant, customer, requester, deadline).await
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.admit()?.fetch_expanded(tenant, customer, expand, requester, deadline).await
    }

    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        self.admit()?.fetch_many(tenant, customers, requester, deadline).await
    }

    async fn search(
        &self,
        tenant: &TenantId,
        search: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.admit()?.search(tenant, search, requester, deadline).await
    }
}
