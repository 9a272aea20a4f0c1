//! A model of the consistency protocol (DESIGN section 2), visited state by state.
//!
//! # What is modelled
//!
//! One customer, under one key or under two of which a merge makes one an alias; processes with several
//! lookups each, their single flights, and leaders that outlive their callers; consumers that visit the keys
//! of an event in any order; the store; Genesys with a read side that lags. The history of a customer is
//! given, everything else happens in any order: changes, reads, deliveries (reordered, duplicated, returned),
//! and what goes wrong ([`setup::Trouble`]): K runs out or is evicted at any moment, so are fence, marks and
//! locks; a process is killed, a leader lost, a caller gone at any step; the store does not answer; a replica
//! that lags takes over.
//!
//! What events do to the fence, and how a fill is judged by it, is not modelled but called:
//! [`raise`](profile_edge::store::fence::raise) and [`Fence::judge`](profile_edge::store::fence::Fence::judge)
//! are the functions that the stores use, so model and code cannot drift apart there.
//!
//! # What a state is
//!
//! Genesys' version and what its read side shows; per key the entry, fence, lock and marks (and the same at the
//! replica); each delivery's progress; each leader's lease, base and what it has read; what each lookup waits
//! for; and ghosts, which remember what an invariant asks about. A step is one command or script of the
//! protocol, atomic as it is there ([`steps::Step`]). Names do not count: see [`state::State::canonical`].
//!
//! Lookups do not end: who was answered may ask again, so two lookups stand for any number of which two are
//! under way in a process at once. One that has to look again begins anew, which asks more of its answer.
//!
//! # What is left out, and why
//!
//! - Durations. Whatever can run out may do so at any moment, and a record may be taken as fresh, stale or
//!   both. The settle window does not pass: beyond it the protocol promises nothing but that reads have
//!   caught up. What is kept for `unsettled_ttl` and what for the full TTL is told apart (`lasting`).
//! - Bytes: identities, corrupt entries and digests are the contract suite's.
//! - Chains of pointers (they take three keys), operators' `--force`, replicas of Genesys that read backwards.
//! - The journal's own durability: what a failover forgets is delivered anew as a whole.
//!
//! # How far the promise goes
//!
//! What is *known* to the store is what its fence and tombstone still tell. An evicted fence takes labels and
//! tombstones with it until the next event, not the promise that nothing older is served than what was read
//! after the delete: [`Invariant::NoStaleAnswer`] and its like hold through every
//! eviction. After a failover they hold for lookups that begin after it, over the events whose effect survived
//! or was replayed; and no event stays acknowledged without effect (rule 12).
//!
//! # Which file holds which rule
//!
//! `lookups` 1, 2, 9 and 11 · `leaders` 1, 4, 7, 8 (verification) and 9 · `events` 3, 5, 6, 7, 8 and 10 · `steps`
//! what goes wrong, and 12. [`removals`] takes each rule away and names the invariant that breaks.

mod checker;
mod events;
mod history;
mod invariants;
mod leaders;
mod lookups;
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
    assert!(states >= 1_000_000, "{states} states are too few to mean anything");
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
fn dedup_is_economy_while_the_fence_outlives_redelivery() {
    let forgetful = |setup: Setup| Setup { without: Without::Dedup, ..setup };
    explore_all(&[setup::ORDER, setup::BURIAL, setup::DELETED_AGAIN, setup::TIES].map(forgetful), Broken::ALL);
}
