//! The upstreams of all tenants, as one.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};

use super::genesys::Genesys;
use super::guard::Guard;
use super::privilege_gate::PrivilegeGate;
use super::{Error, Expand, Fetched, FetchedMany, Requester, Search, Upstream};

/// The upstreams of all tenants.
#[derive(Debug)]
pub(super) struct TenantUpstreams(pub(super) HashMap<TenantId, PrivilegeGate<Guard<Genesys>>>);

impl TenantUpstreams {
    /// Lookups of unknown tenants are refused before they get here, so the error does not occur.
    pub(super) fn of(&self, tenant: &TenantId) -> Result<&PrivilegeGate<Guard<Genesys>>, Error> {
        self.0.get(tenant).ok_or(Error::Unreachable(None))
    }
}

/// Reports the tenants whose Genesys gives no answers. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct TenantHealth(pub(super) Arc<TenantUpstreams>);

impl TenantHealth {
    /// Returns the tenants whose Genesys gives no answers, with the reason: the token or the client is refused, the breaker
    /// is open, Genesys asked for a pause, or it cannot be reached.
    #[must_use]
    pub fn refusals(&self) -> Vec<(TenantId, Arc<str>)> {
        let of = |(tenant, upstream): (&TenantId, &PrivilegeGate<Guard<Genesys>>)| {
            Some((tenant.clone(), upstream.trouble()?))
        };
        self.0.0.iter().filter_map(of).collect()
    }
}

#[async_trait]
impl Upstream for Arc<TenantUpstreams> {
    async fn fetch(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.of(tenant)?.fetch(tenant, customer, requester, deadline).await
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.of(tenant)?.fetch_expanded(tenant, customer, expand, requester, deadline).await
    }

    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        self.of(tenant)?.fetch_many(tenant, customers, requester, deadline).await
    }

    async fn search(
        &self,
        tenant: &TenantId,
        search: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.of(tenant)?.search(tenant, search, requester, deadline).await
    }
}
