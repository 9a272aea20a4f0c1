//! The span of each fetch: a decorator of the upstream port.
//!
//! No `traceparent` is sent to Genesys. It belongs to another organisation, which must not learn which requests belong
//! together.

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::Instrument;

use crate::domain::{CustomerId, TenantId};
use crate::spans;

use super::answer::{Answer, label};
use super::{Error, Expand, Fetched, FetchedMany, Requester, Search, Upstream};

/// An upstream that records each fetch as a span.
#[derive(Debug)]
pub(super) struct TracedUpstream<U> {
    inner: U,
}

impl<U> TracedUpstream<U> {
    /// Wraps `inner`.
    pub(super) const fn new(inner: U) -> Self {
        Self { inner }
    }
}

async fn traced<T: Answer>(tenant: &TenantId, fetch: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let span = spans::fetch(tenant);
    let outcome = fetch.instrument(span.clone()).await;
    spans::fetched(&span, label(&outcome));
    outcome
}

#[async_trait]
impl<U: Upstream> Upstream for TracedUpstream<U> {
    async fn fetch(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        traced(tenant, self.inner.fetch(tenant, customer, requester, deadline)).await
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        traced(tenant, self.inner.fetch_expanded(tenant, customer, expand, requester, deadline)).await
    }

    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        traced(tenant, self.inner.fetch_many(tenant, customers, requester, deadline)).await
    }

    async fn search(
        &self,
        tenant: &TenantId,
        search: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        traced(tenant, self.inner.search(tenant, search, requester, deadline)).await
    }
}
