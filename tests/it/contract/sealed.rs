//! The sealing decorator under the contract of the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use profile_edge::clock::SharedClock;
use profile_edge::domain::{Key, Secret, TenantId};
use profile_edge::metrics::Metrics;
use profile_edge::reload::Reloadable;
use profile_edge::store::sealed::Sealed;
use profile_edge::store::sealed::keyring::{Config, Keyring};
use profile_edge::store::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    Record, ReplicationHistory, Store, Token,
};
use tokio::time::Instant;

use super::store::Fixture;

/// Another store under test, wrapped by the sealing decorator.
pub(crate) struct Sealing<F> {
    inner: F,
    sealed: Arc<Sealed<Whole>>,
}

/// A fixture's store as one value.
#[derive(Debug)]
struct Whole {
    store: Arc<dyn Store>,
    inspect: Arc<dyn Inspect>,
}

/// Returns a keyring of one key.
pub(super) fn keyring(tenants: &[TenantId]) -> Keyring {
    let key = Secret::new(STANDARD.encode([1; 32]));
    Keyring::new(&Config { active: "k1".to_owned(), keys: [("k1".to_owned(), key)].into() }, tenants).unwrap()
}

#[async_trait]
impl<F: Fixture> Fixture for Sealing<F> {
    async fn new() -> Self {
        let inner = F::new().await;
        let keyring = keyring(&[inner.tenant().parse().unwrap()]);
        let whole = Whole { store: inner.store(), inspect: inner.inspect() };
        Self { sealed: Arc::new(Sealed::new(whole, Reloadable::new(keyring), Metrics::new())), inner }
    }

    fn tenant(&self) -> String {
        self.inner.tenant()
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.sealed) as Arc<dyn Store>
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::clone(&self.sealed) as Arc<dyn Inspect>
    }

    fn clock(&self) -> SharedClock {
        self.inner.clock()
    }

    fn set_ahead(&self, by: Duration) {
        self.inner.set_ahead(by);
    }

    async fn pass(&self, time: Duration) {
        self.inner.pass(time).await;
    }

    async fn evict(&self, key: &Key) {
        self.inner.evict(key).await;
    }
}

#[async_trait]
impl Store for Whole {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        self.store.lease(key, base, token, ttl).await
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        self.store.fill(lease, record).await
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
impl Inspect for Whole {
    async fn ping(&self) -> Result<(), Error> {
        self.inspect.ping().await
    }

    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        self.inspect.replication_history().await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        self.inspect.inspect(key).await
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.inspect.clear(tenant, mode).await
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        self.inspect.generations().await
    }
}
