//! Hand-made histories, one for each kind of fault and for each excuse.

use uuid::Uuid;

use super::*;

const MS: Moment = 1_000;
const BOUNDS: Bounds = Bounds { read_lag: 100 * MS, settlement: 1_000 * MS };
/// The wall clock at the beginning of every history here.
const WALL: WallMillis = 1_800_000_000_000;

/// A history of one customer that the sandbox invented.
struct Story(History);

impl Story {
    fn begin(start: Start) -> Self {
        Self(History { customers: vec![start], ..History::default() })
    }

    /// Changes the customer at this millisecond, and has the event applied at that one, if at all.
    fn change(mut self, did: Did, number: u32, at: Moment, applied: Option<Moment>) -> Self {
        let event = Uuid::from_u128(u128::from(number));
        let (began, ended) = (at * MS, at * MS + MS);
        self.0.changes.push(Change { number, did, customers: vec![0], began, ended, events: vec![event] });
        if let Some(applied) = applied {
            let taken_at = Some(WALL + applied as WallMillis - 5);
            self.0.applies.insert(event, Apply { observed: applied * MS, taken_at });
        }
        self
    }

    /// Answers a lookup that began at this millisecond and took two.
    fn answer(mut self, began: Moment, saw: Saw, how: impl FnOnce(&mut Answer)) -> Self {
        let (began, ended) = (began * MS, began * MS + 2 * MS);
        let mut answer = Answer { customer: 0, began, ended, saw, label: Label::None, stood: true, read_at: None };
        how(&mut answer);
        self.0.answers.push(answer);
        self
    }

    fn faults(&self) -> Vec<Fault> {
        judge(&self.0, BOUNDS).faults.into_iter().map(|(fault, _)| fault).collect()
    }
}

/// One update, number 1, at 10 ms, applied at 20 ms.
fn updated() -> Story {
    Story::begin(Start::Invented).change(Did::Write, 1, 10, Some(20))
}

fn deleted() -> Story {
    Story::begin(Start::Invented).change(Did::Delete, 1, 10, Some(20))
}

fn plain(_: &mut Answer) {}

fn unsettled(answer: &mut Answer) {
    answer.label = Label::Unsettled;
}

fn past_the_store(answer: &mut Answer) {
    answer.label = Label::StoreUnavailable;
    answer.stood = false;
}

#[test]
fn up_to_date_answers_are_not_faults() {
    let story = updated()
        .answer(5, Saw::Profile(0), plain)
        .answer(15, Saw::Profile(0), plain)
        .answer(19, Saw::Profile(0), plain)
        .answer(25, Saw::Profile(1), plain);
    assert_eq!(story.faults(), []);
}

#[test]
fn an_unlabelled_answer_older_than_an_applied_event_is_stale() {
    assert_eq!(updated().answer(21, Saw::Profile(0), plain).faults(), [Fault::NotLabelled]);
    assert_eq!(updated().answer(19, Saw::Profile(0), plain).faults(), []);
    let never = Story::begin(Start::Invented).change(Did::Write, 1, 10, None);
    assert_eq!(never.answer(5_000, Saw::Profile(0), plain).faults(), []);
}

#[test]
fn a_later_applied_event_counts_without_the_earlier_one() {
    let overtaken = Story::begin(Start::Invented).change(Did::Write, 1, 10, None).change(Did::Write, 2, 11, Some(20));
    assert_eq!(overtaken.answer(21, Saw::Profile(0), plain).faults(), [Fault::NotLabelled]);
}

#[test]
fn an_unsettled_older_answer_is_allowed_until_settlement_ends() {
    // Shown at 111 ms at the latest, settled a second later.
    assert_eq!(updated().answer(1_111, Saw::Profile(0), unsettled).faults(), []);
    assert_eq!(updated().answer(1_112, Saw::Profile(0), unsettled).faults(), [Fault::PastTheSettlement]);
    assert_eq!(updated().answer(1_112, Saw::Profile(0), past_the_store).faults(), [Fault::PastTheSettlement]);
}

#[test]
fn an_unsettled_answer_read_before_the_apply_is_stale() {
    // Taken at 15 ms.
    let read = |at: WallMillis| {
        move |answer: &mut Answer| {
            unsettled(answer);
            answer.read_at = Some(WALL + at);
        }
    };
    assert_eq!(updated().answer(21, Saw::Profile(0), read(14)).faults(), [Fault::ReadBeforeTheApply]);
    assert_eq!(updated().answer(21, Saw::Profile(0), read(15)).faults(), []);
}

#[test]
fn an_apply_of_unknown_start_does_not_make_a_read_stale() {
    let mut story = updated().answer(21, Saw::Profile(0), |answer| {
        unsettled(answer);
        answer.read_at = Some(WALL + 14);
    });
    story.0.applies.values_mut().for_each(|apply| apply.taken_at = None);
    assert_eq!(story.faults(), []);
}

#[test]
fn a_deleted_customer_is_served_only_past_an_unreachable_store() {
    assert_eq!(deleted().answer(21, Saw::Deleted, plain).faults(), []);
    assert_eq!(deleted().answer(21, Saw::Absent, plain).faults(), []);
    assert_eq!(deleted().answer(21, Saw::Profile(0), unsettled).faults(), [Fault::DeletedAndServed]);
    assert_eq!(deleted().answer(21, Saw::Profile(0), past_the_store).faults(), []);
}

#[test]
fn a_created_customer_may_be_absent_only_until_its_event_is_applied() {
    let created = || Story::begin(Start::Absent).change(Did::Write, 1, 10, Some(20));
    assert_eq!(created().answer(15, Saw::Absent, plain).faults(), []);
    assert_eq!(created().answer(21, Saw::Absent, plain).faults(), [Fault::NotLabelled]);
    assert_eq!(created().answer(21, Saw::Absent, unsettled).faults(), []);
}

#[test]
fn no_answer_is_older_than_an_earlier_answer_from_the_store() {
    let story = || Story::begin(Start::Invented).change(Did::Write, 1, 10, None).change(Did::Write, 2, 11, None);
    let back = story().answer(15, Saw::Profile(2), plain).answer(18, Saw::Profile(1), plain);
    assert_eq!(back.faults(), [Fault::Backwards]);
    // The two overlap: neither was first.
    let overlapping = story().answer(15, Saw::Profile(2), plain).answer(17, Saw::Profile(1), plain);
    assert_eq!(overlapping.faults(), []);
    // The order in which answers were taken down is not the order in which they were given.
    let back = story().answer(18, Saw::Profile(1), unsettled).answer(15, Saw::Profile(2), plain);
    assert_eq!(back.faults(), [Fault::Backwards]);
}

#[test]
fn an_answer_not_from_the_store_sets_no_bound_but_has_one() {
    let story = || Story::begin(Start::Invented).change(Did::Write, 1, 10, None);
    let ahead = story().answer(15, Saw::Profile(1), past_the_store).answer(18, Saw::Profile(0), plain);
    assert_eq!(ahead.faults(), []);
    let behind = story().answer(15, Saw::Profile(1), plain).answer(18, Saw::Profile(0), past_the_store);
    assert_eq!(behind.faults(), [Fault::Backwards]);
}

#[test]
fn a_tombstone_may_be_ahead_of_upstream_but_not_of_the_store() {
    let story = || Story::begin(Start::Invented).change(Did::Delete, 1, 10, None);
    let past = story().answer(15, Saw::Deleted, plain).answer(18, Saw::Profile(0), past_the_store);
    assert_eq!(past.faults(), []);
    let back = story().answer(15, Saw::Deleted, plain).answer(18, Saw::Profile(0), unsettled);
    assert_eq!(back.faults(), [Fault::Backwards]);
}

#[test]
fn an_absent_customer_may_not_have_been_created_yet() {
    let story = || Story::begin(Start::Absent).change(Did::Write, 1, 10, None).change(Did::Delete, 2, 30, None);
    let before = story().answer(35, Saw::Absent, unsettled).answer(40, Saw::Profile(1), plain);
    assert_eq!(before.faults(), []);
    let after = story().answer(35, Saw::Deleted, plain).answer(40, Saw::Profile(1), plain);
    assert_eq!(after.faults(), [Fault::Backwards]);
}

#[test]
fn a_version_that_never_existed_is_impossible() {
    assert_eq!(updated().answer(30, Saw::Profile(7), plain).faults(), [Fault::Impossible]);
    assert_eq!(updated().answer(5, Saw::Profile(1), plain).faults(), [Fault::Impossible]);
    assert_eq!(updated().answer(30, Saw::Deleted, plain).faults(), [Fault::Impossible]);
    assert_eq!(updated().answer(30, Saw::Absent, plain).faults(), [Fault::Impossible]);
    let created = Story::begin(Start::Absent).change(Did::Write, 1, 10, Some(20));
    assert_eq!(created.answer(30, Saw::Profile(0), plain).faults(), [Fault::Impossible]);
}

#[test]
fn a_merge_is_the_next_version_of_every_customer_it_names() {
    let mut story = Story::begin(Start::Invented);
    story.0.customers.extend([Start::Invented, Start::Absent]);
    let events: Vec<_> = [1, 2, 3].map(Uuid::from_u128).to_vec();
    let merge = Change { number: 1, did: Did::Write, customers: vec![0, 1, 2], began: 10 * MS, ended: 11 * MS, events };
    story.0.applies.insert(merge.events[2], Apply { observed: 20 * MS, taken_at: Some(WALL) });
    story.0.changes.push(merge);
    for customer in 0..3 {
        let saw = if customer == 2 { Saw::Absent } else { Saw::Profile(0) };
        story = story.answer(21, saw, |answer| answer.customer = customer);
        story = story.answer(25, Saw::Profile(1), |answer| answer.customer = customer);
    }
    assert_eq!(story.faults(), [Fault::NotLabelled; 3]);
    let judgement = judge(&story.0, BOUNDS);
    assert_eq!((judgement.events, judgement.applied), (3, 1));
}
