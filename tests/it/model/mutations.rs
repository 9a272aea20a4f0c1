//! What can be taken out of the protocol, one rule at a time.

/// A rule of DESIGN section 2 that the model does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// The protocol as it is.
    Nothing,

    // Rule 1: the lease is the value; K is read from the primary only.
    /// A fill stores whatever stands at K.
    FillComparison,
    /// A fill stores where any lease stands.
    OwnToken,
    /// A lease command that was repeated by its client may arrive a second time, with the same token.
    TokenForOneAttempt,
    /// A lease is granted over one that stands.
    LeaseExclusion,
    /// K is read from the replica.
    PrimaryReads,

    // Rule 2: the witness rule.
    /// A lookup joins whichever flight its process has for the key.
    Witness,
    /// A leader whose fill was refused answers those who come later, too.
    RefusedServesOnlyJoined,
    /// Past the store, a lookup joins a leader whose request has been sent.
    JoinBeforeSending,

    // Rule 3: the order of an event.
    /// K is deleted, and the fence raised in a second step.
    FenceBeforeDelete,
    /// The event is marked as applied, and takes effect in a second step.
    EffectBeforeMark,
    /// The event is acknowledged, and takes effect afterwards.
    EffectBeforeAck,
    /// An event that a later one has outrun does not delete.
    DeleteWhenOutrun,
    /// A consumer that meets a duplicate visits no further key.
    EveryKeyVisited,

    // Rule 4: a refresh compares the very record that it read.
    /// A refresh compares the content, and the lock is not compared either (it is economy).
    TokenOfTheBase,
    /// Economy, not a rule: a fill does not compare the lock, an event does not delete it.
    Lock,

    // Rule 5: two stamps, never mixed; `at` at the coarser precision.
    /// Fills are judged by `at`.
    StampsApart,
    /// Times that were told in seconds are compared in milliseconds.
    CoarserPrecision,

    // Rule 6: what the fence remembers, for how long, and how a fill comes to know it.
    /// The fence remembers the last `modified` that arrived, not the highest.
    HighestModified,
    /// The fence remembers the last `at` that arrived, not the highest.
    HighestAt,
    /// Two events with equal `modified` leave no doubt.
    DoubtOfTies,
    /// A removed tombstone or an outrun deletion leaves no doubt.
    DoubtOfDeletions,
    /// The fence may be gone before the last redelivery.
    FenceOutlivesRedelivery,
    /// The fence is read before the lease is asked for.
    FenceOfTheLease,

    // Rule 7: unsettled fills.
    /// Every fill counts as settled.
    UnsettledFills,
    /// A profile that equals the fence counts as settled under doubt.
    UnsettledUnderDoubt,
    /// An answer without `modified` counts as settled.
    UnsettledWhenMissing,
    /// An unsettled fill is kept as long as any other.
    ShortUnsettled,

    // Rule 8: burials.
    /// A deletion buries whatever the fence knows.
    BuryOnlyTheNewest,
    /// On equal `at` an update beats a deletion.
    DeletionBeatsUpdate,
    /// On equal `at` a deletion beats a creation, without doubt.
    DoubtOfEqualCreation,
    /// An evicted tombstone is not put back.
    TombstonePutBack,
    /// A replayed deletion that finds no fence buries.
    ReplayDoesNotBury,
    /// An older update removes a tombstone.
    OlderUpdateLeavesTombstone,
    /// A later event leaves a tombstone.
    LaterEventRemovesTombstone,
    /// A verification takes any profile.
    VerifiedIsLater,
    /// A verified profile replaces any tombstone (and the lock is not compared: it is economy).
    VeryTombstone,
    /// A verified profile leaves the fence saying "deleted".
    VerifiedOverrules,

    // Rule 9: merges.
    /// A profile is stored under the alias that was asked for.
    CanonicalKeyOnly,
    /// A leader that finds an alias gives its followers the profile.
    AliasTellsNothing,
    /// A merge evicts only the canonical customer.
    EveryNameEvicted,

    // Rule 10: dedup is economy.
    /// Economy, not a rule: applied events are not remembered.
    Dedup,

    // Rule 12: failover.
    /// The journal is not replayed.
    JournalReplay,
    /// Events are acknowledged before the replica has their effect.
    ReplicaWait,
    /// A duplicate is acknowledged without waiting for the replica.
    DuplicateWaits,
}
