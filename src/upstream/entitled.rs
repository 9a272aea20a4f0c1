//! Turns fetches away whose token may do too little or too much: a decorator of the upstream port.
//!
//! It stands in front of the guard, so that an answer that needs no request spends no budget and waits for
//! nothing. The first fetch of all passes, and learns the judgement with everyone who waits for the token;
//! from a refusal on, every fetch is told so at once, and one in each pause has the token judged again behind
//! its back. A tenant whose privileges were put right is therefore served again after one more refusal.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::metrics::{Metrics, UpstreamOutcome};

use super::tokens::Tokens;
use super::{Error, Expand, Fetched, Upstream};

/// The upstream of one tenant, for as long as its token is not refused.
#[derive(Debug)]
pub(super) struct Entitled<U> {
    inner: U,
    tokens: Tokens,
    metrics: Arc<Metrics>,
}

impl<U> Entitled<U> {
    /// Stands in front of `inner`, which fetches with these tokens.
    pub(super) const fn new(inner: U, tokens: Tokens, metrics: Arc<Metrics>) -> Self {
        Self { inner, tokens, metrics }
    }

    /// Returns why the token is refused, if it is.
    pub(super) fn refusal(&self) -> Option<Arc<str>> {
        self.tokens.refusal()
    }

    /// Lets a fetch through, unless the token is refused.
    fn admit(&self) -> Result<&U, Error> {
        let Some(reason) = self.tokens.refusal() else { return Ok(&self.inner) };
        self.tokens.reconsider();
        self.metrics.upstream_requests.with(UpstreamOutcome::Privileges).increment(1);
        Err(Error::Privileges { reason })
    }
}

#[async_trait]
impl<U: Upstream> Upstream for Entitled<U> {
    async fn fetch(&self, tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error> {
        self.admit()?.fetch(tenant, customer, deadline).await
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.admit()?.fetch_expanded(tenant, customer, expand, deadline).await
    }
}
