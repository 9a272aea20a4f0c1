//! The leader: holds the lease of an entry, fetches, fills, and gives its followers the result.
//!
//! It runs as its own task and ends within `upstream.timeout`, even if no lookup waits for it any more. In every case
//! its lease is consumed: the entry is filled, or the lease is released so that another lookup can try.

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::{CustomerId, EventTime, Identity, Profile};
use crate::faults::Fault;
use crate::store::{Content, Lease, Record, Tombstone};
use crate::upstream::{FetchTimes, Fetched, Requester};

use super::batch::BatchSeat;
use super::fill::{FetchOutcome, Filler, FollowedPointer, PointerFill};
use super::phases::LeaderTimes;
use super::single_flight::Leader;
use super::{Config, LookupContext};

/// The result of a leader, and how long its parts took.
#[derive(Clone, Debug)]
pub(super) struct LeaderResult {
    pub(super) outcome: FetchOutcome,
    pub(super) times: LeaderTimes,
}

impl From<FetchOutcome> for LeaderResult {
    fn from(outcome: FetchOutcome) -> Self {
        Self { outcome, times: LeaderTimes::default() }
    }
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
    /// The generation of the tenant's records, known before the request is sent.
    pub(super) generation: u64,
    /// The place in a batch of lookups that fetch together.
    pub(super) seat: Option<BatchSeat>,
}

impl FetchTask {
    /// Fetches, fills, and completes the flight.
    pub(super) async fn lead(mut self, lease: Lease, leader: Leader<LeaderResult>) {
        let (seat, mut times) = (self.seat.take(), LeaderTimes::default());
        let outcome = self.fetch_and_fill(lease, seat, &mut times).await;
        leader.complete(LeaderResult { outcome, times });
    }

    async fn fetch_and_fill(&self, lease: Lease, seat: Option<BatchSeat>, times: &mut LeaderTimes) -> FetchOutcome {
        let deps = &self.context.deps;
        let started = Instant::now();
        let deadline = started + self.config.lease_ttl;
        let fetched_at = deps.clock.now();
        let fetch = async {
            match seat {
                Some(seat) => seat.fetch(self.customer.clone(), deadline).await,
                None => deps.upstream.fetch(self.identity.tenant(), &self.customer, &self.requester, deadline).await,
            }
        };
        let fetched = FetchTimes::measure(fetch, &mut times.fetch).await;
        deps.faults.point(Fault::PauseBeforeFill).await;
        let (content, canonical) = match fetched {
            Ok(Fetched::Found(profile)) => match self.merged_into(&profile) {
                Some(canonical) if self.through_pointer => {
                    let (token, known, fill) = (lease.token(), deps.clock.now(), PointerFill::NotStored);
                    self.release(lease).await;
                    return FetchOutcome::Alias { canonical, pointer: FollowedPointer { token, known, fill } };
                }
                Some(canonical) => (Content::Pointer(canonical.clone()), Some(canonical)),
                None => {
                    self.context.watch(&self.identity, profile.canonical.as_ref().unwrap_or(&self.customer));
                    (Content::Found(self.context.found(self.identity.tenant(), profile)), None)
                }
            },
            Ok(Fetched::Absent) => (Content::Negative, None),
            Err(error) => {
                self.release(lease).await;
                return FetchOutcome::Failed(error, self.requester.clone());
            }
        };
        let token = lease.token();
        let mut record = self.record(&lease, content);
        record.fetched_at = fetched_at;
        record.fetch_cost = started.elapsed();
        let known = fetched_at.plus(record.fetch_cost);
        let filled_from = Instant::now();
        let outcome = self.fill(lease, record).await;
        times.fill = filled_from.elapsed();
        let fill = match outcome {
            FetchOutcome::Stored(_) => PointerFill::Stored,
            FetchOutcome::Refused(_) => PointerFill::Refused,
            FetchOutcome::NotStored(_)
            | FetchOutcome::Alias { .. }
            | FetchOutcome::Again
            | FetchOutcome::Failed(..) => PointerFill::NotStored,
        };
        match canonical {
            Some(canonical) => FetchOutcome::Alias { canonical, pointer: FollowedPointer { token, known, fill } },
            None => outcome,
        }
    }

    /// Returns the customer whose profile this is, if it is not the one whose entry is leased.
    fn merged_into(&self, profile: &Profile) -> Option<Identity> {
        let canonical = profile.canonical.as_ref()?;
        let canonical = self.context.deps.hasher.identify(self.identity.tenant(), canonical);
        (canonical != self.identity).then_some(canonical)
    }

    /// Returns what this task fills with, for the content of the entry.
    pub(super) fn record(&self, lease: &Lease, content: Content) -> Record {
        let modified = match &content {
            Content::Found(found) => found.modified,
            Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => None,
        };
        self.filler().record(lease, content, modified)
    }

    pub(super) async fn fill(&self, lease: Lease, record: Record) -> FetchOutcome {
        let outcome = self.filler().fill(lease, record).await;
        #[cfg(feature = "faults")]
        if let FetchOutcome::Refused(record) = &outcome {
            self.fill_despite_refusal(record.clone()).await;
        }
        outcome
    }

    fn filler(&self) -> Filler<'_> {
        Filler { context: &self.context, config: &self.config, identity: &self.identity, generation: self.generation }
    }

    async fn release(&self, lease: Lease) {
        self.filler().release(lease).await;
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
                let found = self.context.found(self.identity.tenant(), profile);
                let record = self.record(&lease, Content::Found(found));
                self.fill(lease, record).await;
            }
            None => lease.keep_until_it_expires(),
        }
    }
}
