//! A reader: one lookup on its way through the protocol. See the parent module for the steps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{CustomerId, Identity, Key, TenantId, Timestamp};
use crate::spans::{self, Cause};
use crate::store::{self, Base, Content, Entry, LeaseAnswer, Record, Token};
use crate::upstream::{Expand, Fetched};

use super::bypass::{self, Passed};
use super::freshness::{self, Freshness};
use super::leader::{FetchTask, Landed};
use super::single_flight::{Landing, Seat};
use super::{Answer, Config, Failure, How, LookupContext, Outcome, Over, StaleReason};

/// How often a lookup may move between the keys of one merged customer before it gives up.
const MAX_MOVES: u8 = 4;

/// One lookup under way.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) room: &'a Arc<LookupContext>,
    pub(super) times: &'a Config,
    pub(super) customer: &'a CustomerId,
    pub(super) asked: Identity,
    deadline: Instant,
    /// Whose key is being looked at: the asked customer's, or the canonical one's.
    pub(super) at: Identity,
    pub(super) key: Key,
    /// The pointer that led here.
    through: Option<Pointer>,
    moves: u8,
    /// A profile to fall back on.
    pub(super) stale: Option<(Record, Duration)>,
    /// This lookup has waited for someone else's fetch.
    waited: bool,
}

/// A pointer that a lookup has followed.
#[derive(Clone, Copy, Debug)]
struct Pointer {
    token: Token,
    /// When its fetch had ended: by then the canonical customer was there.
    known: Timestamp,
}

/// What follows from what stands at K.
#[derive(Debug)]
enum View {
    Answer(Answer),
    Follow(Identity, Pointer),
    Contend(Base),
    Wait(Token),
}

/// What to do next.
#[derive(Debug)]
enum Next {
    Answer(Answer),
    Look,
    Consider(Option<Entry>),
    Contend(Base),
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        room: &'a Arc<LookupContext>,
        times: &'a Config,
        tenant: &TenantId,
        customer: &'a CustomerId,
        deadline: Instant,
    ) -> Self {
        let asked = room.parts.hasher.identify(tenant, customer);
        let key = asked.key();
        let at = asked.clone();
        Self { room, times, customer, asked, deadline, at, key, through: None, moves: 0, stale: None, waited: false }
    }

    pub(super) async fn read(mut self) -> Result<Answer, Failure> {
        let looked = self.room.parts.store.get(&self.key).await.map(|entry| self.view(entry));
        match looked {
            // A hit ends here.
            Ok(View::Answer(answer)) => Ok(answer),
            // Whatever else it may come to is in a box, so that hits do not carry the room for it.
            looked => Box::pin(self.read_on(looked)).await,
        }
    }

    async fn read_on(mut self, looked: Result<View, store::Error>) -> Result<Answer, Failure> {
        let mut step = match looked {
            Ok(view) => self.act_on(view).await,
            Err(error) => Err(error.into()),
        };
        loop {
            let next = match step {
                Ok(next) => next,
                Err(Step::Failed(failure)) => return self.fall_back(failure),
                // Our own trouble must not become calls to Genesys: look again, until the deadline.
                Err(Step::Store(store::Error::Slow { .. })) => Next::Look,
                Err(Step::Store(error)) => return self.bypass(&error).await,
            };
            if Instant::now() >= self.deadline && !matches!(next, Next::Answer(_)) {
                return self.fall_back(Failure::Deadline);
            }
            step = match next {
                Next::Answer(answer) => return Ok(answer),
                Next::Look => self.look().await,
                Next::Consider(entry) => self.consider(entry).await,
                Next::Contend(base) => self.contend(base).await,
            };
        }
    }

    /// Answers with more than the store keeps, fetched past it; but not for a customer who was deleted.
    pub(super) async fn read_expanded(mut self, expand: &Expand) -> Result<Answer, Failure> {
        // A pointer leads to the canonical customer's key, once; a tombstone may stand there.
        while let Ok(entry) = self.room.parts.store.get(&self.key).await {
            match self.view(entry) {
                View::Answer(answer) if matches!(answer.outcome, Outcome::Deleted) => return Ok(answer),
                View::Follow(canonical, pointer) => {
                    if self.go_to(canonical, Some(pointer)).is_err() {
                        break;
                    }
                }
                View::Contend(Base::Absent) => match self.get_under_previous_key().await {
                    Ok(Some(answer)) if matches!(answer.outcome, Outcome::Deleted) => return Ok(answer),
                    Ok(_) | Err(_) => break,
                },
                View::Answer(_) | View::Contend(_) | View::Wait(_) => break,
            }
        }
        let parts = &self.room.parts;
        let since = parts.clock.now();
        let fetched = parts.upstream.fetch_expanded(self.asked.tenant(), self.customer, expand, self.deadline).await;
        // What is kept is not what was asked for, so there is nothing to fall back on.
        let outcome = match fetched? {
            Fetched::Absent => Outcome::Absent,
            Fetched::Found(profile) => Outcome::Found(profile.into()),
        };
        Ok(Answer { outcome, how: How::Expanded, unsettled: false, since })
    }

    async fn look(&mut self) -> Result<Next, Step> {
        Ok(Next::Consider(self.room.parts.store.get(&self.key).await?))
    }

    async fn consider(&mut self, entry: Option<Entry>) -> Result<Next, Step> {
        let view = self.view(entry);
        self.act_on(view).await
    }

    async fn act_on(&mut self, view: View) -> Result<Next, Step> {
        match view {
            View::Answer(answer) => Ok(Next::Answer(answer)),
            View::Follow(canonical, pointer) => {
                self.go_to(canonical, Some(pointer))?;
                Ok(Next::Look)
            }
            View::Contend(base) => {
                let kept = if matches!(base, Base::Absent) { self.get_under_previous_key().await? } else { None };
                match kept {
                    Some(answer) => Ok(Next::Answer(answer)),
                    None => self.contend(base).await,
                }
            }
            View::Wait(seen) => self.follow(seen).await,
        }
    }

    fn view(&mut self, entry: Option<Entry>) -> View {
        match entry {
            None => View::Contend(Base::Absent),
            Some(Entry::Corrupt(bytes)) => View::Contend(Base::Corrupt(bytes)),
            Some(Entry::Leased(leased)) => View::Wait(leased.token),
            Some(Entry::Tombstone(tombstone)) => {
                let since = tombstone.written_at;
                self.verify(tombstone);
                let how = How::Hit { remaining: None, refreshing: false };
                View::Answer(Answer { outcome: Outcome::Deleted, how, unsettled: false, since })
            }
            Some(Entry::Record(record)) => self.view_record(record),
        }
    }

    fn view_record(&mut self, record: Record) -> View {
        let (base, dead) = (Base::Token(record.token), Base::Dead(record.token));
        if record.identity != self.at {
            // About someone else: a digest that collides, or a value copied here. A miss.
            tracing::warn!(key = %self.key, "a stored record is about another customer; it is not served");
            return View::Contend(dead);
        }
        let freshness = freshness::judge(&record, self.room.parts.clock.now());
        let refreshing = match freshness {
            Freshness::Fresh { remaining } => self.refresh_if_due(&record, remaining),
            Freshness::Stale { .. } | Freshness::Expired => false,
        };
        match (freshness, &record.content) {
            // What the store could not open is a miss, however fresh.
            (Freshness::Expired, _) | (_, Content::Sealed(_)) => View::Contend(dead),
            (_, Content::Pointer(canonical)) if self.through.is_none() && *canonical != self.at => {
                let known = record.fetched_at.plus(record.fetch_cost);
                View::Follow(canonical.clone(), Pointer { token: record.token, known })
            }
            // A chain of pointers, or one to itself: a miss.
            (_, Content::Pointer(_)) => View::Contend(base),
            // Fetched while upstream did not show the merge yet. It does now, or did once: the pointer knows.
            (_, Content::Negative) if self.through.is_some_and(|pointer| record.fetched_at < pointer.known) => {
                View::Contend(base)
            }
            (Freshness::Fresh { remaining }, Content::Found(_) | Content::Negative) => {
                let how = if self.waited {
                    How::Collapsed { over: self.over() }
                } else {
                    How::Hit { remaining: Some(remaining), refreshing }
                };
                Answer::of(&record, how).map_or(View::Contend(base), View::Answer)
            }
            (Freshness::Stale { since }, Content::Found(_) | Content::Negative) => {
                self.stale = Some((record, since));
                View::Contend(base)
            }
        }
    }

    /// Asks for the lease; leads if it is granted, waits for its holder if not.
    async fn contend(&mut self, base: Base) -> Result<Next, Step> {
        self.room.parts.faults.betray(self.customer.expose());
        let (store, ttl) = (&self.room.parts.store, self.times.lease_ttl);
        match store.lease(&self.key, &base, Token::draw(), ttl).await? {
            LeaseAnswer::Granted(lease) => {
                let (flight, seat) = self.room.flights.start(&self.key, lease.witness());
                let mission = self.mission();
                let task = spans::lead(&self.key, Cause::Miss, async move { mission.lead(lease, flight).await });
                self.room.parts.shutdown.spawn(task);
                self.sit(seat, true).await
            }
            LeaseAnswer::Held { seen, .. } => self.follow(seen).await,
            LeaseAnswer::Changed(entry) => Ok(Next::Consider(Some(entry))),
        }
    }

    /// Waits for whoever fetches, then looks again or takes their result.
    async fn follow(&mut self, seen: Token) -> Result<Next, Step> {
        if let Some(seat) = self.room.flights.join(&self.key, seen) {
            return self.sit(seat, false).await;
        }
        let (parts, patience) = (&self.room.parts, self.times.lease_ttl);
        let mut seat = self.room.waiters.join(&self.key, seen, patience, &parts.store, &parts.shutdown);
        match seat.landed(self.limit()).await {
            Landing::Landed(glimpse) => {
                self.waited = true;
                Ok(Next::Consider(glimpse?))
            }
            Landing::Lost => self.look_again(),
            Landing::TimedOut => Err(Step::Failed(Failure::Deadline)),
        }
    }

    /// Whom this lookup waited for is lost: with it, in all likelihood, this process is ending.
    fn look_again(&self) -> Result<Next, Step> {
        if self.room.parts.shutdown.is_requested() { Err(Step::Failed(Failure::Draining)) } else { Ok(Next::Look) }
    }

    async fn sit(&mut self, mut seat: Seat<Landed>, leads: bool) -> Result<Next, Step> {
        let landing = seat.landed(self.limit()).await;
        self.waited |= !leads;
        let over = self.over();
        let how = |stored| if leads { How::Fetched { over, stored } } else { How::Collapsed { over } };
        match landing {
            Landing::Landed(Landed::Stored(record)) => Ok(Next::answer(&record, how(true), false)),
            Landing::Landed(Landed::Refused(record)) => Ok(Next::answer(&record, how(false), true)),
            Landing::Landed(Landed::Unstored(record)) => Ok(Next::answer(&record, how(false), false)),
            Landing::Landed(Landed::Elsewhere { canonical, pointer, known }) => {
                self.move_on(canonical, Pointer { token: pointer, known })
            }
            Landing::Landed(Landed::Failed(error)) => Err(Step::Failed(error.into())),
            Landing::Lost => self.look_again(),
            Landing::TimedOut => Err(Step::Failed(Failure::Deadline)),
        }
    }

    /// The profile fetched is another customer's: go on there, or, if a pointer led here that is no
    /// longer true, replace that pointer.
    fn move_on(&mut self, canonical: Identity, pointer: Pointer) -> Result<Next, Step> {
        match self.through {
            None => {
                self.go_to(canonical, Some(pointer))?;
                Ok(Next::Look)
            }
            Some(outdated) => {
                self.go_to(self.asked.clone(), None)?;
                Ok(Next::Contend(Base::Token(outdated.token)))
            }
        }
    }

    fn go_to(&mut self, identity: Identity, through: Option<Pointer>) -> Result<(), Step> {
        self.moves += 1;
        if self.moves > MAX_MOVES {
            return Err(Step::Failed(Failure::MergeLoop));
        }
        self.key = identity.key();
        self.at = identity;
        self.through = through;
        self.stale = None;
        Ok(())
    }

    /// Asks Genesys past the store.
    async fn bypass(self, error: &store::Error) -> Result<Answer, Failure> {
        tracing::debug!(key = %self.key, %error, "lookup goes past the store");
        let (key, tenant) = (self.asked.key(), self.asked.tenant());
        let asked = bypass::ask(self.room, &key, tenant, self.customer, self.times.lease_ttl, self.deadline).await;
        let Passed { fetched, since } = match asked {
            Ok(passed) => passed,
            Err(failure) => return self.fall_back(failure),
        };
        let outcome = match fetched {
            Ok(Fetched::Found(profile)) => Outcome::Found(profile.into()),
            Ok(Fetched::Absent) => Outcome::Absent,
            Err(error) => return self.fall_back(error.into()),
        };
        Ok(Answer { outcome, how: How::Bypass, unsettled: false, since })
    }

    /// Answers with the stale record, if there is one, else fails.
    fn fall_back(self, failure: Failure) -> Result<Answer, Failure> {
        let why = match &failure {
            Failure::Deadline => StaleReason::SoftTimeout,
            Failure::Upstream(_) | Failure::MergeLoop | Failure::Draining => StaleReason::Error,
        };
        let stale = self.stale.as_ref();
        stale.and_then(|(record, since)| Answer::of(record, How::Stale { since: *since, why })).ok_or(failure)
    }

    pub(super) fn mission(&self) -> FetchTask {
        FetchTask {
            room: Arc::clone(self.room),
            times: self.times.clone(),
            identity: self.at.clone(),
            customer: self.customer.clone(),
            through_pointer: self.through.is_some(),
        }
    }

    /// Until when this lookup waits: with something stale at hand, not for long.
    fn limit(&self) -> Instant {
        match self.stale {
            Some(_) => self.deadline.min(Instant::now() + self.times.soft_timeout),
            None => self.deadline,
        }
    }

    fn over(&self) -> Over {
        if self.stale.is_some() { Over::Stale } else { Over::Miss }
    }
}

/// Why a step leads nowhere.
#[derive(Debug)]
pub(super) enum Step {
    Failed(Failure),
    Store(store::Error),
}

impl From<store::Error> for Step {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Next {
    /// Answers with a record; a pointer is no answer, so look where it stands.
    fn answer(record: &Record, how: How, unsettled: bool) -> Self {
        match Answer::of(record, how) {
            Some(mut answer) => {
                answer.unsettled |= unsettled;
                Self::Answer(answer)
            }
            None => Self::Look,
        }
    }
}
