//! A model of the consistency protocol (`src/README.md`), explored state by state.
//!
//! # What is modelled
//!
//! One customer with one key, or with two keys of which a merge makes one an alias; processes with several lookups
//! each, their single flights, and leaders that outlive their callers; consumers that visit the keys of an event in
//! any order; the store; Genesys with a read side that lags. The history of a customer is fixed. All else happens in
//! any order: changes, reads, deliveries (reordered, duplicated, returned) and failures ([`setup::Trouble`]). The
//! entry expires or is evicted at any moment, and so are fence, marks and locks. A process is killed, a leader is
//! dropped, a caller disconnects at any step. The store does not answer. A lagging replica takes over.
//!
//! How events raise the fence, and how a fill is compared with it, is not modelled:
//! [`raise`](profile_edge::store::fence::raise) and [`Fence::judge`](profile_edge::store::fence::Fence::judge)
//! are the functions of the stores themselves, so model and code cannot differ there.
//!
//! # What a state is
//!
//! Genesys' version and what its read side shows; per key the entry, fence, lock and marks (and the same at the
//! replica); each delivery's progress; each leader's lease, base and what it has read; what each lookup waits
//! for; and ghosts, which record what the invariants need. A step is one command or script of the protocol, and is
//! atomic as there ([`steps::Step`]). Names do not matter: see [`state::State::canonical`].
//!
//! Lookups do not end: after an answer a lookup may start again. So two lookups cover any number of lookups of which
//! two run at once in a process. A lookup that reads the entry again counts as a new one, which is stricter.
//!
//! # What is left out, and why
//!
//! - Durations. What can expire may expire at any moment, and a record may be fresh, stale or both. The settle window
//!   does not end: after it the protocol only promises that reads have caught up. `lasting` distinguishes the full TTL
//!   from `unsettled_ttl`.
//! - Bytes: the contract suite tests identities, corrupt entries and digests.
//! - Chains of pointers (they need three keys), `--force` of operators, replicas of Genesys whose reads go backwards.
//! - The durability of the journal itself: the effects that a failover loses are delivered again as a whole.
//!
//! # How far the promise goes
//!
//! The store knows what its fence and tombstone still hold. After the eviction of a fence, labels and tombstones are
//! missing until the next event. But still nothing older is served than what was read after the delete:
//! [`Invariant::NoStaleAnswer`] and similar invariants hold after every eviction. After a failover they hold for
//! lookups that start after it, for the events whose effect survived or was replayed. No event stays acknowledged
//! without its effect (*failover*).
//!
//! # Which file holds which rule
//!
//! - `lookups`: *lease-is-the-value*, *witness*, *pointer*, *waiters*
//! - `leaders`: *lease-is-the-value*, *compare-the-read-record*, *unsettled*, *tombstone* (verification), *pointer*
//! - `events`: *invalidate-before-ack*, *two-stamps*, *fence*, *unsettled*, *tombstone*, *dedup*
//! - `steps`: failures, and *failover*
//!
//! *single-commands* is in [`memcached`]: there a step is one command of Memcached. *identifier-pointer* has a model of its own, [`identifiers`], which also removes each of its rules.
//!
//! [`removals`] removes each rule and names the invariant that breaks.

mod checker;
mod events;
mod history;
mod identifiers;
mod invariants;
mod leaders;
mod lookups;
mod memcached;
mod mutations;
mod reduction;
mod removals;
mod report;
mod setup;
mod state;
mod steps;

use invariants::{Broken, Invariant};
use mutations::Without;
use report::explore_all;
use setup::Setup;

/// Chooses the larger configurations: `PROFILE_EDGE_MODEL=large`.
const SIZE: &str = "PROFILE_EDGE_MODEL";

fn is_large() -> bool {
    std::env::var(SIZE).is_ok_and(|size| size == "large")
}

#[test]
fn every_configuration_keeps_every_invariant() {
    let states = explore_all(if is_large() { &setup::LARGE } else { &setup::SMALL }, Broken::ALL);
    assert!(states >= 1_000_000, "{states} states are too few for a meaningful result");
}

#[test]
fn the_lock_only_saves_a_second_fetch() {
    let unlocked = |setup: Setup| Setup { without: Without::Lock, ..setup };
    let watched = Broken::all_but(Invariant::OneFetchPerLease);
    explore_all(&[setup::REFRESH, setup::DELETED_AGAIN].map(unlocked), watched);
    if is_large() {
        explore_all(&[setup::STAMPEDE].map(unlocked), watched);
    }
}

#[test]
fn dedup_is_not_needed_while_the_fence_outlives_redelivery() {
    let forgetful = |setup: Setup| Setup { without: Without::Dedup, ..setup };
    explore_all(&[setup::ORDER, setup::RECREATION, setup::DELETED_AGAIN, setup::TIES].map(forgetful), Broken::ALL);
}
