//! Lookup: cache-aside reads with stampede protection.
//!
//! # What it promises
//!
//! An answer at least as new as every event applied before the lookup began, or fetched from Genesys
//! after that event's delete; in time (`lookup.deadline`), or a [`Failure`] that says so; and at most
//! one fetch per key and lease, whatever the number of lookups, in this process and in others.
//!
//! # The steps of one lookup
//!
//! 1. Look at K. A fresh record, a negative answer or a tombstone is the answer: one store command.
//! 2. A pointer leads to the canonical customer's key, once.
//! 3. Nothing (nor, while `[keys]` is changed, at the customer's other key: `previous`), or something past its
//!    use: contend for the lease. Whoever gets it leads: a task of its own, which the caller's disconnection does
//!    not end, fetches and fills (`leader`).
//! 4. Everyone else waits: for the leader in this process if the witness rule allows
//!    ([`single_flight`]), else for the key to change, and looks again.
//! 5. Who has a stale record at hand waits no longer than the soft timeout, and serves it when Genesys
//!    fails. Who has nothing waits until the deadline.
//! 6. Who meets a fresh record near its end may start its refresh, and does not wait for it (`background`).
//!
//! # When something fails
//!
//! Store unreachable: the lookup goes past it to Genesys, and says `bypass`. Genesys failing: the lease
//! is given back and everyone who waited in this process gets the same failure. The leader's process
//! killed: its lease runs out, and someone else contends.

mod answer;
mod bypass;
pub mod freshness;
mod leader;
mod previous;
mod reader;
mod refresh;
pub mod single_flight;
mod waiters;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde::Deserialize;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::{CustomerId, Key, KeyHasher, TenantId};
use crate::faults::Faults;
use crate::metrics::{LookupResult, Metrics, in_progress, observe};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::upstream::{Expand, Upstream};

pub use answer::{Answer, Failure, How, Outcome, Over, StaleReason};

use bypass::Bypasses;
use leader::Landed;
use reader::Reader;
use single_flight::Flights;
use waiters::Waiters;

/// `[lookup]`; a `[[tenant]]` may override the times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long a profile is fresh.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// The share of `ttl` that is cut off at random, so that entries do not expire together: 0 to 0.5.
    pub ttl_jitter: f64,
    /// How much longer a profile may be served while Genesys is failing.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long "no such customer" is kept.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// How long a profile is kept, at least, that may be older than what events announced.
    #[serde(with = "humantime_serde")]
    pub unsettled_ttl: Duration,
    /// How long a fetcher may keep others waiting; above `upstream.timeout`.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// How long a lookup that has something stale waits for something fresh.
    #[serde(with = "humantime_serde")]
    pub soft_timeout: Duration,
    /// When a lookup gives up with 503.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

/// What a lookup works with.
#[derive(Debug)]
pub struct Parts {
    /// Where entries are kept.
    pub store: Arc<dyn Store>,
    /// Where profiles come from.
    pub upstream: Arc<dyn Upstream>,
    /// How customers become keys.
    pub hasher: KeyHasher,
    /// How they do, or did, in processes whose keys are being changed: see `previous.rs`.
    pub previous: Option<KeyHasher>,
    /// The times of each tenant.
    pub tenants: HashMap<TenantId, Config>,
    /// How long an event makes fetched profiles prove themselves (`consumer.settle_window`).
    pub settle_window: Duration,
    /// The wall clock.
    pub clock: SharedClock,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// Tracks the leaders.
    pub shutdown: Shutdown,
    /// Named faults.
    pub faults: Faults,
}

/// The lookup flow. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Lookup {
    room: Arc<LookupContext>,
}

/// What every reader and leader of a process shares.
#[derive(Debug)]
struct LookupContext {
    parts: Parts,
    flights: Flights<Landed>,
    waiters: Waiters,
    bypasses: Bypasses,
    /// The records that this process has lately begun to refresh before their end; saves asking the store
    /// whether someone does.
    refreshing: Cache<Key, ()>,
    /// The tombstones that this process has lately asked Genesys about; saves asking the store
    /// whether another process has.
    verified: Cache<Key, ()>,
}

impl Lookup {
    /// Makes the lookup flow.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let lately = |time| Cache::builder().max_capacity(10_000).time_to_live(time).build();
        Self {
            room: Arc::new(LookupContext {
                parts,
                flights: Flights::new(),
                waiters: Waiters::default(),
                bypasses: Bypasses::default(),
                refreshing: lately(refresh::REFRESH_EVERY),
                verified: lately(refresh::VERIFY_EVERY),
            }),
        }
    }

    /// Tells whether a tenant is configured.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.room.parts.tenants.contains_key(tenant)
    }

    /// Looks a customer up; `None` when the tenant is not configured.
    ///
    /// Answers within the tenant's `deadline`. Dropping the future abandons the wait, not a fetch that
    /// it has started.
    pub async fn get(&self, tenant: &TenantId, customer: &CustomerId) -> Option<Result<Answer, Failure>> {
        self.timed(tenant, customer, Reader::read).await
    }

    /// Looks a customer up with more than the store keeps: fetched each time, unless the customer was deleted.
    /// Otherwise as [`get`](Self::get).
    pub async fn get_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
    ) -> Option<Result<Answer, Failure>> {
        self.timed(tenant, customer, |reader| reader.read_expanded(expand)).await
    }

    async fn timed<'a, F: Future<Output = Result<Answer, Failure>>>(
        &'a self,
        tenant: &TenantId,
        customer: &'a CustomerId,
        read: impl FnOnce(Reader<'a>) -> F,
    ) -> Option<Result<Answer, Failure>> {
        let times = self.room.parts.tenants.get(tenant)?;
        let metrics = &self.room.parts.metrics;
        let _in_flight = in_progress(&metrics.lookup_in_flight);
        let started = Instant::now();
        let answer = read(Reader::new(&self.room, times, tenant, customer, started + times.deadline)).await;
        let result = answer.as_ref().map_or(LookupResult::Error, Answer::result);
        metrics.lookup_requests.with(result).increment(1);
        observe(metrics.lookup_duration.with(result), started.elapsed());
        Some(answer)
    }
}
