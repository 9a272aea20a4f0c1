//! Lookup: cache-aside reads with stampede protection.
//!
//! # What it promises
//!
//! Every answer is at least as new as every event that was applied before the lookup began, or was fetched from
//! Genesys after that event deleted the entry. A lookup ends in time (`lookup.deadline`), with an answer or with
//! a [`LookupError`]. There is at most one fetch per entry key and lease, for any number of lookups in any number of
//! processes.
//!
//! # The steps of one lookup
//!
//! 1. Read the entry. A fresh record, a negative answer or a tombstone is the answer: one store command.
//! 2. A pointer leads to the key of the canonical customer; a lookup follows one pointer.
//! 3. If there is no entry (nor one under the customer's other key while `[keys]` is changed: `previous`), or an
//!    unusable one, the lookup requests the lease. The lookup that gets it is the leader: it starts a task that
//!    fetches and fills (`leader`). The task continues when the caller disconnects.
//! 4. The others are followers. If the witness rule allows it ([`single_flight`]), they wait for the leader in this
//!    process; otherwise they wait until the entry changes, and read it again.
//! 5. A lookup that holds a stale record waits no longer than the soft timeout, and serves that record if Genesys
//!    fails. A lookup without a stale record waits until its deadline.
//! 6. A lookup that reads a fresh record near its expiry may start a refresh in the background (`refresh`).
//!
//! A lookup by a phone number or another identifier reads the pointer of the identifier first (`identifier`), and asks Genesys who
//! has the identifier if that cannot be used (`identify`).
//!
//! # When something fails
//!
//! The store is slower than the lookups arrive: those above a limit are refused at once (`admission`).
//! The store is unreachable: the lookup bypasses it, asks Genesys, and the answer is marked `bypass`. Genesys fails:
//! the leader releases its lease, and all followers in this process get the same error. The leader's process is
//! killed: its lease expires, and another lookup requests one.

mod admission;
mod answer;
mod batch;
mod by_identifier;
mod bypass;
mod demand;
mod expanded;
mod fill;
pub mod freshness;
mod hint;
mod identifier;
mod identifier_view;
mod identifier_wait;
mod identify;
mod leader;
mod many;
mod phases;
pub mod prefetch;
mod previous;
mod reader;
mod refresh;
#[cfg(feature = "faults")]
mod sabotage;
pub mod single_flight;
mod view;
mod wait;
mod waiters;
mod watch;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use serde::Deserialize;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::{CustomerId, IdentifierHasher, Identity, Key, KeyHasher, PhoneRegion, TenantId};
use crate::faults::Faults;
use crate::metrics::{LookupResult, Metrics, in_progress, observe};
use crate::shutdown::Shutdown;
use crate::store::{Clears, Store};
use crate::upstream::{Requester, Upstream};

pub use answer::{AnswerSource, ForwardReason, LookupAnswer, LookupError, LookupOutcome, StaleReason};
pub use phases::Phases;
pub use watch::{TenantWatch, TenantWatches, Watch};

use admission::Admission;
use bypass::Bypasses;
use demand::Demand;
use leader::LeaderResult;
use reader::CacheReader;
use single_flight::Flights;
use waiters::Waiters;

/// How many refreshes one process starts each second after a clear of a tenant. The budget of the tenant limits them further.
const CLEARED_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not zero");

/// `[lookup]`; a `[[tenant]]` may override the times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long a profile is fresh.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// The largest random share that is subtracted from `ttl`, so that entries do not expire together: 0 to 0.5.
    pub ttl_jitter: f64,
    /// How long after its TTL a profile may be served while Genesys fails.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long a negative answer ("no such customer") is kept.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// How long a profile is fresh whose changes may be missed: of a tenant whose only events are notifications, and not
    /// watched since before it was fetched.
    #[serde(with = "humantime_serde")]
    pub unwatched_ttl: Duration,
    /// How long it is known which customer has an identifier.
    #[serde(with = "humantime_serde")]
    pub identifier_ttl: Duration,
    /// The minimum time for which a profile that may be older than the known events is kept.
    #[serde(with = "humantime_serde")]
    pub unsettled_ttl: Duration,
    /// How long one lookup holds the lease (the fetch lock) of an entry; longer than `upstream.timeout`.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// How long a lookup that holds a stale profile waits for a fresh one.
    #[serde(with = "humantime_serde")]
    pub soft_timeout: Duration,
    /// How long a lookup may take; then it fails with 503.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// The country of phone numbers without a country code; an option of a `[[tenant]]`.
    #[serde(skip)]
    pub phone_region: Option<PhoneRegion>,
}

impl Config {
    /// Returns the times that must be longer than zero, with the names of their options.
    #[must_use]
    pub const fn positive_times(&self) -> [(&'static str, Duration); 6] {
        [
            ("ttl", self.ttl),
            ("negative_ttl", self.negative_ttl),
            ("identifier_ttl", self.identifier_ttl),
            ("unsettled_ttl", self.unsettled_ttl),
            ("unwatched_ttl", self.unwatched_ttl),
            ("deadline", self.deadline),
        ]
    }
}

/// The dependencies of the lookup flow.
#[derive(Debug)]
pub struct LookupDependencies {
    /// Holds the entries.
    pub store: Arc<dyn Store>,
    /// Fetches profiles.
    pub upstream: Arc<dyn Upstream>,
    /// Turns customer ids into entry keys.
    pub hasher: KeyHasher,
    /// Turns identifiers into keys; without it nobody is looked up by one.
    pub identifiers: Option<IdentifierHasher>,
    /// The other key scheme, while `[keys]` is changed: see `previous.rs`.
    pub previous: Option<KeyHasher>,
    /// The configuration of each tenant.
    pub tenants: HashMap<TenantId, Config>,
    /// What watches the changes of customers, for the tenants with notifications.
    pub watches: TenantWatches,
    /// The generations of the tenants' records.
    pub clears: Clears,
    /// How long after an event a fill is compared with the fence (`consumer.settle_window`).
    pub settle_window: Duration,
    /// The wall clock.
    pub clock: SharedClock,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
    /// Tracks the background tasks.
    pub shutdown: Shutdown,
    /// Named faults.
    pub faults: Faults,
}

/// The lookup flow. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Lookup {
    context: Arc<LookupContext>,
}

/// The state that all lookups and leaders of one process share.
#[derive(Debug)]
struct LookupContext {
    deps: LookupDependencies,
    admission: Admission,
    flights: Flights<LeaderResult>,
    waiters: Waiters,
    bypasses: Bypasses,
    /// The keys whose early refresh this process started recently. It saves a store command for each hit.
    refreshing: Cache<Key, ()>,
    /// The keys whose tombstone this process verified recently. It saves a store command for each hit.
    verified: Cache<Key, ()>,
    /// The pace of the refreshes after a clear, for each tenant.
    cleared: HashMap<TenantId, DefaultDirectRateLimiter>,
    /// Where the pointers of identifiers led recently, so that both entries can be read at once.
    guesses: Cache<Key, Identity>,
}

impl Lookup {
    /// Creates the lookup flow.
    #[must_use]
    pub fn new(deps: LookupDependencies) -> Self {
        let recent = |time| Cache::builder().max_capacity(10_000).time_to_live(time).build();
        let pace = |tenant: &TenantId| (tenant.clone(), RateLimiter::direct(Quota::per_second(CLEARED_PER_SECOND)));
        let cleared = deps.tenants.keys().map(pace).collect();
        let deadline = deps.tenants.values().map(|config| config.deadline).min().unwrap_or_default();
        Self {
            context: Arc::new(LookupContext {
                deps,
                admission: Admission::new(deadline),
                flights: Flights::new(),
                waiters: Waiters::default(),
                bypasses: Bypasses::default(),
                refreshing: recent(refresh::REFRESH_INTERVAL),
                verified: recent(refresh::VERIFY_INTERVAL),
                cleared,
                guesses: Cache::builder().max_capacity(identifier::GUESSES).build(),
            }),
        }
    }

    /// Returns whether a tenant is configured.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.context.deps.tenants.contains_key(tenant)
    }

    /// Looks up a customer for a requester; returns `None` if the tenant is not configured. With `max_age`, an answer that was
    /// fetched longer ago is fetched anew, as always under the lease and within the budget.
    ///
    /// Answers within the tenant's `deadline`. Dropping the future ends the wait; a fetch that it has started
    /// continues.
    pub async fn get(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        max_age: Option<Duration>,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        self.get_with_phases(tenant, customer, requester, max_age, &mut Phases::default()).await
    }

    /// Looks up a customer as [`get`](Self::get), and notes the phases of the lookup.
    pub async fn get_with_phases(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        max_age: Option<Duration>,
        phases: &mut Phases,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        let timed = self.timed(tenant, Instant::now(), |config, deadline| async move {
            let identity = self.context.deps.hasher.identify(tenant, customer);
            let mut reader = CacheReader::new(&self.context, config, identity, customer, requester, phases, deadline);
            reader.demand = Demand::new(max_age);
            reader.read().await
        });
        timed.await
    }

    async fn timed<'a, F: Future<Output = Result<LookupAnswer, LookupError>>>(
        &'a self,
        tenant: &TenantId,
        started: Instant,
        read: impl FnOnce(&'a Config, Instant) -> F,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        let config = self.context.deps.tenants.get(tenant)?;
        let metrics = &self.context.deps.metrics;
        let _in_flight = in_progress(&metrics.lookup_in_flight);
        let deadline = started + config.deadline;
        let mut answer = read(config, deadline).await;
        self.context.label(&mut answer);
        let result = answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result);
        metrics.lookup_requests.with(result).increment(1);
        observe(metrics.lookup_duration.with(result), started.elapsed());
        Some(answer)
    }
}
