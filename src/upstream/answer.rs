//! What decorators of the upstream port need to know of an answer.

use crate::metrics::UpstreamOutcome;

use super::{Error, Fetched, FetchedMany};

/// The answer to one request.
pub(super) trait Answer: Send {
    /// Returns whether it holds no profile at all.
    fn is_absent(&self) -> bool;
}

impl Answer for Fetched {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Answer for FetchedMany {
    fn is_absent(&self) -> bool {
        self.iter().all(|fetched| matches!(fetched, Ok(Fetched::Absent)))
    }
}

/// Returns the metric label of an outcome.
pub(super) fn label<T: Answer>(outcome: &Result<T, Error>) -> UpstreamOutcome {
    match outcome {
        Ok(answer) if answer.is_absent() => UpstreamOutcome::Absent,
        Ok(_) => UpstreamOutcome::Found,
        Err(Error::Unusable { .. }) => UpstreamOutcome::Unusable,
        Err(Error::Denied { .. }) => UpstreamOutcome::Denied,
        Err(Error::Privileges { .. }) => UpstreamOutcome::Privileges,
        Err(Error::Throttled { .. }) => UpstreamOutcome::Throttled,
        Err(Error::BudgetSpent { .. }) => UpstreamOutcome::BudgetSpent,
        Err(Error::BreakerOpen { .. }) => UpstreamOutcome::BreakerOpen,
        Err(Error::Failed { .. }) => UpstreamOutcome::Failed,
        Err(Error::Unreachable(_)) => UpstreamOutcome::Unreachable,
        Err(Error::Timeout(_)) => UpstreamOutcome::Timeout,
    }
}
