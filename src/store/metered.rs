//! Metrics of a store: counts and times every operation.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{Key, Kind, TenantId};
use crate::metrics::{Metrics, Outcome, StoreOp, observe};

use super::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    Record, ReplicationHistory, Store, Token,
};

/// Counts and times the operations of a store.
#[derive(Debug)]
pub struct Metered<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S> Metered<S> {
    /// Wraps a store.
    pub const fn new(store: S, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn count<T>(&self, op: StoreOp, run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let started = Instant::now();
        let result = run.await;
        let outcome = if result.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.metrics.store_operations.with(op).with(outcome).increment(1);
        observe(self.metrics.store_operation_duration.with(op), started.elapsed());
        result
    }
}

#[async_trait]
impl<S: Store> Store for Metered<S> {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.count(StoreOp::Get, self.store.get(key)).await
    }

    async fn get_together(&self, keys: &[Key]) -> Option<Vec<Result<Option<Entry>, Error>>> {
        let started = Instant::now();
        let entries = self.store.get_together(keys).await?;
        let answered = entries.iter().filter(|entry| entry.is_ok()).count();
        for (outcome, count) in [(Outcome::Ok, answered), (Outcome::Error, entries.len() - answered)] {
            self.metrics.store_operations.with(StoreOp::Get).with(outcome).increment(count as u64);
        }
        let took = started.elapsed().as_secs_f64();
        self.metrics.store_operation_duration.with(StoreOp::Get).record_many(took, entries.len());
        Some(entries)
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        self.count(StoreOp::Lease, self.store.lease(key, base, token, ttl)).await
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        self.count(StoreOp::Fill, self.store.fill(lease, record)).await
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        self.count(StoreOp::Release, self.store.release(lease)).await
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        let op = if change.kind == Kind::Deleted { StoreOp::WriteTombstone } else { StoreOp::Invalidate };
        self.count(op, self.store.apply(key, change)).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.store.wait(key, seen, deadline).await;
    }
}

#[async_trait]
impl<S: Inspect> Inspect for Metered<S> {
    async fn ping(&self) -> Result<(), Error> {
        self.count(StoreOp::Ping, self.store.ping()).await
    }

    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        self.count(StoreOp::ReplicationHistory, self.store.replication_history()).await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        self.count(StoreOp::Inspect, self.store.inspect(key)).await
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.count(StoreOp::Clear, self.store.clear(tenant, mode)).await
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        self.count(StoreOp::Generations, self.store.generations()).await
    }
}
