//! The span of each fetch: a decorator of the upstream port.
//!
//! Nothing of the trace goes to Genesys: it is another organisation's, and a `traceparent` would tell it which of our
//! requests belong together.

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::Instrument;

use crate::domain::{CustomerId, TenantId};
use crate::spans;

use super::guard::label;
use super::{Error, Expand, Fetched, Upstream};

/// An upstream whose fetches are spans.
#[derive(Debug)]
pub(super) struct Traced<U> {
    inner: U,
}

impl<U> Traced<U> {
    /// Stands in front of `inner`.
    pub(super) const fn new(inner: U) -> Self {
        Self { inner }
    }
}

async fn traced(tenant: &TenantId, fetch: impl Future<Output = Result<Fetched, Error>>) -> Result<Fetched, Error> {
    let span = spans::fetch(tenant);
    let outcome = fetch.instrument(span.clone()).await;
    spans::fetched(&span, label(&outcome));
    outcome
}

#[async_trait]
impl<U: Upstream> Upstream for Traced<U> {
    async fn fetch(&self, tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error> {
        traced(tenant, self.inner.fetch(tenant, customer, deadline)).await
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        traced(tenant, self.inner.fetch_expanded(tenant, customer, expand, deadline)).await
    }
}
