//! Judges a recorded history; a pure function.
//!
//! # Stale
//!
//! An answer is *older* than a change of its customer if it shows an earlier version. It is stale if it is older
//! than a change one of whose events was applied before the lookup began, and any of these holds:
//!
//! - it is not labelled `unsettled` (nor labelled as answered without the store);
//! - upstream read it before the event was applied;
//! - the lookup began later than `settlement` after the read side of upstream showed the change;
//! - the change is a deletion, and the answer is a profile although the store was reachable.
//!
//! Where it is unknown which of two things came first, the comparison favours the service, so that each finding is a fault:
//!
//! - An event counts as applied when the consumer's log line was *read* before the request was sent.
//! - "Read before the event was applied" compares the sandbox's stamp with the time at which the consumer *took* the
//!   event, both by this machine's clock. It is used only for a change with one event, one delivery of which reached
//!   every key first; otherwise a key may have been visited earlier.
//! - Upstream shows a change at most `read_lag` after its writer was answered.
//! - The start of the lookup is compared with the settlement, not its end, since an answer may be in transit for long.
//!
//! # Backwards
//!
//! The value at a key only becomes newer: each fill was fetched under a lease that was granted after the previous lease
//! was filled or void, and the read side of upstream does not go back. So after *any* reader got what the store held (a
//! hit, or a fetch that was `stored`), no later lookup, by any reader through any process, shows an earlier version.
//!
//! - An answer that the store did not hold sets no such bound: a refused fill, or a fetch past an unreachable store, may
//!   be newer than the store until its event is applied.
//! - An answer that may show any of several versions counts as the oldest: an absent customer may not exist yet.
//! - A tombstone sets no bound for an answer past an unreachable store, since it may be ahead of the read side.
//!
//! # By a number
//!
//! An answer by a phone number is judged twice: as one about the number, and as one about its owner.
//!
//! - The versions of a number are its moves. An answer that shows a customer who got the number several times counts as the
//!   last of these moves: it names the right person, whatever the profile shows. When Genesys was asked who has the number
//!   is not known; the profile may have been read at another time.
//! - The profile must be one that a lookup by the owner's id may answer at that time. It sets no bound for later answers,
//!   since a search does not fill the customer's entry.
//!
//! # Impossible
//!
//! A version that the customer never had, or that was written after the answer; 410 or 404 for a customer that
//! was not deleted; by a number, the profile of somebody who does not show it.

pub(crate) mod age;
#[cfg(test)]
mod tests;

use std::fmt;

use uuid::Uuid;

use super::history::{
    AnswerLabel, ChangeKind, CustomerNumber, EventApply, InitialState, Observation, ObservedAnswer, ProfileChange,
    RunHistory, RunMicros, WallMillis,
};

/// The time bounds that the service and its upstream promise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeBounds {
    /// The longest time from a change's answer until the read side of upstream shows it.
    pub(crate) read_lag: RunMicros,
    /// The longest time from then until no older profile is answered:
    /// see [`rules::unsettled`](profile_edge::rules#unsettled).
    pub(crate) settlement: RunMicros,
}

/// How many faults of each kind are described.
const DESCRIBED: usize = 5;

/// Why an answer is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum OracleFault {
    NotLabelled,
    ReadBeforeTheApply,
    PastTheSettlement,
    DeletedAndServed,
    Backwards,
    Impossible,
}

/// The result of judging a history.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) answers: usize,
    /// Answers to lookups that began within 250 ms after a change of their customer was applied.
    pub(crate) right_after_an_apply: usize,
    /// Answers that were older than an applied event, and allowed, since they were labelled.
    pub(crate) lagging: usize,
    /// The longest time from an applied event to the start of a lookup with an older answer.
    pub(crate) longest_staleness: RunMicros,
    pub(crate) faults: Vec<(OracleFault, String)>,
    pub(crate) events: usize,
    pub(crate) applied: usize,
}

/// One version of a customer, after the initial one.
#[derive(Debug)]
struct CustomerVersion {
    number: u32,
    kind: ChangeKind,
    began: RunMicros,
    shown: RunMicros,
    applied: Option<RunMicros>,
    taken_at: Option<WallMillis>,
    /// Its events.
    events: Vec<Uuid>,
    /// Of a number: who got it.
    owner: Option<CustomerNumber>,
}

/// The versions of a customer: the initial one, and those of its changes.
#[derive(Debug)]
struct CustomerTimeline {
    id: String,
    start: InitialState,
    versions: Vec<CustomerVersion>,
}

/// An answer, and the versions that it may show.
struct PlacedAnswer<'a> {
    answer: &'a ObservedAnswer,
    newest: usize,
    oldest: usize,
}

/// Judges a history.
pub(crate) fn judge(history: &RunHistory, bounds: TimeBounds) -> Judgement {
    let timelines = timelines(history, bounds);
    let events: Vec<_> = history.changes.iter().flat_map(|change| &change.events).collect();
    let mut judgement = Judgement {
        answers: history.answers.len(),
        events: events.len(),
        applied: events.iter().filter(|event| history.applies.contains_key(event)).count(),
        ..Judgement::default()
    };
    let mut of_customer: Vec<Vec<ObservedAnswer>> = vec![Vec::new(); timelines.len()];
    for answer in &history.answers {
        let about_owner = timelines[answer.customer as usize].about_owner(answer);
        for answer in [*answer].into_iter().chain(about_owner) {
            of_customer[answer.customer as usize].push(answer);
        }
    }
    for (timeline, answers) in timelines.iter().zip(&of_customer) {
        let mut placed = Vec::with_capacity(answers.len());
        for answer in answers {
            match timeline.version(answer) {
                Some(version) => {
                    judgement.check_staleness(timeline, answer, version, bounds);
                    placed.push(PlacedAnswer { answer, newest: version, oldest: timeline.oldest(answer, version) });
                }
                None => judgement.add_fault(OracleFault::Impossible, timeline, answer, None),
            }
        }
        judgement.check_order(timeline, &placed);
    }
    judgement
}

fn timelines(history: &RunHistory, bounds: TimeBounds) -> Vec<CustomerTimeline> {
    let timeline =
        |(id, start): &(String, InitialState)| CustomerTimeline { id: id.clone(), start: *start, versions: Vec::new() };
    let mut timelines: Vec<_> = history.customers.iter().map(timeline).collect();
    let mut changes: Vec<_> = history.changes.iter().collect();
    changes.sort_by_key(|change| change.began);
    for change in changes {
        let applies: Vec<_> = change.events.iter().filter_map(|event| history.applies.get(event)).collect();
        for customer in &change.customers {
            let timeline = &mut timelines[*customer as usize];
            let owner = change.customers.first().copied().filter(|_| timeline.start == InitialState::Number);
            let version = version_of(change, &applies, bounds);
            // Another event may have visited this key earlier. The profile of an owner may have been read before the
            // pointer to it; its own time is judged with its owner.
            let taken_at = version.taken_at.filter(|_| version.events.len() == 1 && owner.is_none());
            timeline.versions.push(CustomerVersion { owner, taken_at, ..version });
        }
    }
    timelines
}

fn version_of(change: &ProfileChange, applies: &[&EventApply], bounds: TimeBounds) -> CustomerVersion {
    let first = applies.iter().min_by_key(|apply| apply.observed);
    CustomerVersion {
        number: change.number,
        kind: change.kind,
        began: change.began,
        shown: change.ended + bounds.read_lag,
        applied: first.map(|apply| apply.observed),
        taken_at: first.and_then(|apply| apply.taken_at),
        events: change.events.clone(),
        owner: None,
    }
}

impl CustomerTimeline {
    /// Returns an answer by this number as one about the customer whom it shows.
    fn about_owner(&self, answer: &ObservedAnswer) -> Option<ObservedAnswer> {
        let (Observation::Profile(moved), Some(version)) = (answer.saw, answer.of_owner) else { return None };
        let customer = self.versions.iter().find(|version| version.number == moved)?.owner?;
        let saw = Observation::Profile(version);
        Some(ObservedAnswer { customer, saw, of_owner: None, from_store: false, ..*answer })
    }

    /// Returns the version that this change wrote.
    fn written(&self, number: u32) -> Option<usize> {
        let is_it = |version: &CustomerVersion| version.number == number && version.kind == ChangeKind::Write;
        self.versions.iter().position(is_it).map(|index| index + 1)
    }

    /// Returns the oldest version that an answer may show; `newest` is the newest version with the same appearance.
    fn oldest(&self, answer: &ObservedAnswer, newest: usize) -> usize {
        let deleted = self.versions.iter().position(|version| version.kind == ChangeKind::Delete);
        match (answer.saw, self.start) {
            (Observation::Profile(moved), InitialState::Number) => self.written(moved).unwrap_or(newest),
            (Observation::Profile(_), _) => newest,
            // Customers that do not exist yet and deleted customers look alike.
            (Observation::Absent, InitialState::Absent | InitialState::Number) => 0,
            (Observation::Absent, InitialState::Invented) | (Observation::Deleted, _) => {
                deleted.map_or(newest, |index| index + 1)
            }
        }
    }

    /// Returns the version that an answer shows: the number of changes. Of versions that look alike, the newest.
    fn version(&self, answer: &ObservedAnswer) -> Option<usize> {
        let had_begun = |version: &&CustomerVersion| version.began <= answer.ended;
        let deleted =
            self.versions.iter().rposition(|version| version.kind == ChangeKind::Delete && had_begun(&version));
        match (answer.saw, self.start) {
            (Observation::Profile(0), InitialState::Invented) => Some(0),
            (Observation::Profile(0), InitialState::Absent | InitialState::Number) => None,
            (Observation::Profile(number), _) => {
                let shown = self.written(number).filter(|version| had_begun(&&self.versions[version - 1]))?;
                let owner = self.versions[shown - 1].owner;
                let again = |version: &CustomerVersion| version.owner == owner && had_begun(&version);
                let newest = owner.and_then(|_| self.versions.iter().rposition(again));
                Some(newest.map_or(shown, |index| index + 1))
            }
            (Observation::Absent, InitialState::Absent | InitialState::Number) => {
                Some(deleted.map_or(0, |index| index + 1))
            }
            (Observation::Absent, InitialState::Invented) | (Observation::Deleted, _) => deleted.map(|index| index + 1),
        }
    }
}

impl Judgement {
    /// Returns the number of faults of these kinds.
    pub(crate) fn count(&self, of: impl Fn(OracleFault) -> bool) -> usize {
        self.faults.iter().filter(|(fault, _)| of(*fault)).count()
    }

    fn check_staleness(
        &mut self,
        timeline: &CustomerTimeline,
        answer: &ObservedAnswer,
        version: usize,
        bounds: TimeBounds,
    ) {
        let is_applied = |version: &&CustomerVersion| version.applied.is_some_and(|applied| applied < answer.began);
        let is_recent = |version: &CustomerVersion| {
            version.applied.is_some_and(|applied| answer.began.saturating_sub(applied) < 250_000)
        };
        self.right_after_an_apply += usize::from(timeline.versions.iter().filter(is_applied).any(is_recent));
        let missed = || timeline.versions[version..].iter().filter(is_applied);
        let Some(since) = missed().filter_map(|version| version.applied).min() else { return };
        self.longest_staleness = self.longest_staleness.max(answer.began - since);
        let fault = missed().find_map(|version| {
            let read_before = answer.read_at.zip(version.taken_at).is_some_and(|(read, taken)| read < taken);
            let served = version.kind == ChangeKind::Delete && answer.saw != Observation::Absent;
            if served && answer.label != AnswerLabel::StoreUnavailable {
                Some(OracleFault::DeletedAndServed)
            } else if answer.label == AnswerLabel::None {
                Some(OracleFault::NotLabelled)
            } else if read_before {
                Some(OracleFault::ReadBeforeTheApply)
            } else if answer.began > version.shown + bounds.settlement {
                Some(OracleFault::PastTheSettlement)
            } else {
                None
            }
        });
        match fault {
            Some(fault) => self.add_fault(fault, timeline, answer, None),
            None => self.lagging += 1,
        }
    }

    fn check_order(&mut self, timeline: &CustomerTimeline, placed: &[PlacedAnswer<'_>]) {
        let from_store = highest(placed.iter().filter(|placed| placed.answer.from_store));
        let shown = highest(
            placed.iter().filter(|placed| placed.answer.from_store && placed.answer.saw != Observation::Deleted),
        );
        for PlacedAnswer { answer, newest, .. } in placed {
            let before = if answer.label == AnswerLabel::StoreUnavailable { &shown } else { &from_store };
            let known = before.partition_point(|placed| placed.answer.ended < answer.began);
            let newer = known.checked_sub(1).map(|last| &before[last]).filter(|newer| newer.oldest > *newest);
            if let Some(newer) = newer {
                self.add_fault(OracleFault::Backwards, timeline, answer, Some(newer.answer));
            }
        }
    }

    /// Adds a fault; `newer` is an answer that came before, where that makes it one.
    fn add_fault(
        &mut self,
        fault: OracleFault,
        timeline: &CustomerTimeline,
        answer: &ObservedAnswer,
        newer: Option<&ObservedAnswer>,
    ) {
        let mut description = String::new();
        if self.count(|known| known == fault) < DESCRIBED {
            let near = timeline.versions.iter().rev().filter(|version| version.began <= answer.ended);
            let (id, port, near) = (&timeline.id, answer.port, near.take(6).collect::<Vec<_>>());
            description = format!("{id} through {port}: {answer:?} after, newest first: {near:?}; newer: {newer:?}");
        }
        self.faults.push((fault, description));
    }

    /// Adds the result of another history.
    pub(crate) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.right_after_an_apply += other.right_after_an_apply;
        self.lagging += other.lagging;
        self.longest_staleness = self.longest_staleness.max(other.longest_staleness);
        self.faults.extend(other.faults);
        self.events += other.events;
        self.applied += other.applied;
    }
}

/// Returns the answers, in order of time, that certainly showed a higher version than those before.
fn highest<'a>(placed: impl Iterator<Item = &'a PlacedAnswer<'a>>) -> Vec<&'a PlacedAnswer<'a>> {
    let mut seen: Vec<_> = placed.collect();
    seen.sort_unstable_by_key(|placed| placed.answer.ended);
    let mut top = None;
    seen.retain(|placed| {
        let is_higher = Some(placed.oldest) > top;
        top = top.max(Some(placed.oldest));
        is_higher
    });
    seen
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backwards = self.count(|fault| fault == OracleFault::Backwards);
        let impossible = self.count(|fault| fault == OracleFault::Impossible);
        let millis = self.longest_staleness / 1_000;
        let stale = self.faults.len() - backwards - impossible;
        writeln!(f, "answers checked            {}", self.answers)?;
        writeln!(f, "  right after an apply     {}", self.right_after_an_apply)?;
        writeln!(f, "  older, and labelled      {}", self.lagging)?;
        writeln!(f, "stale answers              {stale}")?;
        writeln!(f, "backwards                  {backwards}")?;
        writeln!(f, "impossible                 {impossible}")?;
        writeln!(f, "longest staleness          {millis} ms after an apply")?;
        writeln!(f, "events applied             {}", self.applied)?;
        write!(f, "events lost                {}", self.events - self.applied)
    }
}
