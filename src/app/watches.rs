//! Connects the sources of events with lookups, for the tenants that have one.

use crate::config::{Config, Tenant};
use crate::lookup::{TenantWatch, TenantWatches};
use crate::sources::Sources;

/// Returns what watches the customers of each tenant with notifications; nothing does in a process without `sources`.
pub(super) fn watches(config: &Config, sources: &Sources) -> TenantWatches {
    let with_source = config.tenants.iter().filter(|tenant| !tenant.sources.is_empty());
    let watch =
        |tenant: &Tenant| TenantWatch { by: sources.watch(&tenant.id), is_only_source: tenant.webhooks.is_empty() };
    with_source.map(|tenant| (tenant.id.clone(), watch(tenant))).collect()
}
