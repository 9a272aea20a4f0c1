//! How a lookup by an identifier waits for other lookups, and goes past a store that does not answer.

use tokio::time::Instant;

use crate::domain::{CustomerQuery, Identity};
use crate::store::{self, Token};
use crate::upstream;

use super::bypass::{self, BypassRequest};
use super::fill::FetchOutcome;
use super::identifier::IdentifierReader;
use super::leader::LeaderResult;
use super::reader::StepError;
use super::single_flight::FlightResult;
use super::{LookupAnswer, LookupError};

impl IdentifierReader<'_> {
    /// Waits until an entry is another one, then looks again.
    pub(super) async fn wait(&mut self, at: &Identity, seen: Token) -> Result<Option<LookupAnswer>, StepError> {
        self.end_first_read();
        self.has_waited = true;
        self.demand.waits_at(at);
        let key = &at.key();
        let (context, until) = (self.context, self.wait_deadline());
        if let Some(mut follower) = context.flights.join(key, seen) {
            return match follower.wait(until).await.map(|LeaderResult { outcome, .. }| outcome) {
                // The share of another caller, or of refreshes, is spent; this lookup has its own.
                FlightResult::Completed(FetchOutcome::Failed(upstream::Error::BudgetSpent { .. }, spender))
                    if spender != *self.requester =>
                {
                    Ok(None)
                }
                FlightResult::Completed(FetchOutcome::Failed(error, _)) => Err(StepError::Failed(error.into())),
                FlightResult::Completed(_) => Ok(None),
                FlightResult::LeaderDropped => self.leader_dropped(),
                FlightResult::TimedOut => Err(StepError::Failed(LookupError::Deadline)),
            };
        }
        let (deps, max_wait) = (&context.deps, self.config.lease_ttl);
        let mut follower = context.waiters.join(key, seen, max_wait, &deps.store, &deps.shutdown);
        match follower.wait(until).await {
            FlightResult::Completed(entry) => Ok(entry.map(|_| None)?),
            FlightResult::LeaderDropped => self.leader_dropped(),
            FlightResult::TimedOut => Err(StepError::Failed(LookupError::Deadline)),
        }
    }

    pub(super) fn leader_dropped(&self) -> Result<Option<LookupAnswer>, StepError> {
        if self.context.deps.shutdown.is_requested() { Err(StepError::Failed(LookupError::Draining)) } else { Ok(None) }
    }

    /// Returns how long this lookup waits: only the soft timeout if it holds a stale profile.
    pub(super) fn wait_deadline(&self) -> Instant {
        match self.stale {
            Some(_) => self.deadline.min(Instant::now() + self.config.soft_timeout),
            None => self.deadline,
        }
    }

    /// Asks Genesys without the store.
    pub(super) async fn bypass(&self, error: &store::Error) -> Result<LookupAnswer, LookupError> {
        tracing::debug!(key = %self.key, %error, "the lookup bypasses the store");
        let request = BypassRequest {
            tenant: self.identity.tenant().clone(),
            query: CustomerQuery::Identifier(self.identifier.clone()),
            requester: self.requester.past_the_store(),
            timeout: self.config.lease_ttl,
            seat: None,
        };
        let answer = bypass::fetch(self.context, &self.key, request, self.deadline).await;
        answer.or_else(|failure| LookupAnswer::stale(self.stale.as_ref(), failure))
    }
}
