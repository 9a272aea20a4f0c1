//! Asking Genesys who has an identifier: the leader of the identifier's entry.
//!
//! # The steps
//!
//! 1. With a hint, the lease of the customer whom it names is taken first, then that of the identifier; then the request is
//!    sent. If the answer is that customer, both entries are filled from it: one request.
//! 2. Without a hint the customer is not known before the answer, and no request that was sent before the lease of a key stood
//!    may fill it. So the profile is returned to the lookup that asked, the identifier gets a pointer, and a request of
//!    its own fills the customer's entry in the background. Its lease is taken before the pointer is filled: whoever follows
//!    the pointer waits for that request instead of sending another one.
//!
//! The lookups that wait for an identifier get nothing from its leader: they read again, because only the two entries
//! together show whether the answer is recent enough for them ([`rules::identifier-pointer`](crate::rules#identifier-pointer)).

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::{CustomerId, Identifier, Identity, Modified, Profile};
use crate::faults::Fault;
use crate::metrics::PointerOutcome;
use crate::spans::{self, Cause};
use crate::store::fence::FenceVerdict;
use crate::store::{Base, Content, Entry, Found, IdentifierPointer, Lease, LeaseAnswer, Record, Token};
use crate::upstream::{self, FetchTimes, Fetched, Requester, Search};

use super::fill::{FetchOutcome, Filler, Sent};
use super::hint::Hint;
use super::leader::{FetchTask, LeaderResult};
use super::phases::LeaderTimes;
use super::reader::StepError;
use super::single_flight::Leader;
use super::{AnswerSource, Config, ForwardReason, LookupAnswer, LookupContext, LookupOutcome};

/// The task that asks for one identifier.
#[derive(Debug)]
pub(super) struct IdentifyTask {
    pub(super) context: Arc<LookupContext>,
    pub(super) config: Config,
    pub(super) identifier: Identifier,
    /// The identity of the identifier, whose entry is filled.
    pub(super) identity: Identity,
    pub(super) requester: Requester,
    /// Why the lookup asks.
    pub(super) over: ForwardReason,
    /// The generation of the tenant's records, known before the request is sent.
    pub(super) generation: u64,
}

/// What a task resulted in, for the lookup that started it.
#[derive(Debug)]
pub(super) enum Identified {
    /// The answer.
    Answer(LookupAnswer),
    /// Another lookup asks, or fetches the customer: wait until there is another entry than `seen`.
    Wait { at: Identity, seen: Token },
    /// An entry has changed meanwhile.
    Again,
}

/// The lease of the customer whom the hint names.
struct ContactLease {
    identity: Identity,
    known: Option<Modified>,
    lease: Lease,
    leader: Leader<LeaderResult>,
}

/// What is known beside the answer of Genesys.
enum Beside {
    /// The customer's entry holds a tombstone.
    Deleted,
    /// The entry was filled from the answer, under this token.
    Filled(Token),
    /// The entry is filled by another request, if at all.
    Separate,
}

impl IdentifyTask {
    /// Takes the leases, asks, and fills; returns also how long that took. `base` is what the identifier's entry holds.
    pub(super) async fn run(self, base: Base, hint: Option<Hint>) -> (Result<Identified, StepError>, LeaderTimes) {
        let mut times = LeaderTimes::default();
        let identified = self.identify(base, hint, &mut times).await;
        (identified, times)
    }

    async fn identify(&self, base: Base, hint: Option<Hint>, times: &mut LeaderTimes) -> Result<Identified, StepError> {
        let (store, ttl) = (&self.context.deps.store, self.config.lease_ttl);
        let contact = match hint {
            None => None,
            Some(Hint { identity, base, known }) => {
                let key = identity.key();
                match store.lease(&key, &base, Token::draw(), ttl).await? {
                    LeaseAnswer::Granted(lease) => {
                        let (leader, _follower) = self.context.flights.start(&key, lease.witness());
                        Some(ContactLease { identity, known, lease, leader })
                    }
                    LeaseAnswer::Held { seen, .. } => return Ok(Identified::Wait { at: identity, seen }),
                    LeaseAnswer::Changed(_) => return Ok(Identified::Again),
                }
            }
        };
        let key = self.identity.key();
        match store.lease(&key, &base, Token::draw(), ttl).await {
            Ok(LeaseAnswer::Granted(lease)) => {
                let (leader, _follower) = self.context.flights.start(&key, lease.witness());
                self.ask(lease, leader, contact, times).await
            }
            answer => {
                self.give_up(contact).await;
                match answer? {
                    LeaseAnswer::Held { seen, .. } => Ok(Identified::Wait { at: self.identity.clone(), seen }),
                    LeaseAnswer::Granted(_) | LeaseAnswer::Changed(_) => Ok(Identified::Again),
                }
            }
        }
    }

    async fn ask(
        &self,
        lease: Lease,
        leader: Leader<LeaderResult>,
        contact: Option<ContactLease>,
        times: &mut LeaderTimes,
    ) -> Result<Identified, StepError> {
        let deps = &self.context.deps;
        let sent = Sent { at: deps.clock.now(), started: Instant::now() };
        let (search, deadline) = (Search::Identifier(self.identifier.clone()), sent.started + self.config.lease_ttl);
        let fetch = deps.upstream.search(self.identity.tenant(), &search, &self.requester, deadline);
        let fetched = FetchTimes::measure(fetch, &mut times.fetch).await;
        deps.faults.point(Fault::PauseBeforeFill).await;
        let fetched = fetched.and_then(|fetched| match fetched {
            Fetched::Absent => Ok(None),
            Fetched::Found(mut profile) => {
                let canonical = profile.canonical.take();
                let unnamed = upstream::Error::Unusable { reason: "the contact of an identifier has no id" };
                Ok(Some((canonical.ok_or(unnamed)?, profile)))
            }
        });
        let filled_from = Instant::now();
        let answer = match fetched {
            Ok(Some((canonical, profile))) => self.found(lease, contact, canonical, profile, sent).await,
            Ok(None) => {
                self.give_up(contact).await;
                self.absent(lease, sent, false).await
            }
            Err(error) => {
                self.give_up(contact).await;
                self.filler(&self.identity).release(lease).await;
                leader.complete(FetchOutcome::Failed(error.clone(), self.requester.clone()).into());
                return Err(StepError::Failed(error.into()));
            }
        };
        times.fill = filled_from.elapsed();
        leader.complete(FetchOutcome::Again.into());
        Ok(Identified::Answer(answer))
    }

    /// Nobody has the identifier; or the one who had it was `deleted`, which Genesys does not show yet.
    async fn absent(&self, lease: Lease, sent: Sent, deleted: bool) -> LookupAnswer {
        let filler = self.filler(&self.identity);
        let mut record = sent.stamp(filler.record(&lease, Content::Negative, None));
        if deleted {
            (record.settled, record.ttl) = (false, record.ttl.min(self.config.unsettled_ttl));
        }
        let unsettled = !record.settled;
        let filled = filler.fill(lease, record).await;
        self.answer(LookupOutcome::Absent, &filled, unsettled, sent)
    }

    async fn found(
        &self,
        lease: Lease,
        contact: Option<ContactLease>,
        canonical: CustomerId,
        profile: Profile,
        sent: Sent,
    ) -> LookupAnswer {
        let deps = &self.context.deps;
        let to = deps.hasher.identify(self.identity.tenant(), &canonical);
        self.context.watch(&to, &canonical);
        let found = self.context.found(self.identity.tenant(), profile);
        let (beside, mut unsettled) = match contact {
            Some(contact) if contact.identity == to && found.modified >= contact.known => {
                self.fill_contact(contact, &found, sent).await
            }
            // The search of Genesys is behind the profile that is stored, which stays.
            Some(contact) if contact.identity == to => {
                self.give_up(Some(contact)).await;
                (Beside::Separate, true)
            }
            other => {
                if other.is_some() {
                    deps.metrics.identifier_pointers.with(PointerOutcome::Moved).increment(1);
                }
                self.give_up(other).await;
                self.fetch_contact(&to, canonical, found.modified).await
            }
        };
        let filled_with = match beside {
            Beside::Deleted => return self.absent(lease, sent, true).await,
            Beside::Filled(token) => Some(token),
            Beside::Separate => None,
        };
        // A contact that does not show the identifier may have lost it: its stamp proves nothing.
        let modified = found.modified.filter(|_| found.identifiers.contains(&self.identity));
        let filler = self.filler(&self.identity);
        let pointer = IdentifierPointer { to: to.clone(), filled_with };
        let record = sent.stamp(filler.record(&lease, Content::IdentifierPointer(pointer), modified));
        unsettled |= !record.settled;
        let filled = filler.fill(lease, record).await;
        self.context.guesses.insert(self.identity.key(), to.clone());
        LookupAnswer { identity: Some(to), ..self.answer(LookupOutcome::Found(found), &filled, unsettled, sent) }
    }

    /// Fills the entry of the customer, whose lease was taken before the request.
    async fn fill_contact(&self, contact: ContactLease, found: &Found, sent: Sent) -> (Beside, bool) {
        let ContactLease { identity, lease, leader, .. } = contact;
        let filler = self.filler(&identity);
        let record = sent.stamp(filler.record(&lease, Content::Found(found.clone()), found.modified));
        let (token, settled) = (record.token, record.settled);
        let filled = filler.fill(lease, record).await;
        let beside = if matches!(filled, FetchOutcome::Stored(_)) { Beside::Filled(token) } else { Beside::Separate };
        let unsettled = !settled || matches!(filled, FetchOutcome::Refused(_));
        leader.complete(filled.into());
        (beside, unsettled)
    }

    /// Starts a request for the customer if nothing is known of it. Returns also whether `modified` may be outdated.
    async fn fetch_contact(&self, to: &Identity, customer: CustomerId, modified: Option<Modified>) -> (Beside, bool) {
        let (deps, key) = (&self.context.deps, to.key());
        let entry = match deps.store.get(&key).await {
            Ok(None) => match deps.store.lease(&key, &Base::Absent, Token::draw(), self.config.lease_ttl).await {
                Ok(LeaseAnswer::Granted(lease)) => {
                    let verdict = lease.judge(modified, deps.settle_window);
                    self.start_fetch(to, customer, lease);
                    return (Beside::Separate, verdict != FenceVerdict::CaughtUp);
                }
                Ok(LeaseAnswer::Changed(entry)) => Some(entry),
                // What its fence says is not known, so `modified` may be outdated.
                Ok(LeaseAnswer::Held { .. }) | Err(_) => return (Beside::Separate, true),
            },
            Ok(entry) => entry,
            Err(_) => return (Beside::Separate, true),
        };
        match entry {
            Some(Entry::Tombstone(_)) => (Beside::Deleted, false),
            Some(Entry::Record(Record { content: Content::Found(stored), settled, .. })) => {
                (Beside::Separate, !settled || stored.modified > modified)
            }
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => (Beside::Separate, true),
        }
    }

    fn start_fetch(&self, to: &Identity, customer: CustomerId, lease: Lease) {
        let key = to.key();
        let (leader, _follower) = self.context.flights.start(&key, lease.witness());
        let fetch = FetchTask {
            context: Arc::clone(&self.context),
            config: self.config.clone(),
            identity: to.clone(),
            customer,
            requester: self.requester.clone(),
            through_pointer: false,
            generation: self.generation,
            seat: None,
        };
        let task = spans::lead(&key, Cause::Miss, async move { fetch.lead(lease, leader).await });
        self.context.deps.shutdown.spawn(task);
    }

    fn answer(&self, outcome: LookupOutcome, filled: &FetchOutcome, unsettled: bool, sent: Sent) -> LookupAnswer {
        let how = AnswerSource::Fetched { over: self.over, stored: matches!(filled, FetchOutcome::Stored(_)) };
        let unsettled = unsettled || matches!(filled, FetchOutcome::Refused(_));
        LookupAnswer { outcome, how, unsettled, unwatched: false, identity: None, since: sent.at }
    }

    async fn give_up(&self, contact: Option<ContactLease>) {
        if let Some(ContactLease { identity, lease, leader, .. }) = contact {
            self.filler(&identity).release(lease).await;
            // The answer is about another customer, or there is none: those who wait ask for themselves.
            leader.complete(FetchOutcome::Again.into());
        }
    }

    fn filler<'a>(&'a self, identity: &'a Identity) -> Filler<'a> {
        Filler { context: &self.context, config: &self.config, identity, generation: self.generation }
    }
}
