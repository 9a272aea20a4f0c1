//! The embedded store: entries in the memory of this process.
//!
//! It has four bounded caches: entries, fences, marks of applied events, refresh locks. Each cache evicts its least
//! recently used members when its share of the memory is full, so a new lease is always admitted. Each read checks
//! expiry exactly by the [`Clock`](crate::clock::Clock), and by the time that has passed since the write, so that nothing
//! lives longer or gets younger when the clock is set back; the expiry of the caches only frees memory.
//!
//! A step that uses more than one cache holds the lock of the key's stripe, for a short time and never across an
//! await. [`get`](Store::get) takes no lock.

mod apply;
mod expiring;
mod stripes;
mod weight;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::clock::SharedClock;
use crate::domain::{Digest, Key, TenantId, Timestamp};
use crate::store::changes::ChangeFeed;
use crate::store::fence::{Fence, Newest};
use crate::store::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    LeaseTarget, Leased, Lifetimes, Record, ReplicationHistory, Store, Token,
};

use expiring::{Expiring, cache, live};
use stripes::Stripes;
use weight::{OVERHEAD, entry_weight};

/// `[store.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much memory the store may use.
    pub max_bytes: ByteSize,
}

/// The embedded store; see the module's head.
#[derive(Debug)]
pub struct Embedded {
    entries: Cache<Key, Expiring<Entry>>,
    fences: Cache<Key, Expiring<Fence>>,
    seen: Cache<(Key, Digest), Expiring<()>>,
    locks: Cache<Key, Expiring<Token>>,
    generations: Mutex<HashMap<TenantId, Generations>>,
    /// The name of its replication history.
    history: String,
    stripes: Stripes,
    /// What is applied here.
    pub changes: ChangeFeed,
    lifetimes: Lifetimes,
    clock: SharedClock,
}

impl Embedded {
    /// Creates an empty store.
    #[must_use]
    pub fn new(config: &Config, lifetimes: Lifetimes, clock: SharedClock) -> Self {
        let max = config.max_bytes.as_u64();
        // Entries need most of the memory. An applied event leaves a mark and, once per key, a fence.
        let share = |percent: u64| max / 100 * percent;
        Self {
            entries: cache(share(70), entry_weight),
            fences: cache(share(14), |_, _| OVERHEAD),
            seen: cache(share(14), |_, _| OVERHEAD),
            locks: cache(share(2), |_, _| OVERHEAD),
            generations: Mutex::default(),
            history: hex::encode(rand::random::<[u8; 16]>()),
            stripes: Stripes::new(),
            changes: ChangeFeed::new(true),
            lifetimes,
            clock,
        }
    }

    /// Removes the entry and nothing else, like an eviction under memory pressure.
    #[cfg(feature = "faults")]
    pub fn evict(&self, key: &Key) {
        self.entries.invalidate(key);
        self.stripes.of(key).changed.notify_waiters();
    }

    fn write(&self, key: &Key, entry: Entry, now: Timestamp, lifetime: Duration) {
        self.entries.insert(key.clone(), Expiring::new(entry, now, lifetime));
    }

    /// Writes a lease at the entry key.
    fn grant(&self, key: &Key, token: Token, ttl: Duration, now: Timestamp) -> LeaseAnswer {
        let leased = Leased { token, until: now.plus(ttl) };
        self.write(key, Entry::Leased(leased), now, ttl);
        LeaseAnswer::Granted(Lease::granted(key.clone(), token, LeaseTarget::Key, self.fence(key, now)))
    }

    /// Returns the lease of the lookup that refreshes the record `base`, if there is one.
    fn refreshing(&self, key: &Key, base: Token, now: Timestamp) -> Option<LeaseAnswer> {
        let lock = live(&self.locks, key, now)?;
        Some(LeaseAnswer::Held { token: lock.value, seen: base, remaining: lock.remaining(now) })
    }

    /// Writes a lease beside the entry, which stays in use.
    fn grant_refresh(&self, key: &Key, base: Token, token: Token, ttl: Duration, now: Timestamp) -> LeaseAnswer {
        self.locks.insert(key.clone(), Expiring::new(token, now, ttl));
        LeaseAnswer::Granted(Lease::granted(key.clone(), token, LeaseTarget::Lock(base), self.fence(key, now)))
    }

    fn fence(&self, key: &Key, now: Timestamp) -> Option<(Duration, Fence)> {
        live(&self.fences, key, now).map(|found| (found.value.age(now, found.age()), found.value))
    }

    /// Removes a lease, if it is still there.
    fn withdraw(&self, key: &Key, token: Token, target: LeaseTarget, now: Timestamp) {
        match target {
            LeaseTarget::Key => {
                if self.holds(key, token, now) {
                    self.entries.invalidate(key);
                }
            }
            LeaseTarget::Lock(_) => {
                if live(&self.locks, key, now).is_some_and(|lock| lock.value == token) {
                    self.locks.invalidate(key);
                }
            }
        }
    }

    fn holds(&self, key: &Key, token: Token, now: Timestamp) -> bool {
        live(&self.entries, key, now).is_some_and(|found| found.value.token() == Some(token))
    }

    /// Returns whether a fill under this lease may write.
    fn may_fill(&self, key: &Key, token: Token, target: LeaseTarget, now: Timestamp) -> bool {
        match target {
            LeaseTarget::Key => self.holds(key, token, now),
            LeaseTarget::Lock(base) => {
                self.holds(key, base, now) && live(&self.locks, key, now).is_some_and(|lock| lock.value == token)
            }
        }
    }

    /// Records that a verified profile replaces a tombstone: the fence no longer says "deleted", and has doubt
    /// ([`rules::tombstone`](crate::rules#tombstone)).
    fn overrule_deletion(&self, key: &Key, now: Timestamp) {
        if let Some(mut fence) = live(&self.fences, key, now).filter(|fence| fence.value.says_deleted()) {
            fence.value.newest = Newest::Contested;
            fence.value.doubt = true;
            self.fences.insert(key.clone(), fence);
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let now = self.clock.now();
        Ok(live(&self.entries, key, now).map(|found| {
            let age = found.age();
            match found.value {
                Entry::Record(record) => Entry::Record(record.at_least_as_old_as(age, now)),
                entry @ (Entry::Tombstone(_) | Entry::Leased(_) | Entry::Corrupt(_)) => entry,
            }
        }))
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        let now = self.clock.now();
        let _guard = self.stripes.of(key).lock();
        let Some(found) = live(&self.entries, key, now) else {
            let restored = self.restore_tombstone(key, now);
            return Ok(restored.map_or_else(|| self.grant(key, token, ttl, now), LeaseAnswer::Changed));
        };
        let remaining = found.remaining(now);
        Ok(match (found.value, base) {
            (Entry::Leased(leased), _) => LeaseAnswer::Held { token: leased.token, seen: leased.token, remaining },
            (Entry::Corrupt(bytes), Base::Corrupt(seen)) if bytes == *seen => self.grant(key, token, ttl, now),
            (entry, Base::Token(seen)) if entry.token() == Some(*seen) => {
                self.refreshing(key, *seen, now).unwrap_or_else(|| self.grant_refresh(key, *seen, token, ttl, now))
            }
            (entry, Base::Dead(seen)) if entry.token() == Some(*seen) => {
                self.refreshing(key, *seen, now).unwrap_or_else(|| self.grant(key, token, ttl, now))
            }
            (entry, Base::Absent | Base::Token(_) | Base::Dead(_) | Base::Corrupt(_)) => LeaseAnswer::Changed(entry),
        })
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let (key, token, target) = lease.consume_for(&record)?;
        let now = self.clock.now();
        let _guard = self.stripes.of(&key).lock();
        let filled = if self.may_fill(&key, token, target, now) {
            if matches!(target, LeaseTarget::Lock(_)) {
                self.overrule_deletion(&key, now);
            }
            let lifetime = record.lifetime();
            self.write(&key, Entry::Record(record), now, lifetime);
            Filled::Stored
        } else {
            Filled::Refused
        };
        if matches!(target, LeaseTarget::Lock(_)) {
            self.withdraw(&key, token, target, now);
        }
        self.stripes.of(&key).changed.notify_waiters();
        Ok(filled)
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        let (key, token, target) = lease.consume();
        let _guard = self.stripes.of(&key).lock();
        self.withdraw(&key, token, target, self.clock.now());
        self.stripes.of(&key).changed.notify_waiters();
        Ok(())
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        Ok(self.apply_change(key, change))
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        let changed = &self.stripes.of(key).changed;
        loop {
            // Subscribed before the read, so that no change in between is missed.
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            let now = self.clock.now();
            let Some(found) = live(&self.entries, key, now).filter(|found| found.value.token() == Some(seen)) else {
                return;
            };
            let remaining = match found.value {
                Entry::Leased(_) => found.remaining(now),
                Entry::Record(_) | Entry::Tombstone(_) | Entry::Corrupt(_) => match live(&self.locks, key, now) {
                    Some(lock) => lock.remaining(now),
                    // The refresh has ended: another look is worthwhile.
                    None => return,
                },
            };
            // The next iteration finds out what ended the wait.
            let _ = timeout_at(deadline.min(Instant::now() + remaining), notified).await;
            if Instant::now() >= deadline {
                return;
            }
        }
    }
}

#[async_trait]
impl Inspect for Embedded {
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    /// One history, for the lifetime of this process.
    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        Ok([self.history.clone()].into_iter().collect())
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let now = self.clock.now();
        let _guard = self.stripes.of(key).lock();
        let found = live(&self.entries, key, now);
        Ok(Inspection {
            remaining: found.as_ref().map(|found| found.remaining(now)),
            entry: found.map(|found| found.value.without_body()),
            fence: self.fence(key, now).map(|(_, fence)| fence),
            lock: live(&self.locks, key, now).map(|lock| (lock.value, lock.remaining(now))),
        })
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        let mut generations = self.generations.lock();
        let known = generations.entry(tenant.clone()).or_default();
        *known = known.cleared(mode, self.clock.now());
        Ok(())
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        Ok(self.generations.lock().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::domain::Identity;
    use crate::store::Content;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_makes_no_record_younger() {
        let (ttl, grace) = (Duration::from_secs(300), Duration::from_secs(600));
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let lifetimes = Lifetimes { dedup_window: ttl, tombstone_ttl: ttl };
        let store = Embedded::new(&Config { max_bytes: ByteSize::mib(1) }, lifetimes, clock.clone());
        let identity = Identity::new("10001".parse().unwrap(), [7; 32]);
        let (key, token) = (identity.key(), Token::draw());
        let LeaseAnswer::Granted(lease) = store.lease(&key, &Base::Absent, token, ttl).await.unwrap() else {
            panic!("nobody else holds the lease")
        };
        let content = Content::Negative;
        let (fetched_at, fetch_cost) = (clock.now(), Duration::ZERO);
        let (settled, generation) = (true, 0);
        let record = Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled, generation };
        assert_eq!(store.fill(lease, record).await.unwrap(), Filled::Stored);
        let pass = async |time| {
            clock.advance(time);
            tokio::time::advance(time).await;
        };
        let age = async || match store.get(&key).await.unwrap() {
            Some(Entry::Record(record)) => Some(clock.now().since(record.fetched_at)),
            _ => None,
        };
        pass(ttl).await;
        assert_eq!(age().await, Some(ttl));
        clock.set_back(Duration::from_secs(3 * 3_600));
        assert!(age().await.is_some_and(|age| age >= ttl - Duration::from_secs(1)));
        pass(grace + Duration::from_secs(2)).await;
        assert_eq!(age().await, None);
    }
}
