//! Requesting the lease of an entry, and waiting for the lookup that holds it.

use tokio::time::Instant;

use crate::domain::Identity;
use crate::spans::{self, Cause};
use crate::store::{Base, LeaseAnswer, Token};
use crate::upstream::Error;

use super::fill::{FetchOutcome, FollowedPointer};
use super::leader::LeaderResult;
use super::reader::{CacheReader, LookupStep, StepError};
use super::single_flight::{FlightResult, Follower};
use super::{AnswerSource, ForwardReason, LookupError};

impl CacheReader<'_> {
    /// Requests the lease. Leads if it is granted; otherwise waits for its holder.
    pub(super) async fn request_lease(&mut self, base: Base) -> Result<LookupStep, StepError> {
        #[cfg(feature = "faults")]
        self.context.deps.faults.leak_or_panic(self.customer.expose());
        let (deps, ttl) = (&self.context.deps, self.config.lease_ttl);
        match deps.store.lease(&self.key, &base, Token::draw(), ttl).await? {
            LeaseAnswer::Granted(lease) => {
                let (leader, follower) = self.context.flights.start(&self.key, lease.witness());
                let mut fetch = self.fetch_task(self.requester.clone());
                fetch.seat = self.seat.take();
                let task = spans::lead(&self.key, Cause::Miss, async move { fetch.lead(lease, leader).await });
                deps.shutdown.spawn(task);
                self.await_leader(follower, true).await
            }
            LeaseAnswer::Held { seen, .. } => self.follow(seen).await,
            LeaseAnswer::Changed(entry) => Ok(LookupStep::Evaluate(Some(entry))),
        }
    }

    /// Waits for the lookup that fetches: takes its result, or evaluates the entry after the fetch.
    pub(super) async fn follow(&mut self, seen: Token) -> Result<LookupStep, StepError> {
        self.seat = None;
        self.demand.waits_at(&self.current);
        if let Some(follower) = self.context.flights.join(&self.key, seen) {
            return self.await_leader(follower, false).await;
        }
        let (deps, max_wait) = (&self.context.deps, self.config.lease_ttl);
        let mut follower = self.context.waiters.join(&self.key, seen, max_wait, &deps.store, &deps.shutdown);
        match follower.wait(self.wait_deadline()).await {
            FlightResult::Completed(entry) => {
                self.has_waited = true;
                Ok(LookupStep::Evaluate(entry?))
            }
            FlightResult::LeaderDropped => self.leader_dropped(),
            FlightResult::TimedOut => Err(StepError::Failed(LookupError::Deadline)),
        }
    }

    async fn await_leader(
        &mut self,
        mut follower: Follower<LeaderResult>,
        leads: bool,
    ) -> Result<LookupStep, StepError> {
        let result = follower.wait(self.wait_deadline()).await.map(|LeaderResult { outcome, times }| {
            if leads {
                self.phases.led(times);
            }
            outcome
        });
        self.has_waited |= !leads;
        let over = self.over();
        let how =
            |stored| if leads { AnswerSource::Fetched { over, stored } } else { AnswerSource::Collapsed { over } };
        match result {
            FlightResult::Completed(FetchOutcome::Stored(record)) => Ok(LookupStep::answer(&record, how(true), false)),
            FlightResult::Completed(FetchOutcome::Refused(record)) => Ok(LookupStep::answer(&record, how(false), true)),
            FlightResult::Completed(FetchOutcome::NotStored(record)) => {
                Ok(LookupStep::answer(&record, how(false), false))
            }
            FlightResult::Completed(FetchOutcome::Again) => Ok(LookupStep::Reread),
            FlightResult::Completed(FetchOutcome::Alias { canonical, pointer }) => {
                self.follow_alias(canonical, pointer)
            }
            // The share of another caller, or of refreshes, is spent; this lookup has its own.
            FlightResult::Completed(FetchOutcome::Failed(Error::BudgetSpent { .. }, spender))
                if spender != *self.requester =>
            {
                Ok(LookupStep::Reread)
            }
            FlightResult::Completed(FetchOutcome::Failed(error, _)) => Err(StepError::Failed(error.into())),
            FlightResult::LeaderDropped => self.leader_dropped(),
            FlightResult::TimedOut => Err(StepError::Failed(LookupError::Deadline)),
        }
    }

    /// The leader was dropped without a result, probably because this process is shutting down.
    fn leader_dropped(&self) -> Result<LookupStep, StepError> {
        if self.context.deps.shutdown.is_requested() {
            Err(StepError::Failed(LookupError::Draining))
        } else {
            Ok(LookupStep::Reread)
        }
    }

    /// The fetched profile belongs to another customer: continue there. If a pointer led here, it is out of date:
    /// replace it.
    fn follow_alias(&mut self, canonical: Identity, pointer: FollowedPointer) -> Result<LookupStep, StepError> {
        match self.pointer {
            None => {
                self.go_to(canonical, Some(pointer))?;
                Ok(LookupStep::Reread)
            }
            Some(outdated) => {
                self.go_to(self.requested.clone(), None)?;
                Ok(LookupStep::RequestLease(Base::Token(outdated.token)))
            }
        }
    }

    /// Returns why this lookup fetches, for the answer.
    pub(super) fn over(&self) -> ForwardReason {
        ForwardReason::of(self.stale.is_some(), self.demand)
    }

    /// Returns how long this lookup waits: only the soft timeout if it holds a stale profile.
    fn wait_deadline(&self) -> Instant {
        match self.stale {
            Some(_) => self.deadline.min(Instant::now() + self.config.soft_timeout),
            None => self.deadline,
        }
    }
}
