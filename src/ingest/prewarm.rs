//! What ingest does with conversations: it reports their customers, who will probably be looked up soon.

use crate::domain::{CustomerId, TenantId};

/// Fetches customers who will probably be looked up.
pub trait Prewarm: std::fmt::Debug + Send + Sync {
    /// Begins to fetch customers if the tenant wants that; returns whether it does. Does not wait.
    fn expect(&self, tenant: &TenantId, customers: Vec<CustomerId>) -> bool;
}
