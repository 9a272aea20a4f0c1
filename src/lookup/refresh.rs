//! Background tasks that a lookup starts for later lookups; it does not wait for them.
//!
//! One process starts each of them at most once per interval and key. The task holds the lease of the key, so that
//! of all processes one asks Genesys. If a task fails, the entry stays as it is.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::TenantId;
use crate::metrics::RefreshCause;
use crate::spans::{self, Cause};
use crate::store::{Base, Content, Generations, LeaseAnswer, Record, Token, Tombstone};
use crate::upstream::Requester;

use super::reader::CacheReader;
use super::{LookupContext, freshness};

/// The minimum time between two attempts of one process to refresh a record before its expiry.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The minimum age of a tombstone before it is verified, and the minimum time between two verifications
/// ([`rules::tombstone`](crate::rules#tombstone)).
pub(super) const VERIFY_INTERVAL: Duration = Duration::from_secs(60);

impl LookupContext {
    /// Returns whether a record from before a clear may be refreshed now.
    pub(super) fn may_refresh_cleared(&self, tenant: &TenantId) -> bool {
        self.cleared.get(tenant).is_some_and(|pace| pace.check().is_ok())
    }
}

impl CacheReader<'_> {
    /// Starts the refresh of a fresh record that expires soon (see [`freshness::is_due`]), or is from before a clear of its
    /// tenant; returns whether a refresh is under way.
    ///
    /// After a clear, all records of the tenant are due at once, so their refreshes start at a limited rate. An unsettled record must expire ([`rules::unsettled`](crate::rules#unsettled)). A negative one is not
    /// refreshed either, because it is cheap.
    pub(super) fn refresh_if_due(&self, record: &Record, remaining: Duration, cleared: Generations) -> bool {
        let is_worthwhile = match &record.content {
            Content::Found(_) | Content::Pointer(_) => record.settled,
            Content::Negative | Content::IdentifierPointer(_) | Content::Sealed(_) => false,
        };
        let draining = || self.context.deps.shutdown.is_requested();
        let is_from_before = record.generation < cleared.soft && !matches!(record.content, Content::Sealed(_));
        let is_due = is_from_before || (is_worthwhile && freshness::is_due_by_chance(record, remaining));
        if !is_due || draining() {
            return false;
        }
        if self.context.refreshing.contains_key(&self.key) {
            return true;
        }
        if is_from_before && !self.context.may_refresh_cleared(self.requested.tenant()) {
            return false;
        }
        if self.context.refreshing.entry(self.key.clone()).or_insert(()).is_fresh() {
            self.refresh(record.token, if is_from_before { RefreshCause::Cleared } else { RefreshCause::Early });
        }
        true
    }

    fn refresh(&self, base: Token, cause: RefreshCause) {
        let (context, key, fetch) =
            (Arc::clone(self.context), self.key.clone(), self.fetch_task(Requester::Background));
        let ttl = self.config.lease_ttl;
        let task = async move {
            let deps = &context.deps;
            match deps.store.lease(&key, &Base::Token(base), Token::draw(), ttl).await {
                Ok(LeaseAnswer::Granted(lease)) => {
                    deps.metrics.refreshes.with(cause).increment(1);
                    // Lookups that read the record after its expiry join this flight.
                    let (leader, _follower) = context.flights.start(&key, lease.witness());
                    fetch.lead(lease, leader).await;
                }
                Ok(LeaseAnswer::Held { .. } | LeaseAnswer::Changed(_)) | Err(_) => {}
            }
        };
        self.context.deps.shutdown.spawn(spans::lead(&self.key, Cause::Refresh, task));
    }

    /// Asks Genesys whether a customer that was deleted some time ago exists again.
    pub(super) fn verify(&self, tombstone: Tombstone) {
        let deps = &self.context.deps;
        let is_too_young = deps.clock.now().since(tombstone.written_at) < VERIFY_INTERVAL;
        if is_too_young
            || deps.shutdown.is_requested()
            || !self.context.verified.entry(self.key.clone()).or_insert(()).is_fresh()
        {
            return;
        }
        let (context, key, fetch) =
            (Arc::clone(self.context), self.key.clone(), self.fetch_task(Requester::Background));
        let task = async move {
            let deps = &context.deps;
            let base = Base::Token(tombstone.token);
            // The lease is held for the whole interval, so that there is one verification in it.
            match deps.store.lease(&key, &base, Token::draw(), VERIFY_INTERVAL).await {
                Ok(LeaseAnswer::Granted(lease)) => {
                    deps.metrics.refreshes.with(RefreshCause::Tombstone).increment(1);
                    fetch.verify(lease, tombstone).await;
                }
                Ok(LeaseAnswer::Held { .. } | LeaseAnswer::Changed(_)) | Err(_) => {}
            }
        };
        self.context.deps.shutdown.spawn(spans::lead(&self.key, Cause::Verify, task));
    }
}
