//! Values with a lifetime, in a cache of limited weight.

use std::hash::Hash;
use std::time::{Duration, Instant as SystemInstant};

use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::domain::Timestamp;

/// How much the wall clock may fall behind before it counts as set back: it is adjusted in small steps all the time.
const TOLERANCE: Duration = Duration::from_secs(1);

/// A value that expires.
#[derive(Clone, Debug)]
pub(super) struct Expiring<T> {
    pub(super) value: T,
    until: Timestamp,
    lifetime: Duration,
    written: Instant,
}

impl<T> Expiring<T> {
    pub(super) fn new(value: T, now: Timestamp, lifetime: Duration) -> Self {
        Self { value, until: now.plus(lifetime), lifetime, written: Instant::now() }
    }

    /// Returns the time until it expires: by the wall clock, but at most what is left of its lifetime since it was
    /// written, because the wall clock may be set back.
    pub(super) fn remaining(&self, now: Timestamp) -> Duration {
        self.until.since(now).min(self.lifetime.saturating_sub(self.age()))
    }

    /// Returns the time since it was written, less the tolerance, which no change of the wall clock affects.
    pub(super) fn age(&self) -> Duration {
        self.written.elapsed().saturating_sub(TOLERANCE)
    }
}

/// Frees memory after a value has expired.
struct Reclaim;

impl<K, T> Expiry<K, Expiring<T>> for Reclaim {
    fn expire_after_create(&self, _key: &K, entry: &Expiring<T>, _at: SystemInstant) -> Option<Duration> {
        Some(entry.lifetime)
    }

    fn expire_after_update(
        &self,
        _key: &K,
        entry: &Expiring<T>,
        _at: SystemInstant,
        _remaining: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.lifetime)
    }
}

/// Creates a cache that evicts its least recently used members above a total weight.
pub(super) fn cache<K, T>(max: u64, weigh: fn(&K, &Expiring<T>) -> u32) -> Cache<K, Expiring<T>>
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

/// Returns a value unless it has expired.
pub(super) fn live<K, T>(cache: &Cache<K, Expiring<T>>, key: &K, now: Timestamp) -> Option<Expiring<T>>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    cache.get(key).filter(|entry| !entry.remaining(now).is_zero())
}
