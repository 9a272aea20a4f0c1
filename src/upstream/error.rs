//! Why a fetch has no answer: whose fault it is, and when a retry makes sense.

use std::sync::Arc;
use std::time::Duration;

use super::transport::{TransportFailure, TransportPhase};

/// A fetch has no answer. No variant holds any part of a profile or a customer id.
///
/// The text may be shown to callers. The source, if there is one, names a host and is for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Genesys sent an answer that cannot be used, such as a 200 without a profile.
    #[error("genesys answered with something unusable: {reason}")]
    Unusable {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Genesys denied access: 401 with a renewed token, 403, or the token endpoint rejected the client.
    #[error("genesys refused access with status {status}")]
    Denied {
        /// The status of the answer.
        status: u16,
    },
    /// The token lacks a required privilege or holds a forbidden one, so nothing is fetched with it.
    #[error("the privileges of this tenant's token at genesys are wrong")]
    Privileges {
        /// The configured rules that the token breaks, for operators.
        reason: Arc<str>,
    },
    /// Genesys limits our rate (429).
    #[error("genesys limits the rate, retry after {}s", retry_after.as_secs())]
    Throttled {
        /// The value of `Retry-After`.
        retry_after: Duration,
    },
    /// The tenant's own budget of requests per minute is spent.
    #[error("the request budget of this tenant is spent")]
    BudgetSpent {
        /// Until the budget allows the next request.
        retry_after: Duration,
    },
    /// The circuit breaker is open: recent requests failed.
    #[error("genesys has been failing, requests are suspended")]
    BreakerOpen {
        /// Until the breaker allows the next request.
        retry_after: Duration,
    },
    /// Genesys answered with a server error, or another temporary one.
    #[error("genesys failed with status {status}")]
    Failed {
        /// The status of the answer.
        status: u16,
        /// The value of `Retry-After`, if a 503 has one.
        retry_after: Option<Duration>,
    },
    /// No connection could be made, or it broke.
    #[error("genesys is unreachable")]
    Unreachable(#[source] Option<TransportFailure>),
    /// No answer arrived in time.
    #[error("genesys did not answer in time")]
    Timeout(#[source] Option<TransportFailure>),
}

impl Error {
    /// Returns whether the failure may be gone a moment later, so that a retry makes sense.
    pub(super) const fn is_temporary(&self) -> bool {
        match self {
            Self::Failed { retry_after: None, .. } | Self::Unreachable(_) => true,
            Self::Failed { retry_after: Some(_), .. }
            | Self::Unusable { .. }
            | Self::Denied { .. }
            | Self::Privileges { .. }
            | Self::Throttled { .. }
            | Self::BudgetSpent { .. }
            | Self::BreakerOpen { .. }
            | Self::Timeout(_) => false,
        }
    }

    /// Returns whether a connection broke that had been made. Other requests may have been on it too.
    pub(super) fn is_lost_connection(&self) -> bool {
        matches!(self, Self::Unreachable(Some(failure)) if failure.phase == TransportPhase::Response)
    }

    /// Returns how long to wait before the next request, if that is known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::BudgetSpent { retry_after } | Self::BreakerOpen { retry_after } => {
                Some(*retry_after)
            }
            Self::Failed { retry_after, .. } => *retry_after,
            Self::Unusable { .. }
            | Self::Denied { .. }
            | Self::Privileges { .. }
            | Self::Unreachable(_)
            | Self::Timeout(_) => None,
        }
    }
}
