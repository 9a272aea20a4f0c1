//! Seals around a store: what a record says of a customer is encrypted before it leaves this process.
//!
//! # What it promises
//!
//! With `[store.sealing]` the content of every record (profile with its validator and `modifyDate`, "no such
//! customer", pointer to the canonical customer) is kept under AES-256-GCM. Whom it is about (a digest), its times
//! and the token stand in clear, since the protocol works on them, and are authenticated with it, and so is K
//! itself. Whoever can read the store learns which keys are there, since when, for how long, and how long their
//! contents are. Whoever can write it can
//!
//! - have nothing served that this service did not seal for that very K: not another customer's value, another
//!   tenant's, a pointer to one, an altered byte or time, or a record in clear, which is refused as well;
//! - put back what was sealed for that K before: it is served no longer than its own end, which is under the seal;
//! - remove what is there, or place leases and tombstones, which scripts write and nothing seals: that costs
//!   lookups, or tells that a customer is deleted, and shows nothing of anybody.
//!
//! # What does not open
//!
//! Sealed under a key that is not (or no longer) here, altered, or in clear: shown as
//! [`Content::Sealed`](super::Content::Sealed), which the lookup takes for a miss and replaces by compare-and-set
//! on the token, as any record that is not to be served. It is counted, and logged without its contents, now and
//! then: where processes differ in their keys, it is every lookup. A process without keys takes every sealed record
//! for such a one.
//!
//! # Rotation
//!
//! Every configured key opens, `active` seals. The keys can be replaced while the process runs; a record is handled
//! by the keys that were there when it was met. See [`keyring`] for the seal itself.

pub mod keyring;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::Key;
use crate::metrics::Metrics;
use crate::reload::Reloadable;

use super::{
    Applied, Base, Change, Entry, Error, Filled, Inspect, Inspection, Lease, LeaseAnswer, Record, ReplicationHistory,
    Store, Token,
};

use keyring::{Keyring, Unopened};

/// The least time between two warnings of records that do not open.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A store whose records are sealed; see the module's head.
#[derive(Debug)]
pub struct Sealed<S> {
    store: S,
    keyring: Reloadable<Keyring>,
    metrics: Arc<Metrics>,
    /// When a record that did not open was last told of; taken only for such a one.
    told: Mutex<Option<Instant>>,
}

impl<S> Sealed<S> {
    /// Wraps a store. A keyring without keys leaves records in clear.
    pub const fn new(store: S, keyring: Reloadable<Keyring>, metrics: Arc<Metrics>) -> Self {
        Self { store, keyring, metrics, told: Mutex::new(None) }
    }

    /// Opens what stands at K; what does not open stays sealed.
    fn opened(&self, key: &Key, entry: Entry) -> Entry {
        let Entry::Record(mut record) = entry else { return entry };
        if let Err(reason) = self.keyring.load().open(key, &mut record) {
            self.metrics.seal_failures.increment(1);
            self.tell(key, reason);
        }
        Entry::Record(record)
    }

    fn tell(&self, key: &Key, reason: Unopened) {
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.is_none_or(|told| now - told >= TELL_EVERY) {
            *told = Some(now);
            tracing::warn!(%key, %reason, "stored records do not open and are not served; this is one of them");
        }
    }
}

#[async_trait]
impl<S: Store> Store for Sealed<S> {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.store.get(key).await?.map(|entry| self.opened(key, entry)))
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        Ok(match self.store.lease(key, base, token, ttl).await? {
            LeaseAnswer::Changed(entry) => LeaseAnswer::Changed(self.opened(key, entry)),
            answer @ (LeaseAnswer::Granted(_) | LeaseAnswer::Held { .. }) => answer,
        })
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let sealed = self.keyring.load().seal(lease.key(), record);
        self.store.fill(lease, sealed).await
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        self.store.release(lease).await
    }

    async fn invalidate(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.store.invalidate(key, change).await
    }

    async fn write_tombstone(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.store.write_tombstone(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.store.wait(key, seen, deadline).await;
    }
}

#[async_trait]
impl<S: Inspect> Inspect for Sealed<S> {
    async fn ping(&self) -> Result<(), Error> {
        self.store.ping().await
    }

    async fn lineage(&self) -> Result<ReplicationHistory, Error> {
        self.store.lineage().await
    }

    /// What does not open is shown as sealed, and is not counted: nobody asked to be served.
    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let mut found = self.store.inspect(key).await?;
        if let Some(Entry::Record(mut record)) = found.entry.take() {
            let _ = self.keyring.load().open(key, &mut record);
            found.entry = Some(Entry::Record(record).without_body());
        }
        Ok(found)
    }
}
