//! Refusals of requests without a valid credential, or over the rate of their caller: counted, and recorded at most once a
//! second for each door and reason, and for each caller.
//!
//! Anyone can send such requests, as many as the network carries. With a record for each they would fill the disk, and
//! rotate the records of accesses out of the trail. They have a place of their own, not one in the channel, so they can
//! neither displace nor delay a record of an access. The place is bounded: there are as many as doors and configured callers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::domain::Timestamp;

use super::record::{AuditRecord, Decision, DenialReason, OperatorRecord};

/// The refusals that no record names yet.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<Door, Refused>>);

/// Equal refusals, recorded as the first of them. The record names a tenant only if all were about it.
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
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    Lookup,
    /// Genesys did not verify the token of an agent.
    Unverified,
    /// This caller is over its rate.
    Rate(Option<Arc<str>>),
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
        let mut refusals = self.0.lock();
        match refusals.get_mut(&door) {
            Some(refused) => refused.add(&record),
            None => drop(refusals.insert(door, Refused { time, record, number: 1 })),
        }
        Ok(())
    }

    /// Returns and removes what was counted.
    pub(super) fn take(&self) -> impl Iterator<Item = Refused> + use<> {
        std::mem::take(&mut *self.0.lock()).into_values()
    }
}

impl Door {
    fn of(record: &AuditRecord) -> Option<Self> {
        match record {
            AuditRecord::Lookup(lookup) => match &lookup.decision {
                Decision::Denied(DenialReason::Unauthorized) => Some(Self::Lookup),
                Decision::Denied(DenialReason::Unverified) => Some(Self::Unverified),
                Decision::Denied(DenialReason::Rate) => Some(Self::Rate(lookup.caller.clone())),
                Decision::Denied(
                    DenialReason::Tenant
                    | DenialReason::Fields
                    | DenialReason::Scope
                    | DenialReason::LookupBy
                    | DenialReason::UnknownTenant
                    | DenialReason::ForeignTenant,
                )
                | Decision::Allowed { .. } => None,
            },
            AuditRecord::Token(denied) => denied.caller.is_none().then_some(Self::Token),
            AuditRecord::Webhook(denied) => match denied.reason {
                DenialReason::Unauthorized => Some(Self::Webhook),
                DenialReason::UnknownTenant => Some(Self::UnknownTenant),
                DenialReason::Tenant
                | DenialReason::Fields
                | DenialReason::LookupBy
                | DenialReason::Rate
                | DenialReason::Scope
                | DenialReason::Unverified
                | DenialReason::ForeignTenant => None,
            },
            AuditRecord::Operator(command) => (command.outcome == OperatorRecord::UNAUTHORIZED).then_some(Self::Admin),
            AuditRecord::Event(_) => None,
        }
    }
}

impl Refused {
    fn add(&mut self, other: &AuditRecord) {
        self.number = self.number.saturating_add(1);
        if let (AuditRecord::Webhook(first), AuditRecord::Webhook(other)) = (&mut self.record, other)
            && first.tenant != other.tenant
        {
            first.tenant = None;
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_one(number: &u64) -> bool {
    *number == 1
}
