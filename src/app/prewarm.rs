//! Connects conversation events with prefetching, for the tenants that want it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::Config;
use crate::domain::{CustomerQuery, LookupBy, TenantId};
use crate::http::auth::callers::Callers;
use crate::ingest::Prewarm;
use crate::lookup::prefetch::Prefetcher;
use crate::reload::Reloadable;

/// Prefetches the customers of conversations.
#[derive(Debug)]
struct ConversationPrewarm {
    tenants: HashSet<TenantId>,
    callers: Reloadable<Callers>,
    prefetcher: Arc<Prefetcher>,
}

/// Creates the connection.
pub(super) fn prewarm(
    config: &Config,
    callers: &Reloadable<Callers>,
    prefetcher: &Arc<Prefetcher>,
) -> Arc<dyn Prewarm> {
    let tenants = config.tenants.iter().filter(|tenant| tenant.prewarm).map(|tenant| tenant.id.clone()).collect();
    Arc::new(ConversationPrewarm { tenants, callers: callers.clone(), prefetcher: Arc::clone(prefetcher) })
}

impl Prewarm for ConversationPrewarm {
    fn expect(&self, tenant: &TenantId, mut customers: Vec<CustomerQuery>) -> bool {
        if !self.tenants.contains(tenant) {
            return false;
        }
        let callers = self.callers.load();
        // Whoever looks up by id only would not get what is fetched by a number.
        customers.retain(|customer| match customer.by() {
            LookupBy::CustomerId => true,
            by => callers.any_may_look_up_by(tenant, by),
        });
        let is_wanted = !customers.is_empty();
        self.prefetcher.expect(tenant, customers);
        is_wanted
    }
}
