//! Reduces the number of states without losing a counterexample.
//!
//! There is no reduction where a rule is removed (the reduction may depend on the rule), and where a failover may
//! restore a token.
//!
//! - A leader without a valid lease that no lookup can join or waits for changes only itself.
//! - Such a leader for which a lookup waits reads and answers at once. A later read would be newer and follow more
//!   events, so the check of its answer would be less strict.
//! - No lookup can join a flight whose witness is gone.
//! - An answer older than a lookup's `bar` can only come from an earlier read, since reads do not go backwards and
//!   `bar` itself was read.

use super::invariants::Broken;
use super::leaders::Completion;
use super::mutations::Without;
use super::setup::{Failover, Setup, Version};
use super::state::{Entry, Leader, Read, Stage, State, Task, Token};

/// Removes what cannot matter any more. Returns the invariants that the resulting answers break.
pub(super) fn reduce(setup: &Setup, state: &mut State) -> Broken {
    let whole = matches!(setup.without, Without::Nothing | Without::Lock | Without::Dedup);
    if !whole || !setup.reduced || setup.trouble.failover != Failover::Never {
        return Broken::default();
    }
    let mut broken = Broken::default();
    for process in 0..setup.processes {
        for place in 0..setup.leaders {
            let leader = close(setup, state, process, place);
            if leader.stage == Stage::Free || leader.open || can_store(setup, state, &leader) {
                continue;
            }
            let slot = &mut state.store[usize::from(leader.key)];
            if setup.commands && slot.lock == leader.token {
                slot.lock = Token::NONE;
            }
            let awaited = state.lookups[process].iter().any(|lookup| lookup.waits_for(place));
            if !awaited {
                state.leaders[process][place] = Leader::default();
            } else {
                let now = Read { version: state.shown, after: setup.read_after(&state.store, leader.key) };
                let read = if leader.stage == Stage::Fetching { now } else { leader.read };
                broken |=
                    Completion { process, place, leader: Leader { read, ..leader } }.complete_refused(setup, state);
            }
        }
    }
    lower_bars(setup, state);
    broken
}

/// Closes a flight whose witness is gone.
fn close(setup: &Setup, state: &mut State, process: usize, place: usize) -> Leader {
    let leader = &mut state.leaders[process][place];
    let there = state.store[usize::from(leader.key)].entry.token();
    let witness = match leader.task {
        Task::Fill => leader.token,
        Task::Refresh | Task::Verify(_) => leader.base,
        Task::Bypass => return *leader,
    };
    debug_assert!(usize::from(leader.key) < usize::from(setup.keys), "a key of the configuration");
    leader.open &= witness == there;
    *leader
}

/// Returns whether a leader's fill may still be stored.
fn can_store(setup: &Setup, state: &State, leader: &Leader) -> bool {
    let slot = &state.store[usize::from(leader.key)];
    let (mut locked, mut acts) = (slot.lock == leader.token || setup.without == Without::Lock, false);
    match leader.stage {
        // It has no lease yet, or may overrule the fence although its fill will be refused.
        Stage::Asking | Stage::Restoring(..) | Stage::Locking | Stage::Locked | Stage::Checking => acts = true,
        Stage::Overruling => acts = leader.same_fence,
        Stage::Holding => acts = matches!(leader.task, Task::Verify(_)),
        // It has compared the lock.
        Stage::Ready => locked = true,
        Stage::Free | Stage::Forming | Stage::Fetching | Stage::Fetched | Stage::Unanswered | Stage::Lingering => {}
    }
    acts || match leader.task {
        Task::Fill => slot.entry.token() == leader.token,
        Task::Refresh | Task::Verify(_) => locked && slot.entry.token() == leader.base,
        // It does not depend on the store, but its request may not have been sent.
        Task::Bypass => leader.stage == Stage::Forming,
    }
}

fn lower_bars(setup: &Setup, state: &mut State) {
    let mut oldest = Version::MAX;
    for slot in &state.store[..usize::from(setup.keys)] {
        if let Entry::Record { read, .. } = slot.entry {
            oldest = oldest.min(read.version);
        }
    }
    for leader in state.leaders.iter().flatten() {
        if leader.stage.has_read() {
            oldest = oldest.min(leader.read.version);
        }
    }
    let lookups = state.lookups.iter_mut().flatten().map(|lookup| &mut lookup.bar);
    for bar in state.bar.iter_mut().chain(lookups) {
        if oldest >= *bar {
            *bar = 0;
        }
    }
}
