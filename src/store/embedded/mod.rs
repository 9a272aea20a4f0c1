//! The embedded store: entries in this process' memory.
//!
//! Underneath are four bounded caches (entries, fences, marks of applied events, refresh locks), each
//! evicting its least recently used members when its share of the memory is full, so that a fresh lease
//! is always admitted. Expiry is exact by the [`Clock`](crate::clock::Clock) at every read; the caches'
//! own expiry only gives memory back.
//!
//! Steps that touch more than one of them hold the key's stripe, a short lock that no await ever happens
//! under; [`get`](Store::get) takes none.

mod kept;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::clock::SharedClock;
use crate::domain::{Digest, Key, Timestamp};
use crate::store::fence::{Fence, Newest, Place, raise, repeat};
use crate::store::{
    Applied, Base, Change, Content, Entry, Error, Filled, Held, Inspect, Inspection, Lease, LeaseAnswer, Leased,
    Lifetimes, Record, ReplicationHistory, Store, Token, Tombstone,
};

use kept::{Kept, cache, live};

/// How many locks, and how many wake-up bells, the keys are spread over.
const STRIPES: usize = 1024;

/// What a member costs beside its body: key, bookkeeping, allocator. Measured, rounded up.
const OVERHEAD: u32 = 400;

/// `[store.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much memory entries may take.
    pub max_bytes: ByteSize,
}

/// The embedded store; see the module's head.
#[derive(Debug)]
pub struct Embedded {
    entries: Cache<Key, Kept<Entry>>,
    fences: Cache<Key, Kept<Fence>>,
    seen: Cache<(Key, Digest), Kept<()>>,
    locks: Cache<Key, Kept<Token>>,
    stripes: Vec<Stripe>,
    hasher: RandomState,
    lifetimes: Lifetimes,
    clock: SharedClock,
}

/// Serializes the steps on its keys, and rings when one of them changes.
#[derive(Debug, Default)]
struct Stripe {
    lock: Mutex<()>,
    changed: Notify,
}

impl Embedded {
    /// Makes an empty store.
    #[must_use]
    pub fn new(config: &Config, lifetimes: Lifetimes, clock: SharedClock) -> Self {
        let max = config.max_bytes.as_u64();
        // Entries are what is worth memory. An applied event leaves a mark and, once per key, a fence.
        let share = |percent: u64| max / 100 * percent;
        Self {
            entries: cache(share(70), entry_weight),
            fences: cache(share(14), |_, _| OVERHEAD),
            seen: cache(share(14), |_, _| OVERHEAD),
            locks: cache(share(2), |_, _| OVERHEAD),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            hasher: RandomState::new(),
            lifetimes,
            clock,
        }
    }

    /// Removes what stands at K and nothing else, as an eviction under memory pressure does.
    #[cfg(feature = "faults")]
    pub fn evict(&self, key: &Key) {
        self.entries.invalidate(key);
        self.stripe(key).changed.notify_waiters();
    }

    fn stripe(&self, key: &Key) -> &Stripe {
        let index = self.hasher.hash_one(key) % STRIPES as u64;
        // The remainder is below STRIPES, so it fits.
        &self.stripes[usize::try_from(index).unwrap_or_default()]
    }

    fn hold(&self, key: &Key) -> MutexGuard<'_, ()> {
        self.stripe(key).lock.lock()
    }

    fn place(&self, key: &Key, entry: Entry, now: Timestamp, lifetime: Duration) {
        self.entries.insert(key.clone(), Kept::new(entry, now, lifetime));
    }

    /// Places the caller's lease at K.
    fn grant(&self, key: &Key, token: Token, ttl: Duration, now: Timestamp) -> LeaseAnswer {
        let leased = Leased { token, until: now.plus(ttl) };
        self.place(key, Entry::Leased(leased), now, ttl);
        LeaseAnswer::Granted(Lease::granted(key.clone(), token, Held::Key, self.fence(key, now)))
    }

    /// Tells who refreshes what has `base` as its token, if someone does.
    fn held(&self, key: &Key, base: Token, now: Timestamp) -> Option<LeaseAnswer> {
        let lock = live(&self.locks, key, now)?;
        Some(LeaseAnswer::Held { token: lock.value, seen: base, remaining: lock.remaining(now) })
    }

    /// Places the caller's lease beside K, which goes on being served.
    fn lock(&self, key: &Key, base: Token, token: Token, ttl: Duration, now: Timestamp) -> LeaseAnswer {
        self.locks.insert(key.clone(), Kept::new(token, now, ttl));
        LeaseAnswer::Granted(Lease::granted(key.clone(), token, Held::Lock(base), self.fence(key, now)))
    }

    fn fence(&self, key: &Key, now: Timestamp) -> Option<Fence> {
        live(&self.fences, key, now).map(|kept| kept.value)
    }

    /// Puts a tombstone back that was evicted while the fence says "deleted".
    fn restore_tombstone(&self, key: &Key, now: Timestamp) -> Option<Entry> {
        let fence = live(&self.fences, key, now).filter(|fence| fence.value.says_deleted())?;
        let tombstone = Tombstone { token: Token::draw(), at: fence.value.at, written_at: fence.value.raised };
        let remaining = fence.value.raised.plus(self.lifetimes.tombstone_ttl).since(now);
        if remaining.is_zero() {
            return None;
        }
        let entry = Entry::Tombstone(tombstone);
        self.place(key, entry.clone(), now, remaining);
        Some(entry)
    }

    /// Takes back what a lease placed, if it still stands.
    fn withdraw(&self, key: &Key, token: Token, held: Held, now: Timestamp) {
        match held {
            Held::Key => {
                if self.holds(key, token, now) {
                    self.entries.invalidate(key);
                }
            }
            Held::Lock(_) => {
                if live(&self.locks, key, now).is_some_and(|lock| lock.value == token) {
                    self.locks.invalidate(key);
                }
            }
        }
    }

    fn holds(&self, key: &Key, token: Token, now: Timestamp) -> bool {
        live(&self.entries, key, now).is_some_and(|kept| kept.value.token() == Some(token))
    }

    /// Tells whether a fill under this lease may write.
    fn may_fill(&self, key: &Key, token: Token, held: Held, now: Timestamp) -> bool {
        match held {
            Held::Key => self.holds(key, token, now),
            Held::Lock(base) => {
                self.holds(key, base, now) && live(&self.locks, key, now).is_some_and(|lock| lock.value == token)
            }
        }
    }

    /// A verified profile replaces a tombstone: from now on the fence no longer says "deleted", and
    /// doubts (rule 8).
    fn overrule_deletion(&self, key: &Key, now: Timestamp) {
        if let Some(mut fence) = live(&self.fences, key, now).filter(|fence| fence.value.says_deleted()) {
            fence.value.newest = Newest::Contested;
            fence.value.doubt = true;
            fence.lifetime = fence.remaining(now);
            self.fences.insert(key.clone(), fence);
        }
    }

    fn apply(&self, key: &Key, change: &Change) -> Applied {
        let now = self.clock.now();
        let _held = self.hold(key);
        let mark = (key.clone(), change.event);
        if live(&self.seen, &mark, now).is_some() {
            return Applied::Duplicate;
        }
        let known = live(&self.fences, key, now);
        let standing = live(&self.entries, key, now).map(|kept| kept.value);
        let tombstone = match &standing {
            Some(Entry::Tombstone(tombstone)) => Some(tombstone.at),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        };
        let of = change.of.map(|of| (key.clone(), of));
        let is_remembered = of.as_ref().is_some_and(|of| live(&self.seen, of, now).is_some());
        let fence = known.as_ref().map(|kept| &kept.value);
        let repeated = fence.filter(|_| is_remembered).and_then(|fence| repeat(fence, change));
        let raised = repeated.unwrap_or_else(|| raise(fence, tombstone, change, now));
        // The fence first, then K, then the mark: under the stripe nobody sees one without the others.
        let life = known.map_or(Duration::ZERO, |kept| kept.remaining(now)).max(self.lifetimes.fence());
        self.fences.insert(key.clone(), Kept::new(raised.fence, now, life));
        self.locks.invalidate(key);
        match raised.place {
            Place::KeepTombstone if tombstone.is_some() => {}
            Place::Clear | Place::KeepTombstone => self.entries.invalidate(key),
            Place::Bury(at) => {
                let tombstone = Tombstone { token: Token::draw(), at, written_at: now };
                self.place(key, Entry::Tombstone(tombstone), now, self.lifetimes.tombstone_ttl);
            }
        }
        // A replay stands for the event itself if it did all that that does.
        let of = of.filter(|_| raised.whole && (is_remembered || !change.force));
        for mark in of.into_iter().chain(raised.whole.then_some(mark)) {
            self.seen.insert(mark, Kept::new((), now, self.lifetimes.dedup_window));
        }
        self.stripe(key).changed.notify_waiters();
        if raised.outrun {
            return Applied::Outrun;
        }
        Applied::Applied { had_entry: matches!(standing, Some(Entry::Record(_) | Entry::Tombstone(_))) }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(live(&self.entries, key, self.clock.now()).map(|kept| kept.value))
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        let now = self.clock.now();
        let _held = self.hold(key);
        let Some(kept) = live(&self.entries, key, now) else {
            let restored = self.restore_tombstone(key, now);
            return Ok(restored.map_or_else(|| self.grant(key, token, ttl, now), LeaseAnswer::Changed));
        };
        let remaining = kept.remaining(now);
        Ok(match (kept.value, base) {
            (Entry::Leased(leased), _) => LeaseAnswer::Held { token: leased.token, seen: leased.token, remaining },
            (Entry::Corrupt(bytes), Base::Corrupt(seen)) if bytes == *seen => self.grant(key, token, ttl, now),
            (entry, Base::Token(seen)) if entry.token() == Some(*seen) => {
                self.held(key, *seen, now).unwrap_or_else(|| self.lock(key, *seen, token, ttl, now))
            }
            (entry, Base::Dead(seen)) if entry.token() == Some(*seen) => {
                self.held(key, *seen, now).unwrap_or_else(|| self.grant(key, token, ttl, now))
            }
            (entry, Base::Absent | Base::Token(_) | Base::Dead(_) | Base::Corrupt(_)) => LeaseAnswer::Changed(entry),
        })
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let (key, token, held) = lease.consume();
        if record.identity.key() != key || record.token != token {
            return Err(Error::Rejected { reason: "a fill names another key or another lease".to_owned() });
        }
        let now = self.clock.now();
        let _held = self.hold(&key);
        let filled = if self.may_fill(&key, token, held, now) {
            if matches!(held, Held::Lock(_)) {
                self.overrule_deletion(&key, now);
            }
            let lifetime = record.lifetime();
            self.place(&key, Entry::Record(record), now, lifetime);
            Filled::Stored
        } else {
            Filled::Refused
        };
        if matches!(held, Held::Lock(_)) {
            self.withdraw(&key, token, held, now);
        }
        self.stripe(&key).changed.notify_waiters();
        Ok(filled)
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        let (key, token, held) = lease.consume();
        let _held = self.hold(&key);
        self.withdraw(&key, token, held, self.clock.now());
        self.stripe(&key).changed.notify_waiters();
        Ok(())
    }

    async fn invalidate(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        Ok(self.apply(key, change))
    }

    async fn write_tombstone(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        Ok(self.apply(key, change))
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        let changed = &self.stripe(key).changed;
        loop {
            // Listening before looking: a change in between rings.
            let mut ring = std::pin::pin!(changed.notified());
            ring.as_mut().enable();
            let now = self.clock.now();
            let Some(kept) = live(&self.entries, key, now).filter(|kept| kept.value.token() == Some(seen)) else {
                return;
            };
            let runs_out = match kept.value {
                Entry::Leased(_) => kept.remaining(now),
                Entry::Record(_) | Entry::Tombstone(_) | Entry::Corrupt(_) => match live(&self.locks, key, now) {
                    Some(lock) => lock.remaining(now),
                    // Nobody fetches any more: worth another look.
                    None => return,
                },
            };
            // Whichever of the three ends the wait, the next turn of the loop finds out.
            let _ = timeout_at(deadline.min(Instant::now() + runs_out), ring).await;
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

    /// One history, as long as this process lives.
    async fn lineage(&self) -> Result<ReplicationHistory, Error> {
        Ok(ReplicationHistory::default())
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let now = self.clock.now();
        let _held = self.hold(key);
        let kept = live(&self.entries, key, now);
        Ok(Inspection {
            remaining: kept.as_ref().map(|kept| kept.remaining(now)),
            entry: kept.map(|kept| kept.value.without_body()),
            fence: self.fence(key, now),
            lock: live(&self.locks, key, now).map(|lock| (lock.value, lock.remaining(now))),
        })
    }
}

fn entry_weight(_key: &Key, kept: &Kept<Entry>) -> u32 {
    let body = match &kept.value {
        Entry::Record(Record { content: Content::Found(found), .. }) => found.body.len(),
        Entry::Record(Record { content: Content::Sealed(ciphertext), .. }) => ciphertext.as_bytes().len(),
        Entry::Corrupt(bytes) => bytes.len(),
        Entry::Record(_) | Entry::Tombstone(_) | Entry::Leased(_) => 0,
    };
    u32::try_from(body).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
}
