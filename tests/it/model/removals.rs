//! Each rule of the consistency protocol, removed: the configuration in which that breaks the promise, and the
//! invariant that breaks. Rules are named as in `src/README.md`.

use super::invariants::Invariant;
use super::mutations::Without;
use super::report::expect_broken;
use super::setup::{self, Setup, Trouble};

/// A configuration without one part of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    pub(super) rule: &'static str,
    pub(super) setup: Setup,
    pub(super) breaks: Invariant,
}

/// The marks of applied events may be lost, too.
const fn losing_marks(setup: Setup) -> Setup {
    Setup { trouble: Trouble { seen: true, ..setup.trouble }, ..setup }
}

/// Creates a test of each row: `name: rule, what is removed, configuration => what breaks`.
macro_rules! removals {
    ($($name:ident: $rule:literal, $without:ident, $setup:expr => $breaks:ident;)*) => {
        $(#[test]
        fn $name() {
            let setup = Setup { without: Without::$without, ..$setup };
            expect_broken(&Removal { rule: $rule, setup, breaks: Invariant::$breaks });
        })*
    };
}
pub(super) use removals;

removals! {
    a_fill_that_compares_nothing: "lease-is-the-value", FillComparison, setup::FILLS => NoStaleAnswer;
    a_fill_that_compares_nothing_goes_backwards: "lease-is-the-value", FillComparison, setup::FILLS => NoBackwards;
    a_fill_over_any_lease: "lease-is-the-value", OwnToken, setup::FILLS => NoStaleAnswer;
    a_token_used_for_two_attempts: "lease-is-the-value", TokenForOneAttempt, setup::FILLS => NoStaleAnswer;
    a_lease_over_a_lease: "lease-is-the-value", LeaseExclusion, setup::FILLS => OneFetchPerLease;
    a_read_from_the_replica: "lease-is-the-value", PrimaryReads, setup::FILLS => NoStaleAnswer;
    a_join_without_a_witness: "witness", Witness, setup::FILLS => JoinedNeverOlder;
    a_refused_leader_that_answers_later_lookups: "witness", RefusedServesOnlyJoined, setup::FILLS => JoinedNeverOlder;
    a_join_after_the_request_was_sent: "witness", JoinBeforeSending, setup::UNREACHABLE => JoinedNeverOlder;
    a_delete_before_the_fence: "invalidate-before-ack", FenceBeforeDelete, setup::FILLS => Settlement;
    a_mark_before_the_effect: "invalidate-before-ack", EffectBeforeMark, setup::FILLS => EveryEventApplied;
    an_acknowledgement_before_the_effect: "invalidate-before-ack", EffectBeforeAck, setup::FILLS => EveryEventApplied;
    an_outrun_event_that_does_not_delete: "invalidate-before-ack", DeleteWhenOutrun, setup::ORDER => NoStaleAnswer;
    a_visit_that_ends_at_a_duplicate: "invalidate-before-ack", EveryKeyVisited, setup::MERGE => EveryKeyVisited;
    a_refresh_that_compares_contents: "compare-the-read-record", TokenOfTheBase, setup::REFRESH => NoStaleAnswer;
    a_refresh_without_a_lock: "compare-the-read-record", Lock, setup::REFRESH => OneFetchPerLease;
    fills_judged_by_the_time_of_events: "two-stamps", StampsApart, setup::SKEW => SettledLabel;
    seconds_compared_in_milliseconds: "two-stamps", CoarserPrecision, setup::COARSE_TIMES => DeletedNotServed;
    a_fence_that_keeps_the_last_modified: "fence", HighestModified, setup::ORDER => SettledLabel;
    a_fence_that_keeps_the_last_at: "fence", HighestAt, setup::LATE_UPDATE => RecreationShows;
    ties_without_doubt: "fence", DoubtOfTies, setup::TIES => SettledLabel;
    removed_tombstones_without_doubt: "fence", DoubtOfDeletions, setup::RESTORE => SettledLabel;
    a_fence_that_dies_before_redelivery: "fence", FenceOutlivesRedelivery, setup::RECREATION => RecreationShows;
    a_fence_read_before_the_lease: "fence", FenceOfTheLease, setup::FILLS => SettledLabel;
    fills_that_are_all_settled: "unsettled", UnsettledFills, setup::FILLS => SettledLabel;
    an_equal_profile_settled_under_doubt: "unsettled", UnsettledUnderDoubt, setup::TIES => SettledLabel;
    a_missing_modified_that_settles: "unsettled", UnsettledWhenMissing, setup::BIRTH => SettledLabel;
    an_unsettled_fill_kept_long: "unsettled", ShortUnsettled, setup::FILLS => Settlement;
    a_deletion_that_always_writes_a_tombstone: "tombstone", TombstoneOnlyByTheNewest, setup::RECREATION => RecreationShows;
    an_update_that_beats_an_equal_deletion: "tombstone", DeletionBeatsUpdate, setup::COARSE_TIMES => DeletedNotServed;
    a_deletion_that_beats_an_equal_creation: "tombstone", DoubtOfEqualCreation, setup::ONE_SECOND => RecreationShows;
    an_evicted_tombstone_not_written_again: "tombstone", TombstoneWrittenAgain, setup::RECREATION => DeletedNotServed;
    a_replayed_deletion_that_writes_a_tombstone: "tombstone", ReplayWritesNoTombstone, setup::REDRIVE => RecreationShows;
    an_older_update_that_removes_a_tombstone: "tombstone", OlderUpdateLeavesTombstone, setup::LATE_UPDATE => DeletedNotServed;
    a_later_event_that_leaves_a_tombstone: "tombstone", LaterEventRemovesTombstone, setup::RECREATION => RecreationShows;
    a_verification_that_takes_any_profile: "tombstone", VerifiedIsLater, setup::DELETED_AGAIN => DeletedNotServed;
    a_verified_profile_over_any_tombstone: "tombstone", SameTombstone, setup::DELETED_AGAIN => DeletedNotServed;
    a_verified_profile_that_leaves_the_fence: "tombstone", VerifiedOverrules, setup::DELETED_AGAIN => RecreationShows;
    a_profile_stored_under_an_alias: "pointer", CanonicalKeyOnly, setup::MERGE => AliasNeverOlder;
    an_alias_leader_that_answers_its_followers: "pointer", AliasAnswersNobody, setup::MERGE => AliasNeverOlder;
    a_merge_that_evicts_one_name: "pointer", EveryNameEvicted, setup::MERGE => AliasNeverOlder;
    a_failover_without_replay: "failover", JournalReplay, setup::REPLAY => EveryEventApplied;
    an_acknowledgement_before_the_replica: "failover", ReplicaWait, setup::WAIT => EveryEventApplied;
    a_duplicate_that_does_not_wait: "failover", DuplicateWaits, setup::WAIT => EveryEventApplied;
    an_outrun_event_that_does_not_delete_leaves_an_older_read: "invalidate-before-ack", DeleteWhenOutrun, setup::ORDER => NothingReadBefore;
    a_fence_that_dies_before_redelivery_mislabels: "fence", FenceOutlivesRedelivery, losing_marks(setup::FILLS) => SettledLabel;
}
