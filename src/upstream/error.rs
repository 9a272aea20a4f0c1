//! Why a fetch has no answer, by whose fault it is and when to come again.

use std::sync::Arc;
use std::time::Duration;

/// A fetch has no answer. No variant holds any part of a profile or a customer id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Genesys answered 200 with something that is no profile.
    #[error("genesys answered with something unusable: {reason}")]
    Unusable {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Genesys refused us: 401 after a renewed token, 403, or the token endpoint refused the client.
    #[error("genesys refused access with status {status}")]
    Denied {
        /// Genesys' status.
        status: u16,
    },
    /// Our token may do too little or too much, so nothing is asked with it.
    #[error("the privileges of this tenant's token at genesys are wrong")]
    Privileges {
        /// The configured rules that are broken, for operators.
        reason: Arc<str>,
    },
    /// Genesys limits our rate (429).
    #[error("genesys limits the rate, retry after {}s", retry_after.as_secs())]
    Throttled {
        /// What Genesys' `Retry-After` said.
        retry_after: Duration,
    },
    /// Our own budget of requests per minute is spent.
    #[error("the request budget of this tenant is spent")]
    BudgetSpent {
        /// When the next request fits.
        retry_after: Duration,
    },
    /// The breaker is open: recent requests failed.
    #[error("genesys has been failing, requests are suspended")]
    BreakerOpen {
        /// When the next request is let through.
        retry_after: Duration,
    },
    /// Genesys answered with a server error, or another status that may pass.
    #[error("genesys failed with status {status}")]
    Failed {
        /// Genesys' status.
        status: u16,
    },
    /// No connection, or it broke.
    #[error("genesys is unreachable")]
    Unreachable,
    /// No answer in time.
    #[error("genesys did not answer in time")]
    Timeout,
}

impl Error {
    /// Returns when it is worth asking again, where something says so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::BudgetSpent { retry_after } | Self::BreakerOpen { retry_after } => {
                Some(*retry_after)
            }
            Self::Unusable { .. }
            | Self::Denied { .. }
            | Self::Privileges { .. }
            | Self::Failed { .. }
            | Self::Unreachable
            | Self::Timeout => None,
        }
    }
}
