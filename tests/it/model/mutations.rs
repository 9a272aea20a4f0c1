//! The parts of the protocol that the model can leave out, one at a time.

/// A part of a rule that the model leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// The protocol as it is.
    Nothing,

    // lease-is-the-value; the entry is read from the primary only.
    /// A fill stores without any comparison.
    FillComparison,
    /// A fill stores over any lease, not only its own.
    OwnToken,
    /// A lease command that its client repeated may arrive a second time, with the same token.
    TokenForOneAttempt,
    /// A lease is granted although there is another one.
    LeaseExclusion,
    /// The entry is read from the replica.
    PrimaryReads,

    // witness.
    /// A lookup joins whichever flight its process has for the key.
    Witness,
    /// A leader whose fill was refused also answers later lookups.
    RefusedServesOnlyJoined,
    /// Without the store, a lookup joins a leader whose request has been sent.
    JoinBeforeSending,

    // invalidate-before-ack.
    /// The entry is deleted, and the fence is raised in a second step.
    FenceBeforeDelete,
    /// The event is marked as applied, and has its effect in a second step.
    EffectBeforeMark,
    /// The event is acknowledged, and has its effect afterwards.
    EffectBeforeAck,
    /// An outrun event does not delete the entry.
    DeleteWhenOutrun,
    /// A consumer visits no further key after a duplicate.
    EveryKeyVisited,

    // compare-the-read-record.
    /// A refresh compares the content, and not the lock either, which only saves requests.
    TokenOfTheBase,
    /// Not needed for the promise: a fill does not compare the lock, and an event does not delete it.
    Lock,

    // two-stamps; `at` at the coarser precision.
    /// Fills are compared by `at`.
    StampsApart,
    /// Times given in seconds are compared in milliseconds.
    CoarserPrecision,

    // fence: what it remembers, for how long, and how a fill gets it.
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
    /// The fence is read before the lease is requested.
    FenceOfTheLease,

    // unsettled.
    /// Every fill counts as settled.
    UnsettledFills,
    /// A profile that equals the fence counts as settled under doubt.
    UnsettledUnderDoubt,
    /// An answer without `modified` counts as settled.
    UnsettledWhenMissing,
    /// An unsettled fill has the full TTL.
    ShortUnsettled,

    // tombstone.
    /// A deletion writes a tombstone whatever the fence knows.
    TombstoneOnlyByTheNewest,
    /// On equal `at` an update beats a deletion.
    DeletionBeatsUpdate,
    /// On equal `at` a deletion beats a creation, without doubt.
    DoubtOfEqualCreation,
    /// An evicted tombstone is not put back.
    TombstoneWrittenAgain,
    /// A replayed deletion without a fence writes a tombstone.
    ReplayWritesNoTombstone,
    /// An older update removes a tombstone.
    OlderUpdateLeavesTombstone,
    /// A later event leaves a tombstone.
    LaterEventRemovesTombstone,
    /// A verification accepts any profile.
    VerifiedIsLater,
    /// A verified profile replaces any tombstone, and the lock is not compared, which only saves requests.
    SameTombstone,
    /// The fence still says "deleted" after a verified profile.
    VerifiedOverrules,

    // pointer.
    /// A profile is stored under the requested alias.
    CanonicalKeyOnly,
    /// A leader that finds an alias gives its followers the profile.
    AliasAnswersNobody,
    /// A merge evicts only the canonical customer.
    EveryNameEvicted,

    // memcached: the orders of its commands.
    /// The fence is not compared when an event raises it.
    ComparedFence,
    /// A tombstone replaces what is at K, without another look at the fence after that was read.
    FenceAfterTheEntry,
    /// A tombstone that an event leaves keeps its token.
    KeptTombstoneRenewed,
    /// A restored tombstone replaces anything, not only the lease.
    RestoredOverTheLease,
    /// The fence is not compared when a verified profile overrules it.
    ComparedOverruling,
    /// A verified profile is stored before the fence is overruled.
    OverruledFirst,
    /// A profile that verifies a tombstone is not compared with a later deletion that has raised the fence.
    OvertakenTombstone,
    /// A refreshed record overrules the fence, as a verified profile does.
    OnlyTombstonesOverruled,

    // dedup.
    /// Not needed for the promise: applied events are not remembered.
    Dedup,

    // failover.
    /// The journal is not replayed.
    JournalReplay,
    /// Events are acknowledged before the replica has their effect.
    ReplicaWait,
    /// A duplicate is acknowledged without waiting for the replica.
    DuplicateWaits,
}
