//! The leader: holds the lease of an entry, fetches, fills, and gives its followers the result.
//!
//! It runs as its own task and ends within `upstream.timeout`, even if no lookup waits for it any more. In every case
//! its lease is consumed: the entry is filled, or the lease is released so that another lookup can try.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{CustomerId, EventTime, Identity, Profile, Timestamp};
use crate::faults::Fault;
use crate::metrics::FillOutcome;
use crate::store::fence::{FenceVerdict, unsettled_lifetime};
use crate::store::{Content, Filled, Lease, Record, Token, Tombstone};
use crate::upstream::{self, FetchTimes, Fetched, Requester};

use super::phases::LeaderTimes;
use super::single_flight::Leader;
use super::{Config, LookupContext, freshness};

/// What a leader's fetch and fill resulted in.
#[derive(Clone, Debug)]
pub(super) enum FetchOutcome {
    /// The store holds the record.
    Stored(Record),
    /// The fill was refused. Only lookups that had already joined may use the record, as unsettled.
    Refused(Record),
    /// The store failed during the fill; it may or may not hold the record.
    NotStored(Record),
    /// The profile belongs to another customer: the requested one was merged. The entry now holds a pointer to it,
    /// under the token `pointer`; unless a pointer led to this key, for then that pointer is out of date.
    Alias {
        canonical: Identity,
        pointer: Token,
        /// When the fetch that showed the merge ended.
        known: Timestamp,
    },
    /// The fetch failed, for this requester.
    Failed(upstream::Error, Requester),
}

/// The result of a leader, and how long its parts took.
#[derive(Clone, Debug)]
pub(super) struct LeaderResult {
    pub(super) outcome: FetchOutcome,
    pub(super) times: LeaderTimes,
}

/// The task of a leader.
#[derive(Debug)]
pub(super) struct FetchTask {
    pub(super) context: Arc<LookupContext>,
    pub(super) config: Config,
    /// The customer whose entry is leased.
    pub(super) identity: Identity,
    /// The customer id to ask Genesys for: the customer's own, or an alias.
    pub(super) customer: CustomerId,
    /// Whose share of the budget the fetch spends.
    pub(super) requester: Requester,
    /// Whether a pointer led to the entry; then the entry must not become a pointer itself.
    pub(super) through_pointer: bool,
}

impl FetchTask {
    /// Fetches, fills, and completes the flight.
    pub(super) async fn lead(self, lease: Lease, leader: Leader<LeaderResult>) {
        let mut times = LeaderTimes::default();
        let outcome = self.fetch_and_fill(lease, &mut times).await;
        leader.complete(LeaderResult { outcome, times });
    }

    async fn fetch_and_fill(&self, lease: Lease, times: &mut LeaderTimes) -> FetchOutcome {
        let deps = &self.context.deps;
        let started = Instant::now();
        let deadline = started + self.config.lease_ttl;
        let fetched_at = deps.clock.now();
        let fetch = deps.upstream.fetch(self.identity.tenant(), &self.customer, &self.requester, deadline);
        let fetched = FetchTimes::measure(fetch, &mut times.fetch).await;
        deps.faults.point(Fault::PauseBeforeFill).await;
        let (content, canonical) = match fetched {
            Ok(Fetched::Found(profile)) => match self.merged_into(&profile) {
                Some(canonical) if self.through_pointer => {
                    let pointer = lease.token();
                    self.release(lease).await;
                    return FetchOutcome::Alias { canonical, pointer, known: deps.clock.now() };
                }
                Some(canonical) => (Content::Pointer(canonical.clone()), Some(canonical)),
                None => (Content::Found(profile.into()), None),
            },
            Ok(Fetched::Absent) => (Content::Negative, None),
            Err(error) => {
                self.release(lease).await;
                return FetchOutcome::Failed(error, self.requester.clone());
            }
        };
        let pointer = lease.token();
        let mut record = self.record(&lease, content);
        record.fetched_at = fetched_at;
        record.fetch_cost = started.elapsed();
        let known = fetched_at.plus(record.fetch_cost);
        let filled_from = Instant::now();
        let outcome = self.fill(lease, record).await;
        times.fill = filled_from.elapsed();
        match canonical {
            Some(canonical) => FetchOutcome::Alias { canonical, pointer, known },
            None => outcome,
        }
    }

    /// Returns the customer whose profile this is, if it is not the one whose entry is leased.
    fn merged_into(&self, profile: &Profile) -> Option<Identity> {
        let canonical = profile.canonical.as_ref()?;
        let canonical = self.context.deps.hasher.identify(self.identity.tenant(), canonical);
        (canonical != self.identity).then_some(canonical)
    }

    /// Creates the record to fill with. The fence that the lease carries decides whether it is settled, and so how long
    /// it is kept.
    fn record(&self, lease: &Lease, content: Content) -> Record {
        let deps = &self.context.deps;
        let modified = match &content {
            Content::Found(found) => found.modified,
            Content::Negative | Content::Pointer(_) | Content::Sealed(_) => None,
        };
        let (ttl, grace) = match &content {
            Content::Found(_) => (self.config.ttl, self.config.grace),
            Content::Negative => (self.config.negative_ttl, Duration::ZERO),
            Content::Pointer(_) | Content::Sealed(_) => (self.config.ttl, Duration::ZERO),
        };
        let ttl = freshness::jittered(ttl, self.config.ttl_jitter);
        let (settled, ttl, grace) = match lease.judge(modified, deps.settle_window, &deps.clock) {
            FenceVerdict::CaughtUp => (true, ttl, grace),
            FenceVerdict::Unsettled { age } => {
                (false, ttl.min(unsettled_lifetime(age, self.config.unsettled_ttl)), Duration::ZERO)
            }
        };
        Record {
            identity: self.identity.clone(),
            token: lease.token(),
            content,
            fetched_at: deps.clock.now(),
            fetch_cost: Duration::ZERO,
            ttl,
            grace,
            settled,
        }
    }

    async fn fill(&self, lease: Lease, record: Record) -> FetchOutcome {
        let deps = &self.context.deps;
        let fills = &deps.metrics.fills;
        match deps.store.fill(lease, record.clone()).await {
            Ok(Filled::Stored) => {
                let outcome = if record.settled { FillOutcome::Stored } else { FillOutcome::Unsettled };
                fills.with(outcome).increment(1);
                FetchOutcome::Stored(record)
            }
            Ok(Filled::Refused) => {
                fills.with(FillOutcome::Refused).increment(1);
                #[cfg(feature = "faults")]
                self.fill_despite_refusal(record.clone()).await;
                FetchOutcome::Refused(record)
            }
            Err(error) => {
                tracing::warn!(key = %self.identity.key(), %error, "could not store a fetched profile");
                FetchOutcome::NotStored(record)
            }
        }
    }

    async fn release(&self, lease: Lease) {
        if let Err(error) = self.context.deps.store.release(lease).await {
            tracing::warn!(key = %self.identity.key(), %error, "could not release a lease; it expires by itself");
        }
    }

    /// Asks Genesys whether a deleted customer exists again. A profile that was modified after the deletion replaces
    /// that very tombstone ([`rules::tombstone`](crate::rules#tombstone)).
    ///
    /// On any other answer the lease (the lock of the tombstone) is kept until it expires: it limits these requests to
    /// one per minute over all processes.
    pub(super) async fn verify(self, lease: Lease, tombstone: Tombstone) {
        let deadline = Instant::now() + self.config.lease_ttl;
        let fetched =
            self.context.deps.upstream.fetch(self.identity.tenant(), &self.customer, &self.requester, deadline).await;
        let revived = match fetched {
            Ok(Fetched::Found(profile)) if self.merged_into(&profile).is_none() => {
                let modified_later = profile
                    .modified
                    .zip(tombstone.at)
                    .is_some_and(|(modified, deleted)| EventTime::from_modified(modified).compare(deleted).is_gt());
                modified_later.then_some(profile)
            }
            Ok(Fetched::Found(_) | Fetched::Absent) | Err(_) => None,
        };
        match revived {
            Some(profile) => {
                let record = self.record(&lease, Content::Found(profile.into()));
                self.fill(lease, record).await;
            }
            None => lease.keep_until_it_expires(),
        }
    }
}
