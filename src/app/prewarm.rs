//! Connects conversation events with prefetching, for the tenants that want it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::Config;
use crate::domain::{CustomerId, CustomerQuery, TenantId};
use crate::ingest::Prewarm;
use crate::lookup::prefetch::Prefetcher;

/// Prefetches the customers of conversations.
#[derive(Debug)]
struct ConversationPrewarm {
    tenants: HashSet<TenantId>,
    prefetcher: Arc<Prefetcher>,
}

/// Creates the connection.
pub(super) fn prewarm(config: &Config, prefetcher: &Arc<Prefetcher>) -> Arc<dyn Prewarm> {
    let tenants = config.tenants.iter().filter(|tenant| tenant.prewarm).map(|tenant| tenant.id.clone()).collect();
    Arc::new(ConversationPrewarm { tenants, prefetcher: Arc::clone(prefetcher) })
}

impl Prewarm for ConversationPrewarm {
    fn expect(&self, tenant: &TenantId, customers: Vec<CustomerId>) -> bool {
        let is_wanted = self.tenants.contains(tenant);
        if is_wanted {
            self.prefetcher.submit(tenant, customers.into_iter().map(CustomerQuery::Id));
        }
        is_wanted
    }
}
