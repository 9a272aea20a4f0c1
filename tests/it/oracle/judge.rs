//! The judgement: a pure function over a recorded history.
//!
//! # Stale
//!
//! An answer is *older* than a change of its customer if it shows an earlier version. It is stale if it is older
//! than a change one of whose events was applied before the lookup began, and any of these holds:
//!
//! - it does not say `unsettled` (nor that the store could not be asked for what events announced);
//! - upstream read it before the event was applied;
//! - the lookup began later than `settlement` after upstream's read side showed the change;
//! - the change is a deletion, and it is a profile that does not come past an unreachable store.
//!
//! Every comparison gives the service the benefit of what cannot be known, so that each finding is a fault:
//! applied is what a consumer's log was *seen* to say before the request was sent; "read before the apply" compares
//! the sandbox's stamp with the time at which the consumer *took* the event, both by this machine's clock, and only
//! where one consumer and one key are involved, so that no killed consumer can have been first; upstream shows a
//! change at the latest `read_lag` after its writer was answered; and it is the lookup's beginning, not its end, that
//! is held against the settlement, since an answer may be on its way for long.
//!
//! # Backwards
//!
//! What a key holds only ever becomes newer: each fill was fetched under a lease that was granted after the one
//! before it was filled or void, and upstream's read side does not go back. So, once *anyone* was answered with what
//! the store held (a hit, or a fetch that was `stored`), no lookup that begins after that answer, by any reader
//! through any process, shows an earlier version. That is more than one reader's own order. It does not bind those
//! that come after an answer that never stood in the store: a refused fill, or one past an unreachable store, may be
//! newer than what the store holds while no event has told of it. An answer that may show any of several versions binds
//! as the oldest of them: a customer that is absent may not have been created yet. And it does not bind an answer past
//! an unreachable store to a tombstone: a tombstone may be ahead of upstream's read side.
//!
//! # Impossible
//!
//! A version that the customer never had, or that was written after the answer; 410 or 404 for a customer that
//! nobody deleted.

#[cfg(test)]
mod tests;

use std::fmt;

use super::history::{Answer, Apply, Change, Did, History, Label, Moment, Saw, Start, WallMillis};

/// What the service and its upstream promise about time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The longest from a change's answer until upstream's read side shows it.
    pub(super) read_lag: Moment,
    /// DESIGN section 2: the longest from then until no older profile is answered.
    pub(super) settlement: Moment,
}

/// How many faults of a kind are told at length.
const TOLD: usize = 5;

/// Why an answer is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fault {
    NotLabelled,
    ReadBeforeTheApply,
    PastTheSettlement,
    DeletedAndServed,
    Backwards,
    Impossible,
}

/// What came of judging a history.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) answers: usize,
    /// Answers that were asked for within a quarter of a second after a change of their customer was applied.
    pub(super) on_the_heels: usize,
    /// Answers that were older than an applied event, and rightly so, as they said.
    pub(super) lagging: usize,
    /// The longest after an event was applied that a lookup began which an older profile answered.
    pub(super) longest_staleness: Moment,
    pub(super) faults: Vec<(Fault, String)>,
    pub(super) events: usize,
    pub(super) applied: usize,
}

/// One version of a customer, after the one at the start.
#[derive(Debug)]
struct Step {
    number: u32,
    did: Did,
    began: Moment,
    shown: Moment,
    applied: Option<Moment>,
    taken_at: Option<WallMillis>,
}

/// A customer's versions: its start, and its steps.
#[derive(Debug)]
struct Timeline {
    start: Start,
    steps: Vec<Step>,
}

/// An answer, and the versions that it may show.
struct Placed<'a> {
    answer: &'a Answer,
    newest: usize,
    oldest: usize,
}

/// Judges a history.
pub(super) fn judge(history: &History, bounds: Bounds) -> Judgement {
    let timelines = timelines(history, bounds);
    let events: Vec<_> = history.changes.iter().flat_map(|change| &change.events).collect();
    let mut judgement = Judgement {
        answers: history.answers.len(),
        events: events.len(),
        applied: events.iter().filter(|event| history.applies.contains_key(event)).count(),
        ..Judgement::default()
    };
    let mut of_customer: Vec<Vec<&Answer>> = vec![Vec::new(); timelines.len()];
    for answer in &history.answers {
        of_customer[answer.customer as usize].push(answer);
    }
    for (timeline, answers) in timelines.iter().zip(of_customer) {
        let mut placed = Vec::with_capacity(answers.len());
        for answer in answers {
            match timeline.version(answer) {
                Some(version) => {
                    judgement.take_staleness(timeline, answer, version, bounds);
                    placed.push(Placed { answer, newest: version, oldest: timeline.oldest(answer, version) });
                }
                None => judgement.find(Fault::Impossible, timeline, answer),
            }
        }
        judgement.take_order(timeline, &placed);
    }
    judgement
}

fn timelines(history: &History, bounds: Bounds) -> Vec<Timeline> {
    let mut timelines: Vec<_> =
        history.customers.iter().map(|start| Timeline { start: *start, steps: Vec::new() }).collect();
    let mut changes: Vec<_> = history.changes.iter().collect();
    changes.sort_by_key(|change| change.began);
    for change in changes {
        let applies: Vec<_> = change.events.iter().filter_map(|event| history.applies.get(event)).collect();
        for customer in &change.customers {
            timelines[*customer as usize].steps.push(step(change, &applies, bounds));
        }
    }
    timelines
}

fn step(change: &Change, applies: &[&Apply], bounds: Bounds) -> Step {
    let first = applies.iter().min_by_key(|apply| apply.observed);
    // With several events or keys, a consumer that was killed may have been at this key before.
    let alone = change.events.len() == 1 && change.customers.len() == 1;
    Step {
        number: change.number,
        did: change.did,
        began: change.began,
        shown: change.ended + bounds.read_lag,
        applied: first.map(|apply| apply.observed),
        taken_at: first.filter(|_| alone).and_then(|apply| apply.taken_at),
    }
}

impl Timeline {
    /// The oldest version that an answer may show, where `newest` is the newest that looks the same.
    fn oldest(&self, answer: &Answer, newest: usize) -> usize {
        let deleted = self.steps.iter().position(|step| step.did == Did::Delete);
        match (answer.saw, self.start) {
            (Saw::Profile(_), _) => newest,
            // Who was not there yet, and who was deleted, are absent alike.
            (Saw::Absent, Start::Absent) => 0,
            (Saw::Absent, Start::Invented) | (Saw::Deleted, _) => deleted.map_or(newest, |index| index + 1),
        }
    }

    /// The version that an answer shows: how many steps it has seen. Of several that look the same, the newest.
    fn version(&self, answer: &Answer) -> Option<usize> {
        let made = |step: &&Step| step.began <= answer.ended;
        let deleted = self.steps.iter().rposition(|step| step.did == Did::Delete && made(&step));
        match (answer.saw, self.start) {
            (Saw::Profile(0), Start::Invented) => Some(0),
            (Saw::Profile(0), Start::Absent) => None,
            (Saw::Profile(number), _) => {
                let is_it = |step: &Step| step.number == number && step.did == Did::Write && made(&step);
                self.steps.iter().position(is_it).map(|index| index + 1)
            }
            (Saw::Absent, Start::Absent) => Some(deleted.map_or(0, |index| index + 1)),
            (Saw::Absent, Start::Invented) | (Saw::Deleted, _) => deleted.map(|index| index + 1),
        }
    }
}

impl Judgement {
    /// Tells how many findings there are of this kind.
    pub(super) fn count(&self, of: impl Fn(Fault) -> bool) -> usize {
        self.faults.iter().filter(|(fault, _)| of(*fault)).count()
    }

    fn take_staleness(&mut self, timeline: &Timeline, answer: &Answer, version: usize, bounds: Bounds) {
        let is_applied = |step: &&Step| step.applied.is_some_and(|applied| applied < answer.began);
        let heels = |step: &Step| step.applied.is_some_and(|applied| answer.began.saturating_sub(applied) < 250_000);
        self.on_the_heels += usize::from(timeline.steps.iter().filter(is_applied).any(heels));
        let missed = || timeline.steps[version..].iter().filter(is_applied);
        let Some(since) = missed().filter_map(|step| step.applied).min() else { return };
        self.longest_staleness = self.longest_staleness.max(answer.began - since);
        let fault = missed().find_map(|step| {
            let read_before = answer.read_at.zip(step.taken_at).is_some_and(|(read, taken)| read < taken);
            let served = step.did == Did::Delete && answer.saw != Saw::Absent;
            if served && answer.label != Label::StoreUnavailable {
                Some(Fault::DeletedAndServed)
            } else if answer.label == Label::None {
                Some(Fault::NotLabelled)
            } else if read_before {
                Some(Fault::ReadBeforeTheApply)
            } else if answer.began > step.shown + bounds.settlement {
                Some(Fault::PastTheSettlement)
            } else {
                None
            }
        });
        match fault {
            Some(fault) => self.find(fault, timeline, answer),
            None => self.lagging += 1,
        }
    }

    fn take_order(&mut self, timeline: &Timeline, placed: &[Placed<'_>]) {
        let stood = highest(placed.iter().filter(|placed| placed.answer.stood));
        let shown = highest(placed.iter().filter(|placed| placed.answer.stood && placed.answer.saw != Saw::Deleted));
        for Placed { answer, newest, .. } in placed {
            let before = if answer.label == Label::StoreUnavailable { &shown } else { &stood };
            let known = before.partition_point(|(ended, _)| *ended < answer.began);
            if known > 0 && before[known - 1].1 > *newest {
                self.find(Fault::Backwards, timeline, answer);
            }
        }
    }

    fn find(&mut self, fault: Fault, timeline: &Timeline, answer: &Answer) {
        let mut told = String::new();
        if self.count(|known| known == fault) < TOLD {
            let near = timeline.steps.iter().rev().filter(|step| step.began <= answer.ended);
            told = format!("{answer:?} after, newest first: {:?}", near.take(6).collect::<Vec<_>>());
        }
        self.faults.push((fault, told));
    }

    /// Adds what came of another history.
    pub(super) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.on_the_heels += other.on_the_heels;
        self.lagging += other.lagging;
        self.longest_staleness = self.longest_staleness.max(other.longest_staleness);
        self.faults.extend(other.faults);
        self.events += other.events;
        self.applied += other.applied;
    }
}

/// The highest version that was surely answered by each moment, in the order of the moments.
fn highest<'a>(placed: impl Iterator<Item = &'a Placed<'a>>) -> Vec<(Moment, usize)> {
    let mut seen: Vec<_> = placed.map(|placed| (placed.answer.ended, placed.oldest)).collect();
    seen.sort_unstable();
    let mut top = 0;
    for (_, version) in &mut seen {
        top = top.max(*version);
        *version = top;
    }
    seen
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backwards = self.count(|fault| fault == Fault::Backwards);
        let impossible = self.count(|fault| fault == Fault::Impossible);
        let millis = self.longest_staleness / 1_000;
        let stale = self.faults.len() - backwards - impossible;
        writeln!(f, "answers checked            {}", self.answers)?;
        writeln!(f, "  right after an apply     {}", self.on_the_heels)?;
        writeln!(f, "  older, and said so       {}", self.lagging)?;
        writeln!(f, "stale answers              {stale}")?;
        writeln!(f, "backwards                  {backwards}")?;
        writeln!(f, "impossible                 {impossible}")?;
        writeln!(f, "longest staleness          {millis} ms after an apply")?;
        writeln!(f, "events applied             {}", self.applied)?;
        write!(f, "events lost                {}", self.events - self.applied)
    }
}
