//! Lookups by an identifier: two reads of the store, the pointer of the identifier and the entry of its customer.
//!
//! # When a pointer is believed
//!
//! A pointer names the customer who had the identifier. It is believed only while that customer's entry holds the very record
//! that was filled from the same request, or one whose profile shows the identifier. Otherwise it is a hint: Genesys is asked
//! again. So every event about the customer makes its pointers hints without a list of them
//! ([`rules::identifier-pointer`](crate::rules#identifier-pointer)).
//!
//! Nothing is read under the [previous](super::previous) key of an identifier: a pointer from there would lead to a
//! previous key as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::domain::{Identifier, Identity, Key};
use crate::metrics::{PointerOutcome, RefreshCause};
use crate::spans::{self, Cause};
use crate::store::{self, Base, Content, Entry, IdentifierPointer, Record, Token};
use crate::upstream::Requester;

use super::demand::Demand;
use super::freshness::{self, Freshness};
use super::hint::{EntryRead, Hint};
use super::identify::{Identified, IdentifyTask};
use super::reader::StepError;
use super::{Config, ForwardReason, LookupAnswer, LookupContext, LookupError, Phases};

/// How many identifiers a process remembers the customer of, about 300 bytes each.
pub(super) const GUESSES: u64 = 50_000;

/// One lookup by an identifier.
#[derive(Debug)]
pub(super) struct IdentifierReader<'a> {
    pub(super) context: &'a Arc<LookupContext>,
    pub(super) config: &'a Config,
    pub(super) identifier: &'a Identifier,
    pub(super) identity: Identity,
    pub(super) key: Key,
    pub(super) requester: &'a Requester,
    pub(super) deadline: Instant,
    /// Where its time is spent.
    pub(super) phases: &'a mut Phases,
    /// The stale profile to serve if there is no fresh one, and for how long it has been stale.
    pub(super) stale: Option<(Record, Duration)>,
    /// Whether this lookup has waited for another one.
    pub(super) has_waited: bool,
    /// How old the answer may be.
    pub(super) demand: Demand,
}

/// The pointer that a lookup has read.
#[derive(Debug)]
pub(super) struct ReadPointer {
    pub(super) pointer: IdentifierPointer,
    /// The token of its record.
    pub(super) token: Token,
    settled: bool,
    /// Whether it should be refreshed before it expires.
    pub(super) is_due: bool,
    /// The generation of its record.
    pub(super) generation: u64,
}

/// What a customer's entry says about a pointer to it.
#[derive(Debug)]
pub(super) enum ContactView {
    /// The pointer is believed: the answer.
    Serve(LookupAnswer),
    /// The pointer is a hint. The lease of the customer can be requested.
    Hint(Hint),
    /// The pointer is a hint, and the customer has no entry that could be filled: it was merged or deleted.
    Gone,
}

impl<'a> IdentifierReader<'a> {
    pub(super) fn new(
        context: &'a Arc<LookupContext>,
        config: &'a Config,
        (identifier, identity): (&'a Identifier, Identity),
        (requester, max_age): (&'a Requester, Option<Duration>),
        phases: &'a mut Phases,
        deadline: Instant,
    ) -> Self {
        let (key, stale, has_waited, demand) = (identity.key(), None, false, Demand::new(max_age));
        Self { context, config, identifier, identity, key, requester, deadline, phases, stale, has_waited, demand }
    }

    pub(super) async fn read(&mut self) -> Result<LookupAnswer, LookupError> {
        let Some(admitted) = self.context.admission.admit(self.deadline - self.config.deadline) else {
            self.context.deps.metrics.lookup_shed.increment(1);
            return Err(LookupError::Overloaded);
        };
        let Ok((mut entry, mut guessed)) = timeout_at(self.deadline, self.read_first()).await else {
            admitted.end(false);
            return Err(LookupError::Deadline);
        };
        admitted.end(entry.is_ok());
        loop {
            let step = match entry {
                Ok(entry) => timeout_at(self.deadline, self.act_on(entry, guessed.take())).await,
                Err(error) => Ok(Err(error.into())),
            };
            match step {
                Ok(Ok(Some(answer))) => return Ok(answer),
                // A slow store must not become calls to Genesys: look again, until the deadline.
                Ok(Ok(None) | Err(StepError::Store(store::Error::Slow { .. }))) => {}
                Ok(Err(StepError::Failed(failure))) => return LookupAnswer::stale(self.stale.as_ref(), failure),
                Ok(Err(StepError::Store(error))) => return self.bypass(&error).await,
                Err(_elapsed) => return LookupAnswer::stale(self.stale.as_ref(), LookupError::Deadline),
            }
            entry = match timeout_at(self.deadline, self.context.deps.store.get(&self.key)).await {
                Ok(entry) => entry,
                Err(_elapsed) => return LookupAnswer::stale(self.stale.as_ref(), LookupError::Deadline),
            };
        }
    }

    /// Reads the pointer, and with it the entry to which it led the last time: with one request where the store can. Both
    /// are read after the lookup began, so their order does not matter.
    async fn read_first(&self) -> (EntryRead, Option<(Identity, EntryRead)>) {
        let store = &self.context.deps.store;
        let Some(guess) = self.context.guesses.get(&self.key) else {
            return (store.get(&self.key).await, None);
        };
        let keys = [self.key.clone(), guess.key()];
        let (pointer, customer) = match store.get_together(&keys).await.map(<[EntryRead; 2]>::try_from) {
            Some(Ok([pointer, customer])) => (pointer, customer),
            Some(Err(_)) | None => tokio::join!(store.get(&keys[0]), store.get(&keys[1])),
        };
        (pointer, Some((guess, customer)))
    }

    /// Takes the next step; returns the answer, or `None` if the entry must be read again.
    async fn act_on(
        &mut self,
        entry: Option<Entry>,
        guessed: Option<(Identity, EntryRead)>,
    ) -> Result<Option<LookupAnswer>, StepError> {
        let mut record = match entry {
            None => {
                return match guessed {
                    // Whoever leads there may be about to ask for this identifier, too.
                    Some((guess, Ok(Some(Entry::Leased(leased))))) => self.wait(&guess, leased.token).await,
                    guessed => self.ask(Base::Absent, guessed.and_then(Hint::of_guess)).await,
                };
            }
            Some(Entry::Corrupt(bytes)) => return self.ask(Base::Corrupt(bytes), None).await,
            Some(Entry::Leased(leased)) => return self.wait(&self.identity.clone(), leased.token).await,
            // No event writes one here.
            Some(Entry::Tombstone(tombstone)) => return self.ask(Base::Dead(tombstone.token), None).await,
            Some(Entry::Record(record)) => record,
        };
        let dead = Base::Dead(record.token);
        if record.identity != self.identity {
            tracing::warn!(key = %self.key, "a stored record is about another identifier and is not used");
            return self.ask(dead, None).await;
        }
        let (now, cleared) = (self.context.deps.clock.now(), self.context.deps.clears.of(self.identity.tenant()));
        let freshness = self.context.judge(&mut record, self.config, now);
        match (freshness, &record.content) {
            (Freshness::Fresh { .. }, Content::Negative)
                if self.demand.refuses(&record, self.demand.has_waited_at(&self.identity), now) =>
            {
                self.ask(Base::Token(record.token), None).await
            }
            (Freshness::Fresh { remaining }, Content::Negative) => {
                let refreshing =
                    record.generation < cleared.soft && self.refresh(None, record.token, RefreshCause::Cleared);
                let answer = LookupAnswer::of(&record, self.hit(remaining, refreshing));
                // The record is that of the identifier, which nobody has.
                Ok(answer.map(|answer| LookupAnswer { identity: None, ..answer }))
            }
            (Freshness::Fresh { remaining }, Content::IdentifierPointer(pointer)) => {
                let is_due = freshness::is_due_by_chance(&record, remaining);
                let (token, settled, generation) = (record.token, record.settled, record.generation);
                let pointer = pointer.clone();
                self.follow(ReadPointer { pointer, token, settled, is_due, generation }, guessed).await
            }
            // It has no grace, and no other content is written here.
            (
                Freshness::Fresh { .. } | Freshness::Stale { .. } | Freshness::Expired,
                Content::Negative
                | Content::IdentifierPointer(_)
                | Content::Found(_)
                | Content::Pointer(_)
                | Content::Sealed(_),
            ) => self.ask(dead, None).await,
        }
    }

    /// Follows the pointer to the entry of its customer.
    async fn follow(
        &mut self,
        read: ReadPointer,
        guessed: Option<(Identity, EntryRead)>,
    ) -> Result<Option<LookupAnswer>, StepError> {
        let (to, key) = (&read.pointer.to, read.pointer.to.key());
        let entry = match guessed {
            Some((guess, entry)) if guess == *to => entry?,
            Some(_) | None => {
                self.context.guesses.insert(self.key.clone(), to.clone());
                self.context.deps.store.get(&key).await?
            }
        };
        let view = match entry {
            None => ContactView::Hint(Hint::over(to.clone(), Base::Absent, None)),
            Some(Entry::Corrupt(bytes)) => ContactView::Hint(Hint::over(to.clone(), Base::Corrupt(bytes), None)),
            Some(Entry::Leased(leased)) => return self.wait(to, leased.token).await,
            Some(Entry::Tombstone(_)) => ContactView::Gone,
            Some(Entry::Record(record)) => self.view(record, &read),
        };
        let pointers = &self.context.deps.metrics.identifier_pointers;
        match view {
            ContactView::Serve(mut answer) => {
                pointers.with(PointerOutcome::Believed).increment(1);
                answer.unsettled |= !read.settled;
                Ok(Some(answer))
            }
            ContactView::Hint(hint) => {
                pointers.with(PointerOutcome::Hint).increment(1);
                self.ask(Base::Token(read.token), Some(hint)).await
            }
            ContactView::Gone => {
                pointers.with(PointerOutcome::Hint).increment(1);
                self.ask(Base::Token(read.token), None).await
            }
        }
    }

    /// Asks Genesys, in a task that holds the leases also if the caller disconnects.
    async fn ask(&mut self, base: Base, hint: Option<Hint>) -> Result<Option<LookupAnswer>, StepError> {
        self.end_first_read();
        let deps = &self.context.deps;
        #[cfg(feature = "faults")]
        deps.faults.leak_or_panic(self.identifier.expose().value);
        let run = self.task(self.requester.clone()).run(base, hint);
        let task = deps.shutdown.spawn(spans::lead(&self.key, Cause::Miss, run));
        match timeout_at(self.wait_deadline(), task).await {
            Ok(Ok((identified, times))) => {
                self.phases.led(times);
                match identified? {
                    Identified::Answer(answer) => Ok(Some(answer)),
                    Identified::Wait { at, seen } => self.wait(&at, seen).await,
                    Identified::Again => Ok(None),
                }
            }
            Ok(Err(_ended)) => self.leader_dropped(),
            Err(_elapsed) => Err(StepError::Failed(LookupError::Deadline)),
        }
    }

    pub(super) fn task(&self, requester: Requester) -> IdentifyTask {
        IdentifyTask {
            context: Arc::clone(self.context),
            config: self.config.clone(),
            identifier: self.identifier.clone(),
            identity: self.identity.clone(),
            requester,
            over: ForwardReason::of(self.stale.is_some(), self.demand),
            generation: self.context.deps.clears.of(self.identity.tenant()).soft,
        }
    }
}
