//! How old answers are, whether or not the event of a change arrived; a pure function.
//!
//! Deletions are left out: Genesys is not known to notify of them.

use super::{ChangeKind, RunHistory, RunMicros, TimeBounds, timelines};

/// How many answers are described.
const DESCRIBED: usize = 5;

/// The ages of the answers of a history.
#[derive(Debug, Default)]
pub(crate) struct AnswerAges {
    /// The longest time from a change, once upstream showed it, to the start of a lookup with an older answer.
    pub(crate) longest: RunMicros,
    /// How many answers were older than that by more than the bound.
    pub(crate) too_old: usize,
    /// Some of them.
    pub(crate) described: Vec<String>,
}

/// Judges the age of each answer.
pub(crate) fn ages(history: &RunHistory, bounds: TimeBounds, bound: RunMicros) -> AnswerAges {
    let (timelines, mut found) = (timelines(history, bounds), AnswerAges::default());
    for answer in &history.answers {
        let timeline = &timelines[answer.customer as usize];
        // An impossible answer is a fault of another kind.
        let Some(version) = timeline.version(answer) else { continue };
        let missed = timeline.versions[version..].iter().find(|version| version.kind == ChangeKind::Write);
        let Some(missed) = missed else { continue };
        let age = answer.began.saturating_sub(missed.shown);
        found.longest = found.longest.max(age);
        if age > bound {
            found.too_old += 1;
            if found.described.len() < DESCRIBED {
                found.described.push(format!("{age} µs: {answer:?} is older than {missed:?}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{InitialState, Observation, ObservedAnswer, ProfileChange};
    use super::*;
    use crate::oracle::history::AnswerLabel;

    const BOUNDS: TimeBounds = TimeBounds { read_lag: 100, settlement: 0 };

    fn history(kind: ChangeKind, began: RunMicros) -> RunHistory {
        let change = ProfileChange { number: 1, kind, customers: vec![0], began: 10, ended: 20, events: Vec::new() };
        let answer = ObservedAnswer {
            customer: 0,
            port: 0,
            began,
            ended: began + 1,
            saw: Observation::Profile(0),
            of_owner: None,
            label: AnswerLabel::None,
            from_store: true,
            read_at: None,
        };
        let customers = vec![(String::new(), InitialState::Invented)];
        RunHistory { customers, changes: vec![change], answers: vec![answer], ..RunHistory::default() }
    }

    #[test]
    fn an_answer_may_be_older_than_a_change_for_the_bound_only() {
        let judged = |kind, began| {
            let found = ages(&history(kind, began), BOUNDS, 1_000);
            (found.longest, found.too_old, found.described.len())
        };
        assert_eq!(judged(ChangeKind::Write, 1_120), (1_000, 0, 0));
        assert_eq!(judged(ChangeKind::Write, 1_121), (1_001, 1, 1));
        assert_eq!(judged(ChangeKind::Delete, 5_000), (0, 0, 0));
    }
}
