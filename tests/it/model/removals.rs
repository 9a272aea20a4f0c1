//! Each rule of DESIGN section 2, taken away: the configuration in which that breaks the promise, and the
//! invariant that it breaks.

use super::invariants::Invariant;
use super::mutations::Without;
use super::report::expect_broken;
use super::setup::{self, Setup, Trouble};

/// A rule that is taken away from a configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    pub(super) rule: &'static str,
    pub(super) setup: Setup,
    pub(super) breaks: Invariant,
}

/// Marks of applied events may be lost, too.
const fn losing_marks(setup: Setup) -> Setup {
    Setup { trouble: Trouble { seen: true, ..setup.trouble }, ..setup }
}

/// Makes a test of each row: `name: rule, what is taken away, configuration => what breaks`.
macro_rules! removals {
    ($($name:ident: $rule:literal, $without:ident, $setup:expr => $breaks:ident;)*) => {
        $(#[test]
        fn $name() {
            let setup = Setup { without: Without::$without, ..$setup };
            expect_broken(&Removal { rule: $rule, setup, breaks: Invariant::$breaks });
        })*
    };
}

removals! {
    a_fill_that_compares_nothing: "1 ◆", FillComparison, setup::FILLS => NoStaleAnswer;
    a_fill_that_compares_nothing_goes_backwards: "1 ◆", FillComparison, setup::FILLS => NoBackwards;
    a_fill_over_any_lease: "1 ◆", OwnToken, setup::FILLS => NoStaleAnswer;
    a_token_used_for_two_attempts: "1 ◆", TokenForOneAttempt, setup::FILLS => NoStaleAnswer;
    a_lease_over_a_lease: "1 ◆", LeaseExclusion, setup::FILLS => OneFetchPerLease;
    a_read_from_the_replica: "K from the primary ◆", PrimaryReads, setup::FILLS => NoStaleAnswer;
    a_join_without_a_witness: "2 ◆", Witness, setup::FILLS => JoinedNeverOlder;
    a_refused_leader_that_answers_later_lookups: "2 ◆", RefusedServesOnlyJoined, setup::FILLS => JoinedNeverOlder;
    a_join_after_the_request_was_sent: "2 ◆", JoinBeforeSending, setup::UNREACHABLE => JoinedNeverOlder;
    a_delete_before_the_fence: "3 ◆", FenceBeforeDelete, setup::FILLS => Settlement;
    a_mark_before_the_effect: "3 ◆", EffectBeforeMark, setup::FILLS => EveryEventApplied;
    an_acknowledgement_before_the_effect: "3 ◆", EffectBeforeAck, setup::FILLS => EveryEventApplied;
    an_outrun_event_that_does_not_delete: "3 ◆", DeleteWhenOutrun, setup::ORDER => NoStaleAnswer;
    a_visit_that_ends_at_a_duplicate: "3 ◆", EveryKeyVisited, setup::MERGE => EveryKeyVisited;
    a_refresh_that_compares_contents: "4 ◆", TokenOfTheBase, setup::REFRESH => NoStaleAnswer;
    a_refresh_without_a_lock: "4 (economy)", Lock, setup::REFRESH => OneFetchPerLease;
    fills_judged_by_the_time_of_events: "5 ◇", StampsApart, setup::SKEW => SettledLabel;
    seconds_compared_in_milliseconds: "5 ◇", CoarserPrecision, setup::COARSE_TIMES => DeletedNotServed;
    a_fence_that_keeps_the_last_modified: "6 ◇", HighestModified, setup::ORDER => SettledLabel;
    a_fence_that_keeps_the_last_at: "6 ◇", HighestAt, setup::LATE_UPDATE => RecreationShows;
    ties_without_doubt: "6 ◇", DoubtOfTies, setup::TIES => SettledLabel;
    removed_tombstones_without_doubt: "6 ◇", DoubtOfDeletions, setup::RESTORE => SettledLabel;
    a_fence_that_dies_before_redelivery: "6 ◇", FenceOutlivesRedelivery, setup::BURIAL => RecreationShows;
    a_fence_read_before_the_lease: "6 ◇", FenceOfTheLease, setup::FILLS => SettledLabel;
    fills_that_are_all_settled: "7 ◇", UnsettledFills, setup::FILLS => SettledLabel;
    an_equal_profile_settled_under_doubt: "7 ◇", UnsettledUnderDoubt, setup::TIES => SettledLabel;
    a_missing_modified_that_settles: "7 ◇", UnsettledWhenMissing, setup::BIRTH => SettledLabel;
    an_unsettled_fill_kept_long: "7 ◇", ShortUnsettled, setup::FILLS => Settlement;
    a_deletion_that_always_buries: "8 ◇", BuryOnlyTheNewest, setup::BURIAL => RecreationShows;
    an_update_that_beats_an_equal_deletion: "8 ◇", DeletionBeatsUpdate, setup::COARSE_TIMES => DeletedNotServed;
    a_deletion_that_beats_an_equal_creation: "8 ◇", DoubtOfEqualCreation, setup::ONE_SECOND => RecreationShows;
    an_evicted_tombstone_not_put_back: "8 ◇", TombstonePutBack, setup::BURIAL => DeletedNotServed;
    a_replayed_deletion_that_buries: "8 ◇", ReplayDoesNotBury, setup::REDRIVE => RecreationShows;
    an_older_update_that_removes_a_tombstone: "8 ◇", OlderUpdateLeavesTombstone, setup::LATE_UPDATE => DeletedNotServed;
    a_later_event_that_leaves_a_tombstone: "8 ◇", LaterEventRemovesTombstone, setup::BURIAL => RecreationShows;
    a_verification_that_takes_any_profile: "8 ◇", VerifiedIsLater, setup::DELETED_AGAIN => DeletedNotServed;
    a_verified_profile_over_any_tombstone: "8 ◇", VeryTombstone, setup::DELETED_AGAIN => DeletedNotServed;
    a_verified_profile_that_leaves_the_fence: "8 ◇", VerifiedOverrules, setup::DELETED_AGAIN => RecreationShows;
    a_profile_stored_under_an_alias: "9 ◇", CanonicalKeyOnly, setup::MERGE => AliasNeverOlder;
    an_alias_leader_that_answers_its_followers: "9 ◇", AliasTellsNothing, setup::MERGE => AliasNeverOlder;
    a_merge_that_evicts_one_name: "9 ◇", EveryNameEvicted, setup::MERGE => AliasNeverOlder;
    a_failover_without_replay: "12", JournalReplay, setup::REPLAY => EveryEventApplied;
    an_acknowledgement_before_the_replica: "12", ReplicaWait, setup::WAIT => EveryEventApplied;
    a_duplicate_that_does_not_wait: "12", DuplicateWaits, setup::WAIT => EveryEventApplied;
    an_outrun_event_that_does_not_delete_serves_what_was_read_before: "3 ◆", DeleteWhenOutrun, setup::ORDER => NothingReadBefore;
    a_fence_that_dies_before_redelivery_mislabels: "6 ◇", FenceOutlivesRedelivery, losing_marks(setup::FILLS) => SettledLabel;
}
