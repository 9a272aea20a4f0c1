//! The protocol in single commands: what Memcached does where Redis runs a script.
//!
//! A step is one command of `src/store/memcached/`. Between any two of them other commands may come, any key may be evicted,
//! and the process may stop. A delivery that is repeated stands also for a command that arrives late, after its process gave
//! up and the event was delivered once more.
//!
//! # Commands that are one step
//!
//! - *A value that is read, and replaced only if its version is unchanged.* If it is changed, nothing is written, and all
//!   begins again. If not, it might have been read just before it was written. So the fence of an event is read together
//!   with K, and once more when it is written ([`fence_changed`] lets the event begin again).
//! - *The mark of an event, with the first read*, if no other delivery has the same event.
//! - *The read of K, with the lease that is added where it found nothing*: a later read would have found the same.
//! - *K and its lock, at a fill*: an event deletes the lock before it changes K. An eviction might as well come later.
//! - *The removal of a lock after a fill, with the fill*; but the process may stop in between.
//!
//! The version of K is known by the token and the kind of what is there: nothing is written twice with the same.
//!
//! # What is left out
//!
//! A second key: each has commands of its own, which concern no other key. Leases in place of unreadable entries, sealed
//! tombstones, the numbers of the change feed, and answers of a server that has no memory: they decide nothing.
//! [`OneFetchPerLease`](super::invariants::Invariant::OneFetchPerLease) is checked where K holds a lease. A lock only saves a
//! second fetch: it may be lost after the fill has compared it.

mod events;
mod leaders;

use super::history::{self, created, deleted, updated};
use super::invariants::{Broken, Invariant};
use super::is_large;
use super::mutations::Without;
use super::removals::{Removal, removals};
use super::report::{expect_broken, explore_all};
use super::setup::{self, CRASHES, EVICTS, PLAIN, QUIET, Setup, Trouble};
use super::state::{Entry, Progress, State, Token, Work};
use super::steps::still_known;

pub(super) use events::event;
pub(super) use leaders::{begin, fill, leader, lock_beside};

/// Keeps what refers to the fence or to K only while that is unchanged.
pub(super) fn settle(setup: &Setup, state: &mut State) {
    let (slot, deliveries) = (&mut state.store[0], &mut state.deliveries);
    for work in deliveries.iter_mut().map(|delivery| &mut delivery.work) {
        let is_lease = matches!(slot.entry, Entry::Leased(_));
        if slot.entry.token() != work.seen || is_lease != work.seen_lease {
            (work.seen, work.seen_lease) = (Token::NONE, false);
        }
    }
    slot.announced &= !slot.applied;
    slot.known &= slot.fence.map_or(0, |fence| fence.holds) | still_known(setup, slot.entry);
    // Two deliveries of one event are alike.
    for place in 1..setup.deliveries.len() {
        if setup.deliveries[place] == setup.deliveries[place - 1] && deliveries[place - 1] < deliveries[place] {
            deliveries.swap(place - 1, place);
        }
    }
}

/// A fence was written or lost: a write that compares it fails.
pub(super) fn fence_changed(setup: &Setup, state: &mut State) {
    for work in state.deliveries.iter_mut().map(|delivery| &mut delivery.work) {
        if work.progress == Progress::Read && setup.without != Without::ComparedFence {
            *work = Work::default();
        }
    }
    for leader in state.leaders.iter_mut().flatten() {
        leader.same_fence = false;
    }
}

/// Other lookups of the process may come while a leader goes on, because its own may be abandoned.
const COMMANDS: Setup = Setup { commands: true, processes: 1, trouble: CRASHES, ..PLAIN };

const LOSES: Trouble = Trouble { fence: true, ..CRASHES };

const FILLS: Setup = Setup {
    name: "memcached: an update delivered twice, two leaders, every key lost",
    deliveries: &[0, 0],
    leaders: 2,
    trouble: EVICTS,
    ..COMMANDS
};

const JOINED: Setup = Setup {
    name: "memcached: an update, two lookups of two leaders",
    lookups: 2,
    leaders: 2,
    refresh: true,
    ..COMMANDS
};

const ORDER: Setup = Setup {
    name: "memcached: two updates, every key lost",
    history: history::UPDATED_TWICE,
    deliveries: &[0, 1],
    trouble: LOSES,
    ..COMMANDS
};

const BIRTH: Setup = Setup {
    name: "memcached: created, then updated",
    born: false,
    history: &[created(20), updated(30)],
    deliveries: &[0, 1],
    ..COMMANDS
};

const RECREATION: Setup = Setup {
    name: "memcached: deleted and created again",
    history: history::RECREATED,
    deliveries: &[0, 1],
    ..COMMANDS
};

const REFRESH: Setup =
    Setup { name: "memcached: deleted and created again, records refreshed", refresh: true, ..RECREATION };

const REPLAY: Setup = Setup {
    name: "memcached: deleted and created again, the deletion replayed at any time",
    deliveries: &[0, 1, setup::REDRIVEN],
    trouble: QUIET,
    ..RECREATION
};

const TWICE: Setup = Setup {
    name: "memcached: a deletion delivered twice, every key lost",
    history: &[deleted(20)],
    deliveries: &[0, 0],
    trouble: EVICTS,
    ..COMMANDS
};

/// The event of the creation comes later than all.
const VERIFICATION: Setup = Setup {
    name: "memcached: deleted, created and deleted again, verified",
    history: history::RECREATED_DELETED,
    deliveries: &[0, 2],
    verify: true,
    trouble: QUIET,
    ..COMMANDS
};

const STOPPED: Setup = Setup {
    name: "large memcached: deleted, created and deleted again, with stops",
    trouble: Trouble { lock: true, ..CRASHES },
    ..VERIFICATION
};

/// The event of the creation comes later than all.
const LATE_UPDATE: Setup = Setup {
    name: "memcached: updated, deleted, created again, verified",
    history: history::UPDATED_DELETED_RECREATED,
    deliveries: &[0, 1],
    ..VERIFICATION
};

const SMALL: [Setup; 9] = [RECREATION, ORDER, REPLAY, FILLS, VERIFICATION, LATE_UPDATE, TWICE, JOINED, BIRTH];

/// The configurations of the nightly run.
const LARGE: [Setup; 6] = [
    Setup { name: "large memcached: two updates, two processes", processes: 2, ..ORDER },
    Setup { name: "large memcached: deleted and created again, every key lost", trouble: LOSES, ..RECREATION },
    REFRESH,
    STOPPED,
    Setup { name: "large memcached: updated, deleted, created again, with stops", trouble: CRASHES, ..LATE_UPDATE },
    Setup { name: "large memcached: the deletion replayed at any time, with stops", trouble: CRASHES, ..REPLAY },
];

#[test]
fn every_order_of_memcached_commands_keeps_every_invariant() {
    explore_all(if is_large() { &LARGE } else { &SMALL }, Broken::ALL);
}

#[test]
fn a_lock_and_marks_in_memcached_only_save_work() {
    explore_all(&[Setup { without: Without::Lock, ..VERIFICATION }], Broken::ALL);
    explore_all(&[Setup { without: Without::Dedup, ..FILLS }], Broken::ALL);
}

/// Without losses and stops.
const fn quietly(setup: Setup) -> Setup {
    Setup { trouble: QUIET, ..setup }
}

removals! {
    memcached_fills_that_compare_nothing: "lease-is-the-value", FillComparison, FILLS => NoStaleAnswer;
    memcached_leases_over_leases: "lease-is-the-value", LeaseExclusion, FILLS => OneFetchPerLease;
    memcached_fences_read_before_the_lease: "fence", FenceOfTheLease, FILLS => SettledLabel;
    memcached_fences_that_are_not_compared: "fence", ComparedFence, quietly(ORDER) => SettledLabel;
    memcached_deletes_before_the_fence: "invalidate-before-ack", FenceBeforeDelete, FILLS => Settlement;
    memcached_marks_before_the_delete: "invalidate-before-ack", EffectBeforeMark, FILLS => EveryEventApplied;
    memcached_acknowledgements_before_the_effect: "invalidate-before-ack", EffectBeforeAck, FILLS => EveryEventApplied;
    memcached_tombstones_without_the_fence_after_k: "tombstone", FenceAfterTheEntry, quietly(RECREATION) => RecreationShows;
    memcached_tombstones_that_keep_their_token: "tombstone", KeptTombstoneRenewed, LATE_UPDATE => NothingReadBefore;
    memcached_tombstones_not_written_again: "tombstone", TombstoneWrittenAgain, quietly(RECREATION) => DeletedNotServed;
    memcached_tombstones_restored_over_anything: "tombstone", RestoredOverTheLease, quietly(RECREATION) => RecreationShows;
    memcached_fences_overruled_without_comparison: "tombstone", ComparedOverruling, VERIFICATION => DeletedNotServed;
    memcached_fences_overruled_after_the_entry: "tombstone", OverruledFirst, STOPPED => RecreationShows;
    memcached_verifications_overtaken_by_a_deletion: "tombstone", OvertakenTombstone, VERIFICATION => DeletedNotServed;
    memcached_refreshes_that_overrule_the_fence: "tombstone", OnlyTombstonesOverruled, quietly(REFRESH) => DeletedNotServed;
}
