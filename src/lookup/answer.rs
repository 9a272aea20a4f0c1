//! The answer to a lookup, and where it came from.

use std::time::Duration;

use crate::domain::{Identity, Timestamp};
use crate::metrics::LookupResult;
use crate::store::{Content, Found, Record, Tombstone};
use crate::upstream;

use super::demand::Demand;

/// The answer to a lookup.
#[derive(Clone, Debug)]
pub struct LookupAnswer {
    /// What is known about the customer.
    pub outcome: LookupOutcome,
    /// Where the answer came from.
    pub how: AnswerSource,
    /// Whether it may be older than the known events ([`rules::unsettled`](crate::rules#unsettled)), or its fill was
    /// refused.
    pub unsettled: bool,
    /// Whether changes since it was fetched may be missed, because the customer is not watched.
    pub unwatched: bool,
    /// The customer whom the answer is about: the canonical one after a merge. `None` if neither a record nor Genesys named one.
    pub identity: Option<Identity>,
    /// When it was fetched from Genesys, or when the tombstone was written; by our clock.
    pub since: Timestamp,
}

/// What is known about a customer.
#[derive(Clone, Debug)]
pub enum LookupOutcome {
    /// The profile.
    Found(Found),
    /// Genesys knows no such customer.
    Absent,
    /// The customer was deleted.
    Deleted,
}

/// Where an answer came from, as the header `Cache-Status` (RFC 9211) shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// From the store, fresh.
    Hit {
        /// The time until it is stale; `None` for a tombstone.
        remaining: Option<Duration>,
        /// Whether a refresh is under way.
        refreshing: bool,
    },
    /// From the store, past its TTL, because no fresh answer was available.
    Stale {
        /// For how long it has been stale.
        since: Duration,
        /// Why no fresh answer was available.
        why: StaleReason,
    },
    /// Fetched by this lookup.
    Fetched {
        /// Why it was fetched.
        over: ForwardReason,
        /// Whether the store holds it now.
        stored: bool,
    },
    /// Fetched by another lookup, for which this one waited.
    Collapsed {
        /// Why it was fetched.
        over: ForwardReason,
    },
    /// Fetched without the store, which did not answer.
    Bypass,
    /// Fetched without the store, which holds no expansions and no lists.
    Expanded,
}

/// Why a stale profile was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// Genesys failed.
    Error,
    /// Genesys took longer than `lookup.soft_timeout`; the fetch continues.
    SoftTimeout,
}

/// Why a lookup fetched: the `fwd` parameter of `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    /// The store held no usable entry.
    Miss,
    /// The store held a stale record.
    Stale,
    /// The store held a fresh record, but the caller demanded a newer one.
    Request,
}

impl ForwardReason {
    /// Returns the reason of a lookup that fetches.
    pub(super) const fn of(is_stale: bool, demand: Demand) -> Self {
        match (is_stale, demand.has_refused()) {
            (true, _) => Self::Stale,
            (false, true) => Self::Request,
            (false, false) => Self::Miss,
        }
    }
}

/// Why a lookup has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The fetch from Genesys failed.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// The deadline of the lookup has passed.
    #[error("no answer within the lookup's deadline")]
    Deadline,
    /// More lookups arrive than the store answers in time.
    #[error("more lookups arrive than the store answers in time")]
    Overloaded,
    /// The customers of a merge name each other as the canonical one.
    #[error("the customers of a merge name each other as canonical")]
    MergeLoop,
    /// The process is shutting down.
    #[error("shutting down")]
    Draining,
}

impl LookupAnswer {
    /// Returns the answer that a record holds; `None` for a pointer and for a record that cannot be decrypted.
    pub(super) fn of(record: &Record, how: AnswerSource) -> Option<Self> {
        let outcome = match &record.content {
            Content::Found(found) => LookupOutcome::Found(found.clone()),
            Content::Negative => LookupOutcome::Absent,
            Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => return None,
        };
        let identity = Some(record.identity.clone());
        Some(Self { outcome, how, unsettled: !record.settled, unwatched: false, identity, since: record.fetched_at })
    }

    /// Returns the stale record instead of a failure, if there is one. `stale` has the time since it became stale.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn stale(stale: Option<&(Record, Duration)>, failure: LookupError) -> Result<Self, LookupError> {
        let why = match &failure {
            LookupError::Deadline => StaleReason::SoftTimeout,
            LookupError::Upstream(_) | LookupError::MergeLoop | LookupError::Overloaded | LookupError::Draining => {
                StaleReason::Error
            }
        };
        stale.and_then(|(record, since)| Self::of(record, AnswerSource::Stale { since: *since, why })).ok_or(failure)
    }

    /// Returns the answer for a deleted customer.
    pub(super) const fn deleted(tombstone: &Tombstone) -> Self {
        let how = AnswerSource::Hit { remaining: None, refreshing: false };
        Self {
            outcome: LookupOutcome::Deleted,
            how,
            unsettled: false,
            unwatched: false,
            identity: None,
            since: tombstone.written_at,
        }
    }

    /// Returns the metric label of this answer.
    #[must_use]
    pub fn result(&self) -> LookupResult {
        match (&self.outcome, self.how) {
            (LookupOutcome::Deleted, _) => LookupResult::Tombstone,
            (LookupOutcome::Absent, AnswerSource::Hit { .. }) => LookupResult::Negative,
            (LookupOutcome::Found(_), AnswerSource::Hit { .. }) => LookupResult::Hit,
            (_, AnswerSource::Stale { .. }) => LookupResult::Stale,
            (_, AnswerSource::Fetched { .. }) => LookupResult::Miss,
            (_, AnswerSource::Collapsed { .. }) => LookupResult::Coalesced,
            (_, AnswerSource::Bypass | AnswerSource::Expanded) => LookupResult::Bypass,
        }
    }
}

impl LookupError {
    /// Returns how long to wait before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Upstream(error) => error.retry_after().unwrap_or(Duration::from_secs(1)),
            Self::Deadline | Self::Overloaded | Self::MergeLoop | Self::Draining => Duration::from_secs(1),
        }
    }
}
