//! The store port: keeps entries. It is the only place where the consistency protocol meets shared state.
//!
//! # What it promises
//!
//! For every event applied before a lookup starts, the answer of the lookup is at least as new as that event, or was
//! fetched from Genesys after the event's delete. The rules are in [`rules`](crate::rules); each method names those
//! that it implements. **Every method is atomic per key**: it takes effect as a whole or not at all, in one order for
//! all callers.
//!
//! # What a key holds
//!
//! The entry key K holds an [`Entry`] (a record, a lease or a tombstone) or nothing. Beside K there are its
//! [`fence`](fence::Fence) (the newest event versions announced for it), the marks of the events that were applied, and
//! the lock of the lookup that refreshes a record while it is still served. **Any of them may vanish at any moment**
//! (eviction, failover, an operator's `DEL`). The protocol stays correct then: it only costs a fetch, a label or a
//! tombstone.
//!
//! # The steps of a miss
//!
//! 1. `get` returns nothing.
//! 2. `lease` writes the token of this lookup at K.
//! 3. The lookup fetches from Genesys.
//! 4. `fill` replaces exactly that token by the record.
//!
//! An event that is applied in between deletes the token. Then `fill` returns [`Filled::Refused`] and writes nothing.
//!
//! # The steps of an event
//!
//! [`apply`](Store::apply) is one atomic step: raise the fence, delete K (or write a tombstone there), mark the event as
//! applied. The mark never comes first, and the delete never comes before the fence. Only then may the event be
//! acknowledged to its queue.

mod change;
pub mod changes;
pub mod clears;
pub mod embedded;
mod encoding;
mod entry;
mod error;
pub mod fence;
mod histories;
mod lease;
pub mod memcached;
pub mod metered;
pub mod open;
mod record;
pub mod redis;
pub mod sealed;
mod token;

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::domain::{Key, TenantId};

pub use change::{Applied, Change, Lifetimes};
pub use clears::{ClearMode, Clears, Generations};
pub use entry::{Ciphertext, Content, Entry, Found, IdentifierPointer, Leased, Record, Tombstone};
pub use error::Error;
pub use histories::ReplicationHistory;
pub use lease::{Lease, LeaseTarget};
pub use token::Token;

/// Keeps entries; see the module's head for the contract.
///
/// Every method may be repeated after an [`Error`]. None takes longer than the store's timeout, except
/// [`wait`](Store::wait), which has a deadline.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Returns the entry at K, or `None`. An expired entry is absent.
    ///
    /// Reads the primary only. A hit is this one read and no write.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// Returns the entries at several keys, in order, each as [`get`](Store::get) does, if the store can read them all with
    /// one request. `None`: it cannot, and they are better read one by one, so that no part of the store delays the
    /// entries of another.
    async fn get_together(&self, keys: &[Key]) -> Option<Vec<Result<Option<Entry>, Error>>> {
        let _ = keys;
        None
    }

    /// Requests the right to fill K for `ttl`, under a freshly drawn `token`.
    ///
    /// `base` is what the caller saw at K:
    ///
    /// - [`Base::Absent`], and K is empty: the lease is written at K.
    /// - [`Base::Token`], and K still holds that very record or tombstone: the lease is written at `lock:{K}`, and the
    ///   record stays in use.
    /// - [`Base::Dead`], and K still holds that very record, which no lookup refreshes: the lease replaces it.
    /// - [`Base::Corrupt`], and K still holds those very bytes: the lease replaces them.
    ///
    /// If K has become empty, the lease is written at K for every base. But a tombstone that was evicted while the
    /// fence says "deleted" is restored first. A token serves one attempt: a retry draws a new one.
    ///
    /// Rules: [`lease-is-the-value`](crate::rules#lease-is-the-value),
    /// [`compare-the-read-record`](crate::rules#compare-the-read-record), [`tombstone`](crate::rules#tombstone).
    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error>;

    /// Replaces the lease (for a refresh: the base record) by `record`, which stays for its
    /// [`lifetime`](Record::lifetime), and wakes the lookups that [wait](Store::wait) for K.
    ///
    /// Writes only if K still holds the token of the lease (for a refresh: the token of the base, and the lock is
    /// ours). Otherwise it returns [`Filled::Refused`] and writes nothing. `record.token` must be the token of the
    /// lease. A fill cannot be repeated, since it consumes the lease. After an [`Error`] the whole record is stored or
    /// nothing, and the lease expires by itself.
    ///
    /// Rules: [`lease-is-the-value`](crate::rules#lease-is-the-value),
    /// [`compare-the-read-record`](crate::rules#compare-the-read-record).
    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error>;

    /// Removes a lease, if it is still there, without a fill, and wakes the lookups that wait for K.
    async fn release(&self, lease: Lease) -> Result<(), Error>;

    /// Applies an event: raises the fence, deletes K, marks the event as applied. A tombstone stays unless the event is
    /// later (or, if no time shows the order, is a creation), or `change.force` is set.
    ///
    /// A deletion writes a tombstone if the fence has no later event. Otherwise it deletes K and returns
    /// [`Applied::Outrun`]. A deletion that is delivered once more writes a tombstone only if that is known to be right:
    /// see [`fence::raise`].
    ///
    /// Idempotent: a repetition within the dedup window returns [`Applied::Duplicate`] and changes nothing. The delete
    /// is never skipped because of [`Applied::Outrun`]. A replay of an event that is still remembered deletes K once
    /// more and leaves the fence unchanged.
    ///
    /// Rules: [`invalidate-before-ack`](crate::rules#invalidate-before-ack), [`fence`](crate::rules#fence),
    /// [`tombstone`](crate::rules#tombstone).
    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error>;

    /// Waits until K may no longer hold the entry with the token `seen`, until another look is worthwhile, or until
    /// `deadline`. The caller then reads K again.
    ///
    /// It may return without a change, but not in a busy loop: it returns at once only if K has changed.
    ///
    /// Rule: [`waiters`](crate::rules#waiters).
    async fn wait(&self, key: &Key, seen: Token, deadline: Instant);
}

/// Access for operators, probes and other work in the background; no lookup or event waits for it.
#[async_trait]
pub trait Inspect: Debug + Send + Sync {
    /// Checks that every part of the store does the work of lookups and events; limited by the store's timeout.
    /// [`Error::Partial`] if some parts do and others do not.
    async fn ping(&self) -> Result<(), Error>;

    /// Returns the replication histories of the data: see [`ReplicationHistory`].
    async fn replication_history(&self) -> Result<ReplicationHistory, Error>;

    /// Returns the state of a key without its contents.
    async fn inspect(&self, key: &Key) -> Result<Inspection, Error>;

    /// Raises the generations of a tenant, above all earlier ones: see [`clears`].
    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error>;

    /// Returns the generations of all tenants that were cleared.
    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error>;
}

/// What a lookup saw at K before it requests a lease.
#[derive(Clone, Debug)]
pub enum Base {
    /// Nothing.
    Absent,
    /// A record or tombstone with this token.
    Token(Token),
    /// A record that is not served: expired, about another customer, or sealed and not readable. A lease beside it
    /// would be void when the record itself expires.
    Dead(Token),
    /// Unreadable bytes.
    Corrupt(Bytes),
}

/// The answer to [`Store::lease`].
#[derive(Debug)]
pub enum LeaseAnswer {
    /// The caller may fetch and fill; it must consume the lease.
    Granted(Lease),
    /// Another lookup is fetching: [`wait`](Store::wait) for `seen`, then read again.
    Held {
        /// The token of its lease.
        token: Token,
        /// What K holds until it is done: its lease, or the record that it refreshes.
        seen: Token,
        /// The longest time until its lease expires.
        remaining: Duration,
    },
    /// K holds something else than the caller saw: continue with this entry.
    Changed(Entry),
}

/// The answer to [`Store::fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The record is stored at K.
    Stored,
    /// K no longer held the lease (or base), because of an event, an operator or an eviction. Nothing was written.
    Refused,
}

/// The state of a key, for operators.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// The entry at K, without its body.
    pub entry: Option<Entry>,
    /// The time until it expires.
    pub remaining: Option<Duration>,
    /// What events announced.
    pub fence: Option<fence::Fence>,
    /// The lease of the lookup that refreshes the record, and the time until it expires.
    pub lock: Option<(Token, Duration)>,
}
