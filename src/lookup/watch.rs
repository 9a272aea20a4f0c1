//! Records of tenants whose only events are notifications: what is not watched is fresh for `lookup.unwatched_ttl` only.
//!
//! A change is received only if its customer was watched before it happened. So a record counts as watched if it was fetched
//! at least [`MARGIN`] after this process began to watch its customer. Each process judges by what it watches itself, when
//! it reads: another process, its crash or a lost socket cannot make it trust a record for longer.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{CustomerId, Identity, Key, TenantId, Timestamp};
use crate::store::Record;

use super::freshness::{self, Freshness};
use super::{Config, LookupAnswer, LookupContext, LookupError, LookupOutcome};

/// How much later than the beginning of the watch a record must have been fetched: the clocks of two processes may differ
/// by as much.
const MARGIN: Duration = Duration::from_secs(2);

/// Watches the changes of customers.
pub trait Watch: Debug + Send + Sync {
    /// Returns since when every change of a customer is received, if that is so. Every hit asks.
    fn since(&self, key: &Key) -> Option<Timestamp>;

    /// Begins to watch a customer whose profile was fetched. Does not wait.
    fn fetched(&self, key: Key, customer: &CustomerId);
}

/// The watch of one tenant.
#[derive(Clone, Debug)]
pub struct TenantWatch {
    /// What watches in this process; `None` if nothing does.
    pub by: Option<Arc<dyn Watch>>,
    /// Whether the tenant has no other source of events.
    pub is_only_source: bool,
}

/// The watches of the tenants that have one.
pub type TenantWatches = HashMap<TenantId, TenantWatch>;

impl TenantWatch {
    /// Returns whether a change since `fetched_at` may be missed.
    fn may_miss(&self, key: &Key, fetched_at: Timestamp) -> bool {
        let is_watched =
            |watch: &Arc<dyn Watch>| watch.since(key).is_some_and(|since| since.plus(MARGIN) <= fetched_at);
        self.is_only_source && !self.by.as_ref().is_some_and(is_watched)
    }
}

impl LookupContext {
    /// Returns whether changes of a customer since `fetched_at` may be missed.
    fn is_unwatched(&self, identity: &Identity, fetched_at: Timestamp) -> bool {
        let watch = self.deps.watches.get(identity.tenant());
        watch.is_some_and(|watch| watch.may_miss(&identity.key(), fetched_at))
    }

    /// Labels an answer whose later changes may be missed.
    pub(super) fn label(&self, answer: &mut Result<LookupAnswer, LookupError>) {
        if let Ok(answer) = answer
            && let (LookupOutcome::Found(_), Some(identity)) = (&answer.outcome, &answer.identity)
        {
            answer.unwatched = self.is_unwatched(identity, answer.since);
        }
    }

    /// Begins to watch the customer of a fetched profile, under its canonical id, if the tenant has notifications.
    pub(super) fn watch(&self, identity: &Identity, customer: &CustomerId) {
        if let Some(watch) = self.deps.watches.get(identity.tenant()).and_then(|watch| watch.by.as_ref()) {
            watch.fetched(identity.key(), customer);
        }
    }

    /// Returns the freshness of a record; shortens the times of one whose changes may be missed, and leaves it no grace.
    pub(super) fn judge(&self, record: &mut Record, config: &Config, now: Timestamp) -> Freshness {
        let cleared = self.deps.clears.of(record.identity.tenant());
        if self.is_unwatched(&record.identity, record.fetched_at) {
            record.ttl = record.ttl.min(config.unwatched_ttl);
            record.grace = Duration::ZERO;
        }
        freshness::judge(record, cleared, now)
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::KeyHasher;

    use super::*;

    #[derive(Debug)]
    struct Since(i64);

    impl Watch for Since {
        fn since(&self, _: &Key) -> Option<Timestamp> {
            Some(Timestamp::from_millis(self.0))
        }

        fn fetched(&self, _: Key, _: &CustomerId) {}
    }

    #[test]
    fn only_a_record_fetched_well_after_the_watch_began_misses_nothing() {
        let key = KeyHasher::Sha256.identify(&"t".parse().unwrap(), &"c".parse().unwrap()).key();
        let misses = |by: Option<Arc<dyn Watch>>, is_only_source, fetched_at| {
            TenantWatch { by, is_only_source }.may_miss(&key, Timestamp::from_millis(fetched_at))
        };
        let watch = || Some(Arc::new(Since(10_000)) as Arc<dyn Watch>);
        assert!(misses(watch(), true, 9_000) && misses(watch(), true, 11_999));
        assert!(!misses(watch(), true, 12_000));
        assert!(misses(None, true, 12_000));
        assert!(!misses(None, false, 9_000), "another source covers it");
    }
}
