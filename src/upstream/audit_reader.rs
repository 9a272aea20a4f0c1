//! Reads audits of Genesys, at the expense of no lookup.
//!
//! A query spends what a refresh in the background may spend of the tenant's budget, so lookups always find their share. It
//! is not sent while Genesys asked for a pause, or the breaker is open. What becomes of it changes neither of them: the audit
//! service may fail alone. It takes no permit of the requests in flight, because its answer may take long.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::TenantId;

use super::audits::{AuditPage, AuditQuery};
use super::tenants::TenantUpstreams;
use super::{Error, Requester};

/// How long one query may take.
const PATIENCE: Duration = Duration::from_secs(12);

/// Reads the audits of all tenants. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct AuditReader(Arc<TenantUpstreams>);

impl AuditReader {
    /// Creates a reader.
    pub(super) const fn new(tenants: Arc<TenantUpstreams>) -> Self {
        Self(tenants)
    }

    /// Returns the tenants whose audits can be read, in order.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut tenants: Vec<TenantId> = self.0.0.keys().cloned().collect();
        tenants.sort_unstable();
        tenants
    }

    /// Reads one page. Nothing is retried.
    ///
    /// # Errors
    ///
    /// [`Error::Denied`] with 403 if the OAuth client has no permission `audits:audit:view`; [`Error::BudgetSpent`] while
    /// lookups need the budget.
    pub async fn read(&self, tenant: &TenantId, query: &AuditQuery) -> Result<AuditPage, Error> {
        let guard = self.0.of(tenant)?.admit()?;
        let requester = Requester::Background;
        guard.aside(&requester, PATIENCE, |genesys, deadline| Box::pin(genesys.audits(query, deadline))).await
    }
}
