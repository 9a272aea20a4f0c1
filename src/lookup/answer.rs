//! What a lookup answers, and how it came by the answer.

use std::time::Duration;

use crate::domain::Timestamp;
use crate::metrics::LookupResult;
use crate::store::{Content, Found, Record};
use crate::upstream;

/// The answer to a lookup.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is known of the customer.
    pub outcome: Outcome,
    /// How the answer was come by.
    pub how: How,
    /// It may be older than what events announced (DESIGN section 2, rule 7), or its fill was refused.
    pub unsettled: bool,
    /// When it was fetched from Genesys, by our clock; for a tombstone, when it was written.
    pub since: Timestamp,
}

/// What is known of a customer.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Its profile.
    Found(Found),
    /// Genesys knows no such customer.
    Absent,
    /// It was deleted.
    Deleted,
}

/// How an answer was come by; what `Cache-Status` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// From the store, fresh for so much longer. A tombstone has no such time.
    Hit {
        /// Time until it is stale.
        remaining: Option<Duration>,
        /// It is being fetched anew, ahead of that time.
        refreshing: bool,
    },
    /// From the store, past its TTL, because nothing fresher could be had.
    Stale {
        /// For how long it has been stale.
        since: Duration,
        /// Why nothing fresher could be had.
        why: StaleReason,
    },
    /// Fetched by this lookup.
    Fetched {
        /// What stood in the store before.
        over: Over,
        /// Whether the store holds it now.
        stored: bool,
    },
    /// Fetched by another lookup, for which this one waited.
    Collapsed {
        /// What stood in the store before.
        over: Over,
    },
    /// Fetched past the store, which did not answer.
    Bypass,
    /// Fetched past the store, since more was asked for than it keeps.
    Expanded,
}

/// Why a stale profile was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// Genesys failed.
    Error,
    /// Genesys took longer than `lookup.soft_timeout`; the fetch goes on.
    SoftTimeout,
}

/// What stood in the store before a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing that could be used.
    Miss,
    /// A stale record.
    Stale,
}

/// Why a lookup has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Genesys gave none.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// The lookup's own deadline has passed.
    #[error("no answer within the lookup's deadline")]
    Deadline,
    /// Each of a merge's customers names another as the canonical one.
    #[error("the customers of a merge name each other as canonical")]
    MergeLoop,
    /// The process is shutting down.
    #[error("shutting down")]
    Draining,
}

impl Answer {
    /// Returns the answer that a record gives; `None` for a pointer and for what is sealed, which give none.
    pub(super) fn of(record: &Record, how: How) -> Option<Self> {
        let outcome = match &record.content {
            Content::Found(found) => Outcome::Found(found.clone()),
            Content::Negative => Outcome::Absent,
            Content::Pointer(_) | Content::Sealed(_) => return None,
        };
        Some(Self { outcome, how, unsettled: !record.settled, since: record.fetched_at })
    }

    /// Returns the metric label of this answer.
    #[must_use]
    pub fn result(&self) -> LookupResult {
        match (&self.outcome, self.how) {
            (Outcome::Deleted, _) => LookupResult::Tombstone,
            (Outcome::Absent, How::Hit { .. }) => LookupResult::Negative,
            (Outcome::Found(_), How::Hit { .. }) => LookupResult::Hit,
            (_, How::Stale { .. }) => LookupResult::Stale,
            (_, How::Fetched { .. }) => LookupResult::Miss,
            (_, How::Collapsed { .. }) => LookupResult::Coalesced,
            (_, How::Bypass | How::Expanded) => LookupResult::Bypass,
        }
    }
}

impl Failure {
    /// Returns when it is worth asking again.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Upstream(error) => error.retry_after().unwrap_or(Duration::from_secs(1)),
            Self::Deadline | Self::MergeLoop | Self::Draining => Duration::from_secs(1),
        }
    }
}
