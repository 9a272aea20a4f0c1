//! The store port: where entries are kept, and the one place where the consistency protocol meets
//! shared state.
//!
//! # What it promises
//!
//! For every event applied before a lookup starts, the lookup's answer is at least as new as that
//! event, or was fetched from Genesys after the event's delete. The rules are those of DESIGN
//! section 2; each method below names the ones it carries. **Every method is atomic per key**: it
//! takes effect as a whole or not at all, in an order that all callers agree on.
//!
//! # What stands where
//!
//! At K stands an [`Entry`]: a record, a lease, a tombstone, or nothing. Beside K: its
//! [`fence`](fence::Fence) (what events announced), the marks of events already applied, and the
//! lock of whoever refreshes a record that is still served. **Any of them may vanish at any
//! moment** (eviction, failover, an operator's `DEL`); the protocol stays correct, it only loses
//! economy, a label, or a tombstone.
//!
//! # The order of a miss
//!
//! `get` shows nothing → `lease` places this reader's token at K → the reader fetches → `fill`
//! replaces exactly its own token. An event applied in between has deleted the token, and `fill`
//! answers [`Filled::Refused`]: the late fill writes nothing.
//!
//! # The order of an event
//!
//! [`invalidate`](Store::invalidate) or [`bury`](Store::bury) in one atomic step: raise the fence,
//! delete (or bury) K, mark the event as applied. Never the mark first, never the delete before the
//! fence. Only then may the event be acknowledged to its queue.

pub mod embedded;
mod encoding;
mod entry;
mod error;
pub mod fence;
mod lease;
pub mod metered;
pub mod open;
pub mod redis;
pub mod sealed;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::domain::{Digest, Key, Kind, Redelivery, Stamps};

pub use entry::{Ciphertext, Content, Entry, Found, Leased, Record, Tombstone};
pub use error::Error;
pub use lease::{Held, Lease, Token};

/// Keeps entries; see the module's head for the contract.
///
/// Every method may be repeated after an [`Error`]; none waits longer than the store's own timeout,
/// except [`wait`](Store::wait), which has its deadline as an argument.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Returns what stands at K, or `None`. Expired entries do not stand anywhere.
    ///
    /// Reads the primary only (◆). One read, no write: this is the whole of a hit.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// Tries to obtain the right to fill K, for `ttl`, under a freshly drawn `token` (rules 1, 4, 8).
    ///
    /// `base` is what the caller saw at K. With [`Base::Absent`] and nothing at K the lease is
    /// placed at K; with [`Base::Token`] and that very record or tombstone still at K it is placed
    /// beside it (at `lock:{K}`) and K goes on being served; with [`Base::Corrupt`] and those very
    /// bytes at K, or with [`Base::Dead`] and that very record that nobody refreshes, it replaces them. If K
    /// has meanwhile become empty the lease is placed at K whatever the base was. A tombstone that was evicted while
    /// the fence says "deleted" is put back first.
    ///
    /// A token serves one attempt: a retry draws a new one.
    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error>;

    /// Replaces the lease (or, for a refresh, the base record) by `record`, which lives for its
    /// [`lifetime`](Record::lifetime), and wakes whoever [waits](Store::wait) at K.
    ///
    /// Writes only if K still holds the lease's own token (or the base token and the lock is ours):
    /// otherwise [`Filled::Refused`], and nothing was written (rules 1 and 4). `record.token` must be
    /// the lease's token. Not repeatable: the lease is consumed; after an [`Error`] the fill is
    /// either in place whole or not at all, and the lease runs out by itself.
    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error>;

    /// Gives a lease back without filling, if it still stands, and wakes whoever waits at K.
    async fn release(&self, lease: Lease) -> Result<(), Error>;

    /// Applies an event other than a deletion: raises the fence, deletes K, marks the event (rules
    /// 3, 6 and 8). A tombstone stays unless the event is later than it (or, where no time tells the
    /// order, a creation), or `change.force` is set.
    ///
    /// Idempotent: a repetition within the dedup window answers [`Applied::Duplicate`] and changes
    /// nothing. The delete is never skipped because of [`Applied::Outrun`]. A replay of an event that is remembered
    /// evicts once more and leaves the fence as it is.
    async fn invalidate(&self, key: &Key, change: &Change) -> Result<Applied, Error>;

    /// Applies a deletion: as [`invalidate`](Store::invalidate), and writes a tombstone if the fence
    /// knows no later event (rule 8); otherwise it deletes K and answers [`Applied::Outrun`]. A
    /// deletion that is handed out once more buries only where that is known to be right: see [`fence::raise`].
    async fn write_tombstone(&self, key: &Key, change: &Change) -> Result<Applied, Error>;

    /// Waits until K may no longer hold what has `seen` as its token, or until `deadline`, or until
    /// the store thinks it is worth another look; the caller then looks again (rule 11).
    ///
    /// Spurious returns are allowed, busy ones are not: it returns at once only if K has changed.
    async fn wait(&self, key: &Key, seen: Token, deadline: Instant);
}

/// Operators' view of a store; not on any request's path.
#[async_trait]
pub trait Inspect: Debug + Send + Sync {
    /// Answers if the store works; bounded by the store's timeout.
    async fn ping(&self) -> Result<(), Error>;

    /// Returns the histories that the data stand on: see [`ReplicationHistory`].
    async fn lineage(&self) -> Result<ReplicationHistory, Error>;

    /// Returns the state of a key, never its contents.
    async fn inspect(&self, key: &Key) -> Result<Inspection, Error>;
}

/// The histories that a store's data stand on, one for each primary, by opaque names.
///
/// Where a history that was there is gone, what was written last under it may be gone too, also what had been
/// acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationHistory(BTreeSet<String>);

impl ReplicationHistory {
    /// Tells whether every history of `earlier` goes on in this one.
    #[must_use]
    pub fn continues(&self, earlier: &Self) -> bool {
        earlier.0.is_subset(&self.0)
    }
}

impl FromIterator<String> for ReplicationHistory {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

/// The lifetimes that events leave behind, from `[consumer]` of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// How long an applied event is remembered.
    pub dedup_window: Duration,
    /// How long a deletion keeps its key from being filled.
    pub tombstone_ttl: Duration,
}

impl Lifetimes {
    /// How long a fence lives; raising never shortens it.
    #[must_use]
    pub fn fence(&self) -> Duration {
        self.tombstone_ttl.max(self.dedup_window)
    }
}

/// What a reader saw at K before it asks for a lease.
#[derive(Clone, Debug)]
pub enum Base {
    /// Nothing.
    Absent,
    /// A record or tombstone that this write placed.
    Token(Token),
    /// A record that is not served (any more): past its end, about someone else, or sealed and not to be opened.
    /// Were the lease placed beside it, the record's own end would void the fill.
    Dead(Token),
    /// Unreadable bytes.
    Corrupt(Bytes),
}

/// The answer to [`Store::lease`].
#[derive(Debug)]
pub enum LeaseAnswer {
    /// The caller may fetch and fill; it must consume the lease.
    Granted(Lease),
    /// Someone else is fetching: [`wait`](Store::wait) for `seen`, then look again.
    Held {
        /// The other's lease.
        token: Token,
        /// What stands at K until they are done: their lease, or the record they refresh.
        seen: Token,
        /// When their lease runs out at the latest.
        remaining: Duration,
    },
    /// K holds something else than the caller saw: go on with this.
    Changed(Entry),
}

/// The answer to [`Store::fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The record stands at K.
    Stored,
    /// K no longer held the lease (or base): an event, an operator or an eviction came between.
    /// Nothing was written.
    Refused,
}

/// One event, as one key sees it.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// What the dedup window remembers: [`Event::mark`](crate::domain::Event::mark).
    pub event: Digest,
    /// The mark of the event itself, where `event` is that of its replay. While it is remembered, the fence holds all
    /// that the event announced: see [`fence::repeat`].
    pub of: Option<Digest>,
    /// What happened.
    pub kind: Kind,
    /// When, by Genesys' clocks.
    pub stamps: Stamps,
    /// It is handed out once more, so it may be long past.
    pub again: Option<Redelivery>,
    /// Remove a tombstone whatever the times say (an operator's `invalidate --force`).
    pub force: bool,
}

/// The answer to [`Store::invalidate`] and [`Store::bury`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// K was evicted or buried.
    Applied {
        /// Something stood at K.
        had_entry: bool,
    },
    /// This event was applied before; nothing changed.
    Duplicate,
    /// A later event was applied before; K was evicted all the same.
    Outrun,
}

/// The state of a key, for operators.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// What stands at K, with its body left out.
    pub entry: Option<Entry>,
    /// How much longer it stands there.
    pub remaining: Option<Duration>,
    /// What events announced.
    pub fence: Option<fence::Fence>,
    /// Who refreshes the record, and for how much longer.
    pub lock: Option<(Token, Duration)>,
}
