//! Values with a lifetime, in a cache of bounded weight.

use std::hash::Hash;
use std::time::{Duration, Instant as SystemInstant};

use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::domain::Timestamp;

/// A value that is kept until a time.
#[derive(Clone, Debug)]
pub(super) struct Kept<T> {
    pub(super) value: T,
    until: Timestamp,
    pub(super) lifetime: Duration,
}

/// Gives memory back once a value's lifetime is over.
struct Reclaim;

impl<K, T> Expiry<K, Kept<T>> for Reclaim {
    fn expire_after_create(&self, _key: &K, kept: &Kept<T>, _at: SystemInstant) -> Option<Duration> {
        Some(kept.lifetime)
    }

    fn expire_after_update(
        &self,
        _key: &K,
        kept: &Kept<T>,
        _at: SystemInstant,
        _remaining: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.lifetime)
    }
}

impl<T> Kept<T> {
    pub(super) fn new(value: T, now: Timestamp, lifetime: Duration) -> Self {
        Self { value, until: now.plus(lifetime), lifetime }
    }

    pub(super) fn remaining(&self, now: Timestamp) -> Duration {
        self.until.since(now)
    }
}

/// Makes a cache that evicts its least recently used members beyond a weight.
pub(super) fn cache<K, T>(max: u64, weigh: fn(&K, &Kept<T>) -> u32) -> Cache<K, Kept<T>>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    Cache::builder()
        .max_capacity(max)
        .weigher(weigh)
        .eviction_policy(EvictionPolicy::lru())
        .expire_after(Reclaim)
        .build()
}

/// Returns what is kept under a name, unless its time is over.
pub(super) fn live<K, T>(cache: &Cache<K, Kept<T>>, key: &K, now: Timestamp) -> Option<Kept<T>>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    cache.get(key).filter(|kept| kept.until > now)
}
