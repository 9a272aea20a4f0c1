use proptest::prelude::*;

use super::*;
use crate::domain::{Digest, Precision, Stamps};

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const WINDOW: Duration = Duration::from_secs(600);

fn change(kind: Kind, modified: Option<i64>, at: Option<i64>) -> Change {
    let at = at.map(|millis| EventTime::new(millis, Precision::Millis));
    let stamps = Stamps { modified: modified.map(Modified::from_millis), at };
    Change { event: Digest::from_bytes([0; 16]), of: None, kind, stamps, again: None, force: false }
}

/// What the store keeps between events.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredState {
    fence: Fence,
    tombstone: bool,
}

fn apply_all<'a>(changes: impl IntoIterator<Item = &'a Change>) -> StoredState {
    let mut kept: Option<StoredState> = None;
    for change in changes {
        let tombstone = kept.as_ref().filter(|kept| kept.tombstone).map(|kept| kept.fence.at);
        let raised = raise(kept.as_ref().map(|kept| &kept.fence), tombstone, change, NOW);
        let has_tombstone = match raised.place {
            KeyAction::WriteTombstone(_) => true,
            KeyAction::KeepTombstone => tombstone.is_some(),
            KeyAction::Clear => false,
        };
        kept = Some(StoredState { fence: raised.fence, tombstone: has_tombstone });
    }
    kept.unwrap()
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

proptest! {
    /// The result depends on the events and not on the order of their arrival, as far as their times show an order.
    #[test]
    fn any_order_of_events_gives_the_same_fence_and_tombstone(
        events in prop::collection::vec((any_kind(), 0i64..6), 1..6),
        seed in any::<u64>(),
    ) {
        let changes: Vec<Change> = events.iter().map(|(kind, at)| change(*kind, None, Some(*at))).collect();
        let mut shuffled = changes.clone();
        let mut state = seed;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, usize::try_from(state >> 33).unwrap() % (i + 1));
        }
        let (one, other) = (apply_all(&changes), apply_all(&shuffled));
        prop_assert_eq!(one.fence.at, other.fence.at);
        prop_assert_eq!(one.fence.newest, other.fence.newest);
        prop_assert_eq!(one.tombstone, other.tombstone);
        prop_assert_eq!(one.tombstone, one.fence.says_deleted());
    }

    #[test]
    fn the_fence_only_rises(
        events in prop::collection::vec((any_kind(), prop::option::of(0i64..9), prop::option::of(0i64..9)), 1..8),
    ) {
        let mut fence: Option<Fence> = None;
        for (kind, modified, at) in events {
            let raised = raise(fence.as_ref(), None, &change(kind, modified, at), NOW).fence;
            if let Some(before) = &fence {
                prop_assert!(raised.modified >= before.modified);
                prop_assert!(raised.at.map(EventTime::as_millis) >= before.at.map(EventTime::as_millis));
            }
            fence = Some(raised);
        }
    }

    #[test]
    fn a_profile_older_than_an_event_is_never_settled(
        events in prop::collection::vec(0i64..20, 1..6),
        fetched in 0i64..20,
    ) {
        let changes: Vec<Change> = events.iter().map(|m| change(Kind::Updated, Some(*m), Some(*m))).collect();
        let fence = apply_all(&changes).fence;
        let settled = fence.judge(Some(Modified::from_millis(fetched)), WINDOW, Duration::ZERO) == FenceVerdict::CaughtUp;
        let newest = events.iter().copied().max().unwrap();
        prop_assert!(!settled || fetched >= newest);
        prop_assert!(settled || fetched <= newest);
    }

    #[test]
    fn an_unsettled_lifetime_stays_within_its_bounds(age in 0u64..100_000, ttl in 0u64..100_000) {
        let got = unsettled_lifetime(Duration::from_millis(age), Duration::from_millis(ttl));
        prop_assert!(got <= UNSETTLED_MAX);
        prop_assert!(got >= Duration::from_millis(ttl).min(UNSETTLED_MAX));
    }
}

#[test]
fn two_events_with_one_modified_leave_doubt_until_a_later_one() {
    let tied = [change(Kind::Updated, Some(5), Some(5)), change(Kind::Updated, Some(5), Some(5))];
    let fence = apply_all(&tied).fence;
    assert!(fence.doubt);
    assert!(matches!(
        fence.judge(Some(Modified::from_millis(5)), WINDOW, Duration::ZERO),
        FenceVerdict::Unsettled { .. }
    ));
    assert_eq!(fence.judge(Some(Modified::from_millis(6)), WINDOW, Duration::ZERO), FenceVerdict::CaughtUp);
    let later = [tied[0], tied[1], change(Kind::Updated, Some(6), Some(6))];
    assert!(!apply_all(&later).fence.doubt);
}

#[test]
fn an_event_without_modified_unsettles_profiles_for_the_window() {
    let fence = apply_all(&[change(Kind::Updated, None, None)]).fence;
    assert_eq!(
        fence.judge(Some(Modified::from_millis(9)), WINDOW, Duration::ZERO),
        FenceVerdict::Unsettled { age: Duration::ZERO }
    );
    assert_eq!(fence.judge(None, WINDOW, WINDOW), FenceVerdict::CaughtUp);
}

#[test]
fn a_tombstone_without_its_fence_still_orders_events() {
    let deleted = Some(Some(EventTime::new(10, Precision::Millis)));
    let older = raise(None, deleted, &change(Kind::Updated, None, Some(9)), NOW);
    assert_eq!((older.place, older.outrun), (KeyAction::KeepTombstone, true));
    let later = raise(None, deleted, &change(Kind::Updated, None, Some(11)), NOW);
    assert_eq!(later.place, KeyAction::Clear);
    assert!(later.fence.doubt);
}

#[test]
fn times_of_different_precision_are_equal_within_the_coarser() {
    let second = EventTime::new(10_000, Precision::Seconds);
    let stamps = Stamps { modified: None, at: Some(second) };
    let deletion = Change { stamps, ..change(Kind::Deleted, None, None) };
    let kept = apply_all(&[deletion, change(Kind::Updated, None, Some(10_400))]);
    assert!(kept.tombstone, "an update in the same second may be the older one");
    assert_eq!(kept.fence.at, Some(second));
    assert!(!apply_all(&[deletion, change(Kind::Updated, None, Some(11_000))]).tombstone);
}
