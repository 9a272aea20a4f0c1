//! The reader: one lookup, from the first read of the entry to the answer. The parent module lists its steps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::domain::{CustomerId, CustomerQuery, Identity, Key};
use crate::store::{self, Base, Entry, Record, Token};
use crate::upstream::Requester;

use super::batch::BatchSeat;
use super::bypass;
use super::demand::Demand;
use super::fill::{FollowedPointer, PointerFill};
use super::leader::FetchTask;
use super::{AnswerSource, Config, LookupAnswer, LookupContext, LookupError, Phases};

/// The maximum number of moves of one lookup between the keys of a merged customer.
const MAX_MOVES: u8 = 4;

/// One lookup.
#[derive(Debug)]
pub(super) struct CacheReader<'a> {
    pub(super) context: &'a Arc<LookupContext>,
    pub(super) config: &'a Config,
    pub(super) customer: &'a CustomerId,
    pub(super) requester: &'a Requester,
    /// The customer that the caller asked for.
    pub(super) requested: Identity,
    pub(super) deadline: Instant,
    /// Where its time is spent.
    pub(super) phases: &'a mut Phases,
    /// The customer whose entry is read: the requested one, or the canonical one.
    pub(super) current: Identity,
    /// The entry key of `current`.
    pub(super) key: Key,
    /// The pointer that led to `current`.
    pub(super) pointer: Option<FollowedPointer>,
    moves: u8,
    /// The stale profile to serve if there is no fresh one, and for how long it has been stale.
    pub(super) stale: Option<(Record, Duration)>,
    /// Whether this lookup has waited for the fetch of another one.
    pub(super) has_waited: bool,
    /// How old the answer may be.
    pub(super) demand: Demand,
    /// The place in a batch, until this lookup is decided.
    pub(super) seat: Option<BatchSeat>,
}

/// What a lookup does next, given an entry.
#[derive(Debug)]
pub(super) enum EntryView {
    /// Return the answer.
    Serve(LookupAnswer),
    /// Continue at the key of the canonical customer.
    FollowPointer(Identity, FollowedPointer),
    /// Request the lease, in order to fetch.
    RequestLease(Base),
    /// Wait until this lease ends.
    Wait(Token),
}

/// The next step of a lookup.
#[derive(Debug)]
pub(super) enum LookupStep {
    /// Return the answer.
    Done(LookupAnswer),
    /// Act on what the entry held at the first read.
    View(EntryView),
    /// Read the entry again.
    Reread,
    /// Evaluate what the entry holds now.
    Evaluate(Option<Entry>),
    /// Request the lease.
    RequestLease(Base),
}

/// Why a lookup has no next step.
#[derive(Debug)]
pub(super) enum StepError {
    Failed(LookupError),
    Store(store::Error),
}

impl From<store::Error> for StepError {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl LookupStep {
    /// Answers with a record. A pointer is no answer, so the entry is read again.
    pub(super) fn answer(record: &Record, how: AnswerSource, unsettled: bool) -> Self {
        match LookupAnswer::of(record, how) {
            Some(mut answer) => {
                answer.unsettled |= unsettled;
                Self::Done(answer)
            }
            None => Self::Reread,
        }
    }
}

impl<'a> CacheReader<'a> {
    pub(super) fn new(
        context: &'a Arc<LookupContext>,
        config: &'a Config,
        requested: Identity,
        customer: &'a CustomerId,
        requester: &'a Requester,
        phases: &'a mut Phases,
        deadline: Instant,
    ) -> Self {
        let (key, current) = (requested.key(), requested.clone());
        Self {
            context,
            config,
            customer,
            requester,
            requested,
            deadline,
            phases,
            current,
            key,
            pointer: None,
            moves: 0,
            stale: None,
            has_waited: false,
            demand: Demand::default(),
            seat: None,
        }
    }

    pub(super) async fn read(&mut self) -> Result<LookupAnswer, LookupError> {
        let Some(admitted) = self.context.admission.admit(self.deadline - self.config.deadline) else {
            self.context.deps.metrics.lookup_shed.increment(1);
            return Err(LookupError::Overloaded);
        };
        let Ok(entry) = timeout_at(self.deadline, self.context.deps.store.get(&self.key)).await else {
            admitted.end(false);
            return Err(LookupError::Deadline);
        };
        admitted.end(entry.is_ok());
        self.read_from(entry).await
    }

    /// Looks up, given the result of the first read of the entry.
    pub(super) async fn read_from(
        &mut self,
        entry: Result<Option<Entry>, store::Error>,
    ) -> Result<LookupAnswer, LookupError> {
        match entry.map(|entry| self.view(entry)) {
            // A hit ends here.
            Ok(EntryView::Serve(answer)) => Ok(answer),
            // The other paths are boxed, so that the future of a hit stays small.
            view => Box::pin(self.read_slow(view)).await,
        }
    }

    async fn read_slow(&mut self, view: Result<EntryView, store::Error>) -> Result<LookupAnswer, LookupError> {
        self.phases.store = (self.deadline - self.config.deadline).elapsed();
        let mut step = match view {
            Ok(view) => Ok(LookupStep::View(view)),
            Err(error) => Err(error.into()),
        };
        loop {
            let next = match step {
                Ok(next) => next,
                Err(StepError::Failed(failure)) => return self.fall_back(failure),
                // A slow store must not become calls to Genesys: look again, until the deadline.
                Err(StepError::Store(store::Error::Slow { .. })) => LookupStep::Reread,
                Err(StepError::Store(error)) => return self.bypass(&error).await,
            };
            let deadline = self.deadline;
            let following = async {
                match next {
                    LookupStep::Done(answer) => Ok(LookupStep::Done(answer)),
                    LookupStep::View(view) => self.act_on(view).await,
                    LookupStep::Reread => self.reread().await,
                    LookupStep::Evaluate(entry) => self.evaluate(entry).await,
                    LookupStep::RequestLease(base) => self.request_lease(base).await,
                }
            };
            step = match timeout_at(deadline, following).await {
                Ok(Ok(LookupStep::Done(answer))) => return Ok(self.answer_of_pointer(answer)),
                Ok(step) => step,
                Err(_elapsed) => return self.fall_back(LookupError::Deadline),
            };
        }
    }

    /// Labels an answer to which a pointer led that the store does not hold: then the store does not hold that answer for the
    /// requested customer either.
    fn answer_of_pointer(&self, answer: LookupAnswer) -> LookupAnswer {
        let Some(fill) = self.pointer.map(|pointer| pointer.fill).filter(|fill| *fill != PointerFill::Stored) else {
            return answer;
        };
        let over = self.over();
        let how = match answer.how {
            AnswerSource::Hit { .. } | AnswerSource::Collapsed { .. } if self.has_waited => {
                AnswerSource::Collapsed { over }
            }
            AnswerSource::Hit { .. } | AnswerSource::Fetched { .. } => AnswerSource::Fetched { over, stored: false },
            other => other,
        };
        LookupAnswer { how, unsettled: answer.unsettled || fill == PointerFill::Refused, ..answer }
    }

    async fn reread(&mut self) -> Result<LookupStep, StepError> {
        Ok(LookupStep::Evaluate(self.context.deps.store.get(&self.key).await?))
    }

    async fn evaluate(&mut self, entry: Option<Entry>) -> Result<LookupStep, StepError> {
        let view = self.view(entry);
        self.act_on(view).await
    }

    async fn act_on(&mut self, view: EntryView) -> Result<LookupStep, StepError> {
        match view {
            EntryView::Serve(answer) => Ok(LookupStep::Done(answer)),
            EntryView::FollowPointer(canonical, pointer) => {
                self.go_to(canonical, Some(pointer))?;
                Ok(LookupStep::Reread)
            }
            EntryView::RequestLease(base) => {
                let previous = if matches!(base, Base::Absent) { self.get_under_previous_key().await? } else { None };
                match previous {
                    Some(answer) => Ok(LookupStep::Done(answer)),
                    None => self.request_lease(base).await,
                }
            }
            EntryView::Wait(seen) => self.follow(seen).await,
        }
    }

    /// Continues at the entry of another identity of the customer.
    pub(super) fn go_to(&mut self, identity: Identity, pointer: Option<FollowedPointer>) -> Result<(), StepError> {
        self.moves += 1;
        if self.moves > MAX_MOVES {
            return Err(StepError::Failed(LookupError::MergeLoop));
        }
        self.key = identity.key();
        self.current = identity;
        self.pointer = pointer;
        self.stale = None;
        Ok(())
    }

    /// Fetches from Genesys without the store.
    async fn bypass(&mut self, error: &store::Error) -> Result<LookupAnswer, LookupError> {
        tracing::debug!(key = %self.key, %error, "the lookup bypasses the store");
        let key = self.requested.key();
        let request = bypass::BypassRequest {
            tenant: self.requested.tenant().clone(),
            query: CustomerQuery::Id(self.customer.clone()),
            requester: self.requester.past_the_store(),
            timeout: self.config.lease_ttl,
            seat: self.seat.take(),
        };
        match bypass::fetch(self.context, &key, request, self.deadline).await {
            Ok(answer) => Ok(answer),
            Err(failure) => self.fall_back(failure),
        }
    }

    /// Answers with the stale record; fails if there is none.
    fn fall_back(&self, failure: LookupError) -> Result<LookupAnswer, LookupError> {
        LookupAnswer::stale(self.stale.as_ref(), failure)
    }

    pub(super) fn fetch_task(&self, requester: Requester) -> FetchTask {
        FetchTask {
            context: Arc::clone(self.context),
            config: self.config.clone(),
            identity: self.current.clone(),
            customer: self.customer.clone(),
            requester,
            through_pointer: self.pointer.is_some(),
            generation: self.context.deps.clears.of(self.requested.tenant()).soft,
            seat: None,
        }
    }
}
