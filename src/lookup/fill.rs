//! Filling one key: the record that a lease holder writes, and how the fence judges it.

use std::time::Duration;

use tokio::time::Instant;

use crate::contact;
use crate::domain::{Identity, Modified, Profile, TenantId, Timestamp};
use crate::metrics::FillOutcome;
use crate::store::fence::{FenceVerdict, unsettled_lifetime};
use crate::store::{Content, Filled, Found, Lease, Record, Token};
use crate::upstream::{self, Requester};

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
    /// The profile belongs to another customer: the requested one was merged. The entry was filled with a pointer to it;
    /// unless a pointer led to this key, for then that pointer is out of date.
    Alias { canonical: Identity, pointer: FollowedPointer },
    /// The entry was not filled, and the fetch is no answer about its customer: read it again.
    Again,
    /// The fetch failed, for this requester.
    Failed(upstream::Error, Requester),
}

impl LookupContext {
    /// Returns what is stored of a fetched profile.
    pub(super) fn found(&self, tenant: &TenantId, profile: Profile) -> Found {
        let identifiers = self.deps.identifiers.as_ref().map(|hasher| {
            let shown = contact::identifiers(profile.body.expose());
            hasher.mark(tenant, &shown)
        });
        Found { identifiers: identifiers.unwrap_or_default(), ..profile.into() }
    }
}

/// A pointer that a lookup follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct FollowedPointer {
    pub(super) token: Token,
    /// When the fetch that showed the merge ended: from then on Genesys knows the canonical customer.
    pub(super) known: Timestamp,
    pub(super) fill: PointerFill,
}

/// Whether the store holds a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointerFill {
    Stored,
    /// As [`FetchOutcome::Refused`].
    Refused,
    /// As [`FetchOutcome::NotStored`].
    NotStored,
}

/// When a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) at: Timestamp,
    pub(super) started: Instant,
}

impl Sent {
    /// Notes in a record when it was fetched, and what that cost.
    pub(super) fn stamp(self, record: Record) -> Record {
        Record { fetched_at: self.at, fetch_cost: self.started.elapsed(), ..record }
    }
}

/// Fills the entry of one customer or identifier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filler<'a> {
    pub(super) context: &'a LookupContext,
    pub(super) config: &'a Config,
    pub(super) identity: &'a Identity,
    /// The generation of the tenant's records, known before the request was sent.
    pub(super) generation: u64,
}

impl Filler<'_> {
    /// Creates the record to fill with. The fence that the lease carries decides whether it is settled, and so how long
    /// it is kept; `modified` is that of the fetched profile.
    pub(super) fn record(&self, lease: &Lease, content: Content, modified: Option<Modified>) -> Record {
        let deps = &self.context.deps;
        let (ttl, grace) = match &content {
            Content::Found(_) => (self.config.ttl, self.config.grace),
            Content::Negative => (self.config.negative_ttl, Duration::ZERO),
            Content::IdentifierPointer(_) => (self.config.identifier_ttl, Duration::ZERO),
            Content::Pointer(_) | Content::Sealed(_) => (self.config.ttl, Duration::ZERO),
        };
        let ttl = freshness::jittered(ttl, self.config.ttl_jitter);
        let (settled, ttl, grace) = match lease.judge(modified, deps.settle_window) {
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
            generation: self.generation,
        }
    }

    /// Fills, and returns what that resulted in.
    pub(super) async fn fill(&self, lease: Lease, record: Record) -> FetchOutcome {
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
                FetchOutcome::Refused(record)
            }
            Err(error) => {
                tracing::warn!(key = %self.identity.key(), %error, "could not store a fetched profile");
                FetchOutcome::NotStored(record)
            }
        }
    }

    /// Gives up a lease.
    pub(super) async fn release(&self, lease: Lease) {
        if let Err(error) = self.context.deps.store.release(lease).await {
            tracing::warn!(key = %self.identity.key(), %error, "could not release a lease; it expires by itself");
        }
    }
}
