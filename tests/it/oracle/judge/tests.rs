//! Small histories: one for each kind of fault, and one for each permitted case.

use uuid::Uuid;

use super::*;

const MS: RunMicros = 1_000;
const BOUNDS: TimeBounds = TimeBounds { read_lag: 100 * MS, settlement: 1_000 * MS };
/// The wall-clock time at the start of every history.
const WALL: WallMillis = 1_800_000_000_000;

/// Builds a history of one customer.
struct HistoryBuilder(RunHistory);

impl HistoryBuilder {
    fn begin(start: InitialState) -> Self {
        Self(RunHistory { customers: vec![(String::new(), start)], ..RunHistory::default() })
    }

    /// Adds a change at this time, in milliseconds; its event is applied at `applied`, or never.
    fn change(mut self, kind: ChangeKind, number: u32, at: RunMicros, applied: Option<RunMicros>) -> Self {
        let event = Uuid::from_u128(u128::from(number));
        let (began, ended) = (at * MS, at * MS + MS);
        self.0.changes.push(ProfileChange { number, kind, customers: vec![0], began, ended, events: vec![event] });
        if let Some(applied) = applied {
            let taken_at = Some(WALL + applied as WallMillis - 5);
            self.0.applies.insert(event, EventApply { observed: applied * MS, taken_at });
        }
        self
    }

    /// Adds an answer to a lookup that began at this time, in milliseconds, and took 2 ms.
    fn answer(mut self, began: RunMicros, saw: Observation, how: impl FnOnce(&mut ObservedAnswer)) -> Self {
        let (began, ended) = (began * MS, began * MS + 2 * MS);
        let mut answer = ObservedAnswer {
            customer: 0,
            port: 0,
            began,
            ended,
            saw,
            of_owner: None,
            label: AnswerLabel::None,
            from_store: true,
            read_at: None,
        };
        how(&mut answer);
        self.0.answers.push(answer);
        self
    }

    fn faults(&self) -> Vec<OracleFault> {
        judge(&self.0, BOUNDS).faults.into_iter().map(|(fault, _)| fault).collect()
    }
}

/// One update, number 1, at 10 ms, applied at 20 ms.
fn updated() -> HistoryBuilder {
    HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Write, 1, 10, Some(20))
}

fn deleted() -> HistoryBuilder {
    HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Delete, 1, 10, Some(20))
}

fn plain(_: &mut ObservedAnswer) {}

fn unsettled(answer: &mut ObservedAnswer) {
    answer.label = AnswerLabel::Unsettled;
}

fn past_the_store(answer: &mut ObservedAnswer) {
    answer.label = AnswerLabel::StoreUnavailable;
    answer.from_store = false;
}

#[test]
fn up_to_date_answers_are_not_faults() {
    let story = updated()
        .answer(5, Observation::Profile(0), plain)
        .answer(15, Observation::Profile(0), plain)
        .answer(19, Observation::Profile(0), plain)
        .answer(25, Observation::Profile(1), plain);
    assert_eq!(story.faults(), []);
}

#[test]
fn an_unlabelled_answer_older_than_an_applied_event_is_stale() {
    assert_eq!(updated().answer(21, Observation::Profile(0), plain).faults(), [OracleFault::NotLabelled]);
    assert_eq!(updated().answer(19, Observation::Profile(0), plain).faults(), []);
    let never = HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Write, 1, 10, None);
    assert_eq!(never.answer(5_000, Observation::Profile(0), plain).faults(), []);
}

#[test]
fn a_later_applied_event_counts_without_the_earlier_one() {
    let overtaken = HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Write, 1, 10, None).change(
        ChangeKind::Write,
        2,
        11,
        Some(20),
    );
    assert_eq!(overtaken.answer(21, Observation::Profile(0), plain).faults(), [OracleFault::NotLabelled]);
}

#[test]
fn an_unsettled_older_answer_is_allowed_until_settlement_ends() {
    // Upstream shows the change at 111 ms at the latest; the settlement ends one second later.
    assert_eq!(updated().answer(1_111, Observation::Profile(0), unsettled).faults(), []);
    assert_eq!(updated().answer(1_112, Observation::Profile(0), unsettled).faults(), [OracleFault::PastTheSettlement]);
    assert_eq!(
        updated().answer(1_112, Observation::Profile(0), past_the_store).faults(),
        [OracleFault::PastTheSettlement]
    );
}

#[test]
fn an_unsettled_answer_read_before_the_apply_is_stale() {
    // The event is taken at 15 ms.
    let read = |at: WallMillis| {
        move |answer: &mut ObservedAnswer| {
            unsettled(answer);
            answer.read_at = Some(WALL + at);
        }
    };
    assert_eq!(updated().answer(21, Observation::Profile(0), read(14)).faults(), [OracleFault::ReadBeforeTheApply]);
    assert_eq!(updated().answer(21, Observation::Profile(0), read(15)).faults(), []);
}

#[test]
fn an_apply_of_unknown_start_does_not_make_a_read_stale() {
    let mut story = updated().answer(21, Observation::Profile(0), |answer| {
        unsettled(answer);
        answer.read_at = Some(WALL + 14);
    });
    story.0.applies.values_mut().for_each(|apply| apply.taken_at = None);
    assert_eq!(story.faults(), []);
}

#[test]
fn a_deleted_customer_is_served_only_past_an_unreachable_store() {
    assert_eq!(deleted().answer(21, Observation::Deleted, plain).faults(), []);
    assert_eq!(deleted().answer(21, Observation::Absent, plain).faults(), []);
    assert_eq!(deleted().answer(21, Observation::Profile(0), unsettled).faults(), [OracleFault::DeletedAndServed]);
    assert_eq!(deleted().answer(21, Observation::Profile(0), past_the_store).faults(), []);
}

#[test]
fn a_created_customer_may_be_absent_only_until_its_event_is_applied() {
    let created = || HistoryBuilder::begin(InitialState::Absent).change(ChangeKind::Write, 1, 10, Some(20));
    assert_eq!(created().answer(15, Observation::Absent, plain).faults(), []);
    assert_eq!(created().answer(21, Observation::Absent, plain).faults(), [OracleFault::NotLabelled]);
    assert_eq!(created().answer(21, Observation::Absent, unsettled).faults(), []);
}

#[test]
fn no_answer_is_older_than_an_earlier_answer_from_the_store() {
    let story = || {
        HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Write, 1, 10, None).change(
            ChangeKind::Write,
            2,
            11,
            None,
        )
    };
    let back = story().answer(15, Observation::Profile(2), plain).answer(18, Observation::Profile(1), plain);
    assert_eq!(back.faults(), [OracleFault::Backwards]);
    // The lookups overlap, so they have no order.
    let overlapping = story().answer(15, Observation::Profile(2), plain).answer(17, Observation::Profile(1), plain);
    assert_eq!(overlapping.faults(), []);
    // The order of the record is not the order of the answers.
    let back = story().answer(18, Observation::Profile(1), unsettled).answer(15, Observation::Profile(2), plain);
    assert_eq!(back.faults(), [OracleFault::Backwards]);
}

#[test]
fn an_answer_not_from_the_store_sets_no_bound_but_has_one() {
    let story = || HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Write, 1, 10, None);
    let ahead = story().answer(15, Observation::Profile(1), past_the_store).answer(18, Observation::Profile(0), plain);
    assert_eq!(ahead.faults(), []);
    let behind = story().answer(15, Observation::Profile(1), plain).answer(18, Observation::Profile(0), past_the_store);
    assert_eq!(behind.faults(), [OracleFault::Backwards]);
}

#[test]
fn a_tombstone_may_be_ahead_of_upstream_but_not_of_the_store() {
    let story = || HistoryBuilder::begin(InitialState::Invented).change(ChangeKind::Delete, 1, 10, None);
    let past = story().answer(15, Observation::Deleted, plain).answer(18, Observation::Profile(0), past_the_store);
    assert_eq!(past.faults(), []);
    let back = story().answer(15, Observation::Deleted, plain).answer(18, Observation::Profile(0), unsettled);
    assert_eq!(back.faults(), [OracleFault::Backwards]);
}

#[test]
fn an_absent_customer_may_not_have_been_created_yet() {
    let story = || {
        HistoryBuilder::begin(InitialState::Absent).change(ChangeKind::Write, 1, 10, None).change(
            ChangeKind::Delete,
            2,
            30,
            None,
        )
    };
    let before = story().answer(35, Observation::Absent, unsettled).answer(40, Observation::Profile(1), plain);
    assert_eq!(before.faults(), []);
    let after = story().answer(35, Observation::Deleted, plain).answer(40, Observation::Profile(1), plain);
    assert_eq!(after.faults(), [OracleFault::Backwards]);
}

#[test]
fn a_version_that_never_existed_is_impossible() {
    assert_eq!(updated().answer(30, Observation::Profile(7), plain).faults(), [OracleFault::Impossible]);
    assert_eq!(updated().answer(5, Observation::Profile(1), plain).faults(), [OracleFault::Impossible]);
    assert_eq!(updated().answer(30, Observation::Deleted, plain).faults(), [OracleFault::Impossible]);
    assert_eq!(updated().answer(30, Observation::Absent, plain).faults(), [OracleFault::Impossible]);
    let created = HistoryBuilder::begin(InitialState::Absent).change(ChangeKind::Write, 1, 10, Some(20));
    assert_eq!(created.answer(30, Observation::Profile(0), plain).faults(), [OracleFault::Impossible]);
}

#[test]
fn a_merge_is_the_next_version_of_every_customer_it_names() {
    let mut story = HistoryBuilder::begin(InitialState::Invented);
    story.0.customers.extend([InitialState::Invented, InitialState::Absent].map(|start| (String::new(), start)));
    let events: Vec<_> = [1, 2, 3].map(Uuid::from_u128).to_vec();
    let merge = ProfileChange {
        number: 1,
        kind: ChangeKind::Write,
        customers: vec![0, 1, 2],
        began: 10 * MS,
        ended: 11 * MS,
        events,
    };
    story.0.applies.insert(merge.events[2], EventApply { observed: 20 * MS, taken_at: Some(WALL) });
    story.0.changes.push(merge);
    for customer in 0..3 {
        let saw = if customer == 2 { Observation::Absent } else { Observation::Profile(0) };
        story = story.answer(21, saw, |answer| answer.customer = customer);
        story = story.answer(25, Observation::Profile(1), |answer| answer.customer = customer);
    }
    assert_eq!(story.faults(), [OracleFault::NotLabelled; 3]);
    let judgement = judge(&story.0, BOUNDS);
    assert_eq!((judgement.events, judgement.applied), (3, 1));
}

/// A number moves from customer 0 to 1 and back, by the changes 1, 2 and 4; change 3 takes it from customer 0.
fn moved(applied: [Option<RunMicros>; 4]) -> HistoryBuilder {
    let mut story = HistoryBuilder::begin(InitialState::Invented);
    story.0.customers.extend([InitialState::Invented, InitialState::Number].map(|start| (String::new(), start)));
    let of: [&[CustomerNumber]; 4] = [&[0, 2], &[1, 2], &[0], &[0, 2]];
    for (number, (of, applied)) in (1..).zip(of.into_iter().zip(applied)) {
        story = story.change(ChangeKind::Write, number, 10 * RunMicros::from(number), applied);
        story.0.changes.last_mut().expect("a change").customers = of.to_vec();
    }
    story
}

/// An answer by the number: the move and the version that the profile shows.
fn by_number(version: u32) -> impl FnOnce(&mut ObservedAnswer) {
    move |answer| (answer.customer, answer.of_owner) = (2, Some(version))
}

#[test]
fn a_number_leads_to_its_owner_once_the_move_is_applied() {
    let all = [Some(15), Some(25), Some(35), Some(45)];
    assert_eq!(moved(all).answer(50, Observation::Profile(4), by_number(4)).faults(), []);
    assert_eq!(moved(all).answer(50, Observation::Profile(2), by_number(2)).faults(), [OracleFault::NotLabelled]);
    assert_eq!(moved(all).answer(50, Observation::Absent, by_number(0)).faults(), [OracleFault::NotLabelled]);
    // It shows no move: somebody else's profile.
    assert_eq!(moved(all).answer(50, Observation::Profile(0), by_number(3)).faults(), [OracleFault::Impossible]);
}

#[test]
fn the_profile_by_a_number_is_judged_like_one_by_its_owners_id() {
    // The owner's first profile names the right person, and is outdated when an event of the owner is applied.
    let second = [Some(15), Some(25), None, None];
    assert_eq!(moved(second).answer(50, Observation::Profile(1), by_number(1)).faults(), []);
    let third = [Some(15), Some(25), Some(35), None];
    assert_eq!(moved(third).answer(50, Observation::Profile(1), by_number(1)).faults(), [OracleFault::NotLabelled]);
    // Before it has the number again, it is the wrong person.
    assert_eq!(moved(second).answer(35, Observation::Profile(1), by_number(1)).faults(), [OracleFault::NotLabelled]);
}

#[test]
fn a_number_does_not_lead_back_to_a_former_owner() {
    let none = [None; 4];
    let back = moved(none).answer(25, Observation::Profile(2), by_number(2));
    assert_eq!(back.answer(30, Observation::Profile(1), by_number(1)).faults(), [OracleFault::Backwards]);
    let again = moved(none).answer(41, Observation::Profile(1), by_number(1));
    assert_eq!(again.answer(45, Observation::Profile(2), by_number(2)).faults(), []);
}
