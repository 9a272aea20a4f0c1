//! A leader: holds a lease, fetches, fills, and tells those who wait.
//!
//! It runs as a task of its own: it ends by itself within `upstream.timeout`, whoever waits or does not
//! wait for it. Whatever happens, its lease is consumed: filled, or given back so that the next may try.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{At, CustomerId, Identity, Profile, Timestamp};
use crate::faults::Fault;
use crate::metrics::FillOutcome;
use crate::store::fence::{Settlement, unsettled_lifetime};
use crate::store::{Base, Content, Filled, Lease, LeaseAnswer, Record, Token, Tombstone};
use crate::upstream::{self, Fetched};

use super::single_flight::Leader;
use super::{Config, LookupContext, freshness};

/// How a leader's flight ended.
#[derive(Clone, Debug)]
pub(super) enum Landed {
    /// The record stands in the store.
    Stored(Record),
    /// The fill was refused: only those who had joined may take it, as unsettled.
    Refused(Record),
    /// The store failed during the fill; the record may or may not stand there.
    Unstored(Record),
    /// The profile is another customer's. A pointer to it was filled in under `pointer`, unless the
    /// key was reached through one itself: then that one is out of date.
    Elsewhere {
        canonical: Identity,
        pointer: Token,
        /// When the fetch that told so had ended.
        known: Timestamp,
    },
    /// Genesys gave no answer.
    Failed(upstream::Error),
}

/// A leader's task.
#[derive(Debug)]
pub(super) struct FetchTask {
    pub(super) room: Arc<LookupContext>,
    pub(super) times: Config,
    /// Whose key the lease is for.
    pub(super) identity: Identity,
    /// Whom to ask Genesys for: the customer itself, or an alias of it.
    pub(super) customer: CustomerId,
    /// Whether the key was reached through a pointer, and so must not hold one.
    pub(super) through_pointer: bool,
}

impl FetchTask {
    /// Fetches, fills and lands.
    pub(super) async fn lead(self, lease: Lease, flight: Leader<Landed>) {
        let landed = self.fetch_and_fill(lease).await;
        flight.land(landed);
    }

    async fn fetch_and_fill(&self, lease: Lease) -> Landed {
        let parts = &self.room.parts;
        let started = Instant::now();
        let deadline = started + self.times.lease_ttl;
        let fetched_at = parts.clock.now();
        let fetched = parts.upstream.fetch(self.identity.tenant(), &self.customer, deadline).await;
        parts.faults.point(Fault::PauseBeforeFill).await;
        let (content, canonical) = match fetched {
            Ok(Fetched::Found(profile)) => match self.elsewhere(&profile) {
                Some(other) if self.through_pointer => {
                    let pointer = lease.token();
                    self.give_back(lease).await;
                    return Landed::Elsewhere { canonical: other, pointer, known: parts.clock.now() };
                }
                Some(other) => (Content::Pointer(other.clone()), Some(other)),
                None => (Content::Found(profile.into()), None),
            },
            Ok(Fetched::Absent) => (Content::Negative, None),
            Err(error) => {
                self.give_back(lease).await;
                return Landed::Failed(error);
            }
        };
        let pointer = lease.token();
        let mut record = self.record(&lease, content);
        record.fetched_at = fetched_at;
        record.fetch_cost = started.elapsed();
        let known = fetched_at.plus(record.fetch_cost);
        let landed = self.fill(lease, record).await;
        match canonical {
            Some(canonical) => Landed::Elsewhere { canonical, pointer, known },
            None => landed,
        }
    }

    /// Returns the customer whose profile this is, if it is not the one whose key is to be filled.
    fn elsewhere(&self, profile: &Profile) -> Option<Identity> {
        let canonical = profile.canonical.as_ref()?;
        let canonical = self.room.parts.hasher.identify(self.identity.tenant(), canonical);
        (canonical != self.identity).then_some(canonical)
    }

    /// Makes the record to fill with: judged by the lease's fence, with the times that follow from it.
    fn record(&self, lease: &Lease, content: Content) -> Record {
        let parts = &self.room.parts;
        let modified = match &content {
            Content::Found(found) => found.modified,
            Content::Negative | Content::Pointer(_) | Content::Sealed(_) => None,
        };
        let (ttl, grace) = match &content {
            Content::Found(_) => (self.times.ttl, self.times.grace),
            Content::Negative => (self.times.negative_ttl, Duration::ZERO),
            Content::Pointer(_) | Content::Sealed(_) => (self.times.ttl, Duration::ZERO),
        };
        let ttl = freshness::jittered(ttl, self.times.ttl_jitter);
        let (settled, ttl, grace) = match lease.judge(modified, parts.settle_window, &parts.clock) {
            Settlement::Settled => (true, ttl, grace),
            Settlement::Unsettled { age } => {
                (false, ttl.min(unsettled_lifetime(age, self.times.unsettled_ttl)), Duration::ZERO)
            }
        };
        Record {
            identity: self.identity.clone(),
            token: lease.token(),
            content,
            fetched_at: parts.clock.now(),
            fetch_cost: Duration::ZERO,
            ttl,
            grace,
            settled,
        }
    }

    async fn fill(&self, lease: Lease, record: Record) -> Landed {
        let parts = &self.room.parts;
        let fills = &parts.metrics.fills;
        match parts.store.fill(lease, record.clone()).await {
            Ok(Filled::Stored) => {
                let outcome = if record.settled { FillOutcome::Stored } else { FillOutcome::Unsettled };
                fills.with(outcome).increment(1);
                Landed::Stored(record)
            }
            Ok(Filled::Refused) => {
                fills.with(FillOutcome::Refused).increment(1);
                if parts.faults.is_armed(Fault::FillWithoutLease) {
                    self.fill_all_the_same(record.clone()).await;
                }
                Landed::Refused(record)
            }
            Err(error) => {
                tracing::warn!(key = %self.identity.key(), %error, "a fetched profile could not be stored");
                Landed::Unstored(record)
            }
        }
    }

    /// The fault [`Fault::FillWithoutLease`]: writes what was fetched before the delete that refused it.
    async fn fill_all_the_same(&self, mut record: Record) {
        let (store, token) = (&self.room.parts.store, Token::draw());
        let lease = store.lease(&self.identity.key(), &Base::Absent, token, self.times.lease_ttl).await;
        if let Ok(LeaseAnswer::Granted(lease)) = lease {
            record.token = token;
            let _ = store.fill(lease, record).await;
        }
    }

    async fn give_back(&self, lease: Lease) {
        if let Err(error) = self.room.parts.store.release(lease).await {
            tracing::warn!(key = %self.identity.key(), %error, "a lease could not be given back; it runs out by itself");
        }
    }

    /// Asks Genesys whether a deleted customer is there again, and if its profile was modified after
    /// the deletion puts it in place of that very tombstone (rule 8).
    ///
    /// The lease (the tombstone's lock) is kept on any other answer: it is what limits these questions
    /// to one a minute over all processes.
    pub(super) async fn verify(self, lease: Lease, tombstone: Tombstone) {
        let deadline = Instant::now() + self.times.lease_ttl;
        let fetched = self.room.parts.upstream.fetch(self.identity.tenant(), &self.customer, deadline).await;
        let revived = match fetched {
            Ok(Fetched::Found(profile)) if self.elsewhere(&profile).is_none() => {
                let modified_later = profile
                    .modified
                    .zip(tombstone.at)
                    .is_some_and(|(modified, deleted)| At::from_modified(modified).compare(deleted).is_gt());
                modified_later.then_some(profile)
            }
            Ok(Fetched::Found(_) | Fetched::Absent) | Err(_) => None,
        };
        match revived {
            Some(profile) => {
                let record = self.record(&lease, Content::Found(profile.into()));
                self.fill(lease, record).await;
            }
            None => lease.keep_until_it_runs_out(),
        }
    }
}
