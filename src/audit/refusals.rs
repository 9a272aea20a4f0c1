//! Refusals of requests without a valid credential, or over the rate of their caller: counted, and recorded at most once a
//! second for each door and reason, and for each caller.
//!
//! What a caller or a sender is denied although it is authenticated has a record of its own, up to [`SINGLY`] at once and
//! [`SINGLY_PER_SECOND`]; above that it is counted, too.
//!
//! Anyone can send such requests, as many as the network carries. With a record for each they would fill the disk, and
//! rotate the records of accesses out of the trail. They have a place of their own, not one in the channel, so they can
//! neither displace nor delay a record of an access. The place is bounded: there are as many as doors and configured callers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::domain::{TenantId, Timestamp};

use super::record::{AuditRecord, Decision, DenialReason, DeniedToken, OperatorRecord};

/// How many denials of a caller have records of their own at once: as many as a request has customers.
const SINGLY: f64 = 100.0;

/// How many each second.
const SINGLY_PER_SECOND: f64 = 10.0;

/// The refusals that no record names yet.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    refused: BTreeMap<Door, Refused>,
    /// How many more denials have records of their own, and since when that is known.
    singly: BTreeMap<Door, (f64, Instant)>,
}

/// Equal refusals, recorded as the first of them. The record names a tenant, a customer, an agent or a scope only if all were
/// about it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Refused {
    #[serde(skip)]
    pub(super) time: Timestamp,
    #[serde(flatten)]
    record: AuditRecord,
    /// How many there were; absent: one.
    #[serde(rename = "count", skip_serializing_if = "is_one")]
    pub(super) number: u64,
}

/// A door and a reason of refusals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    Lookup,
    /// Genesys did not verify the token of an agent.
    Unverified,
    /// This caller is over its rate.
    Rate(Option<Arc<str>>),
    /// This caller may not look up what it asked for, or may not have the token.
    Denied(Option<Arc<str>>, DenialReason),
    /// A sender of this tenant posted what is not the tenant's.
    Sender(Option<TenantId>, DenialReason),
    Token,
    Webhook,
    UnknownTenant,
    Admin,
}

impl Refusals {
    /// Counts a record if it is about a request that is recorded together with others, or returns it.
    #[expect(clippy::result_large_err, reason = "the caller records it")]
    pub(super) fn count(&self, time: Timestamp, record: AuditRecord) -> Result<(), AuditRecord> {
        let Some(door) = Door::of(&record) else { return Err(record) };
        let Counted { refused, singly } = &mut *self.0.lock();
        if door.is_authenticated() && take_one(singly.entry(door.clone()).or_insert((SINGLY, Instant::now()))) {
            return Err(record);
        }
        match refused.get_mut(&door) {
            Some(refused) => refused.add(&record),
            None => drop(refused.insert(door, Refused { time, record, number: 1 })),
        }
        Ok(())
    }

    /// Returns and removes what was counted.
    pub(super) fn take(&self) -> impl Iterator<Item = Refused> + use<> {
        std::mem::take(&mut self.0.lock().refused).into_values()
    }
}

/// Takes one of those that have records of their own; returns whether there was one.
fn take_one((left, since): &mut (f64, Instant)) -> bool {
    let now = Instant::now();
    *left = (*left + now.duration_since(*since).as_secs_f64() * SINGLY_PER_SECOND).min(SINGLY);
    *since = now;
    let is_single = *left >= 1.0;
    *left -= f64::from(u8::from(is_single));
    is_single
}

impl Door {
    /// Returns whether only a caller or a sender with a valid credential is refused there.
    const fn is_authenticated(&self) -> bool {
        matches!(self, Self::Denied(..) | Self::Sender(..))
    }

    fn of(record: &AuditRecord) -> Option<Self> {
        match record {
            AuditRecord::Lookup(lookup) => match &lookup.decision {
                Decision::Denied(DenialReason::Unauthorized) => Some(Self::Lookup),
                Decision::Denied(DenialReason::Unverified) => Some(Self::Unverified),
                Decision::Denied(DenialReason::Rate) => Some(Self::Rate(lookup.caller.clone())),
                Decision::Denied(
                    reason @ (DenialReason::Tenant
                    | DenialReason::Fields
                    | DenialReason::Scope
                    | DenialReason::LookupBy
                    | DenialReason::UnknownTenant
                    | DenialReason::ForeignTenant),
                ) => Some(Self::Denied(lookup.caller.clone(), *reason)),
                Decision::Allowed { .. } => None,
            },
            AuditRecord::Token(DeniedToken { caller: None, .. }) => Some(Self::Token),
            AuditRecord::Token(DeniedToken { caller, reason, .. }) => Some(Self::Denied(caller.clone(), *reason)),
            AuditRecord::Webhook(denied) => match denied.reason {
                DenialReason::Unauthorized => Some(Self::Webhook),
                DenialReason::UnknownTenant => Some(Self::UnknownTenant),
                DenialReason::Tenant
                | DenialReason::Fields
                | DenialReason::LookupBy
                | DenialReason::Rate
                | DenialReason::Scope
                | DenialReason::Unverified
                | DenialReason::ForeignTenant => Some(Self::Sender(denied.tenant.clone(), denied.reason)),
            },
            AuditRecord::Operator(command) => (command.outcome == OperatorRecord::UNAUTHORIZED).then_some(Self::Admin),
            AuditRecord::Event(_) => None,
        }
    }
}

impl Refused {
    fn add(&mut self, other: &AuditRecord) {
        self.number = self.number.saturating_add(1);
        if let (AuditRecord::Webhook(first), AuditRecord::Webhook(other)) = (&mut self.record, other) {
            keep_equal(&mut first.tenant, &other.tenant);
        }
        if let (AuditRecord::Lookup(first), AuditRecord::Lookup(other)) = (&mut self.record, other) {
            keep_equal(&mut first.scope, &other.scope);
            keep_equal(&mut first.agent, &other.agent);
            keep_equal(&mut first.tenant, &other.tenant);
            keep_equal(&mut first.key, &other.key);
            keep_equal(&mut first.by, &other.by);
        }
    }
}

/// Forgets what is not the same in another record.
fn keep_equal<T: PartialEq>(first: &mut Option<T>, other: &Option<T>) {
    if first != other {
        *first = None;
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_one(number: &u64) -> bool {
    *number == 1
}
