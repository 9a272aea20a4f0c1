//! Sealing: a decorator of a store that encrypts the content of records before they leave this process.
//!
//! # What it promises
//!
//! With `[store.sealing]` the content of every record is encrypted with AES-256-GCM: a profile with its validator and
//! `modifyDate`, a negative, a pointer to the canonical customer. The identity (a digest), the times and the token are
//! in clear, because the protocol uses them. They are authenticated together with the content, and so is the entry key.
//!
//! A reader of the store learns which keys exist, since when and for how long, and the length of their contents. An
//! attacker who can write to the store can
//!
//! - not make the service return anything that it did not seal for that very key: no value of another customer or
//!   tenant, no pointer to one, no altered byte or time, and no record in clear;
//! - not make a customer look deleted that was not: see [`macs`];
//! - restore an older record or tombstone of the same key, which is used no longer than its own sealed lifetime;
//! - delete entries, and write leases and fences. That costs fetches, labels and tombstones, but discloses nothing.
//!
//! # Records that cannot be opened
//!
//! A record cannot be opened if its key is not (or no longer) configured, or if it was altered or is in clear.
//! It is returned as [`Content::Sealed`](super::Content::Sealed). The lookup treats it as a miss and replaces it by
//! compare-and-set on the token, like any record that must not be served. Each one is counted; a warning without its
//! contents is logged at most every 10 seconds, because processes with different keys meet one in every lookup. For a
//! process without keys, every sealed record is such a record.
//!
//! # Rotation
//!
//! Every configured key opens, the `active` one macs. The keys can be replaced while the process runs. A record is
//! opened with the keys that are configured at that moment. The format of a seal is in [`keyring`].

pub mod keyring;
pub mod macs;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{Key, TenantId};
use crate::metrics::Metrics;
use crate::reload::Reloadable;

use super::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    Record, ReplicationHistory, Store, Token,
};

use keyring::Keyring;
use macs::SealFailures;

/// A store whose records are sealed; see the module's head.
#[derive(Debug)]
pub struct Sealed<S> {
    store: S,
    keyring: Reloadable<Keyring>,
    failures: SealFailures,
}

impl<S> Sealed<S> {
    /// Wraps a store. A keyring without keys leaves records in clear.
    pub const fn new(store: S, keyring: Reloadable<Keyring>, metrics: Arc<Metrics>) -> Self {
        Self { store, keyring, failures: SealFailures::new(metrics) }
    }

    /// Opens a record; one that cannot be opened stays sealed.
    fn opened(&self, key: &Key, entry: Entry) -> Entry {
        let Entry::Record(mut record) = entry else { return entry };
        if let Err(reason) = self.keyring.load().open(key, &mut record) {
            self.failures.report(key, reason);
        }
        Entry::Record(record)
    }
}

#[async_trait]
impl<S: Store> Store for Sealed<S> {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.store.get(key).await?.map(|entry| self.opened(key, entry)))
    }

    async fn get_together(&self, keys: &[Key]) -> Option<Vec<Result<Option<Entry>, Error>>> {
        let entries = self.store.get_together(keys).await?;
        let opened = |(key, entry): (&Key, Result<Option<Entry>, Error>)| {
            entry.map(|entry| entry.map(|entry| self.opened(key, entry)))
        };
        Some(keys.iter().zip(entries).map(opened).collect())
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

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.store.apply(key, change).await
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

    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        self.store.replication_history().await
    }

    /// A record that cannot be opened is shown as sealed. It is not counted, because no lookup was affected.
    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let mut found = self.store.inspect(key).await?;
        if let Some(Entry::Record(record)) = &mut found.entry {
            let _ = self.keyring.load().open(key, record);
        }
        found.entry = found.entry.map(Entry::without_body);
        Ok(found)
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.store.clear(tenant, mode).await
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        self.store.generations().await
    }
}
