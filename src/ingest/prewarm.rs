//! What ingest does with conversations: it reports their customers, who will probably be looked up soon.

use crate::domain::{CustomerQuery, TenantId};

/// Fetches customers who will probably be looked up.
pub trait Prewarm: std::fmt::Debug + Send + Sync {
    /// Begins to fetch customers if the tenant wants that, and those named by a phone number only if somebody may look them up by
    /// it; returns whether any are fetched. Does not wait.
    fn expect(&self, tenant: &TenantId, customers: Vec<CustomerQuery>) -> bool;
}
