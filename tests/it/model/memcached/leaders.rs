//! Leases and fills, command by command: `src/store/memcached/lease.rs`.

use profile_edge::domain::EventTime;

use super::super::events::settles;
use super::super::history::Stamp;
use super::super::invariants::{Broken, Invariant, judge_tombstone};
use super::super::leaders::{Completion, is_later, may_fill};
use super::super::lookups::{Looker, look_again, seat};
use super::super::mutations::Without;
use super::super::setup::Events;
use super::super::state::{Did, Entry, Fence, Leader, Lookup, Slot, Stage, State, Task, Token};
use super::super::steps::{Command, Run, Step, Took};
use super::fence_changed;

/// A lookup requests a lease, and waits for its leader.
pub(in super::super) fn begin(run: &mut Run<'_>, looker: Looker, place: usize, (task, base): (Task, Token)) {
    let mut state = *run.from;
    let Looker { process, place: seated, lookup } = looker;
    let is_busy = |other: &Leader| matches!(other.stage, Stage::Fetching | Stage::Fetched | Stage::Ready);
    let others = run.from.leaders.iter().flatten();
    let fetched_twice =
        task == Task::Fill && others.filter(|other| is_busy(other)).any(|other| may_fill(run, &state, other));
    lock_beside(&mut state, looker, place, (task, base));
    if task == Task::Fill {
        let leader = &mut state.leaders[process][place];
        leader.stage = Stage::Asking;
        state.store[0].entry = Entry::Leased(leader.token);
        if let Some(settles) = lookup.settles {
            let known = known_by_the_fence(&state.store[0]);
            *leader = Leader { stage: Stage::Fetching, open: true, settles, known, ..*leader };
        }
    }
    state.lookups[process][seated] = Lookup { phase: seat(place, true), settles: None, ..lookup };
    let took = if task == Task::Fill { Took::Lease } else { Took::Lock };
    run.reach(looker.step(took), state, Broken::when(fetched_twice, Invariant::OneFetchPerLease));
}

/// Creates the leader of a lock that will be written beside what was read.
pub(in super::super) fn lock_beside(state: &mut State, looker: Looker, place: usize, (task, base): (Task, Token)) {
    let token = state.draw();
    for other in &mut state.leaders[looker.process] {
        other.open &= other.key != looker.lookup.at || other.task == Task::Bypass;
    }
    state.leaders[looker.process][place] = Leader { stage: Stage::Locking, task, token, base, ..Leader::default() };
}

/// The next command of a lease or a fill.
pub(in super::super) fn leader(run: &mut Run<'_>, it: Completion) {
    match it.leader.stage {
        Stage::Asking => read_fence_of_lease(run, it),
        Stage::Restoring(at, deletion) => restore(run, it, at, deletion),
        Stage::Locking => write_lock(run, it),
        Stage::Locked => granted(run, it, Stage::Checking),
        Stage::Checking => check_base(run, it),
        Stage::Holding => read_fence_of_fill(run, it),
        Stage::Overruling => overrule(run, it),
        Stage::Ready => change_entry(run, it),
        Stage::Free | Stage::Forming | Stage::Fetching | Stage::Fetched | Stage::Unanswered | Stage::Lingering => {}
    }
}

fn step(it: Completion, command: Command) -> Step {
    Step::Ask { process: it.process, leader: it.place, command }
}

fn advance(run: &mut Run<'_>, it: Completion, command: Command, leader: Leader) {
    run.change(step(it, command), |state| state.leaders[it.process][it.place] = leader);
}

/// The lookup looks again, and the lock is removed.
fn give_up(run: &mut Run<'_>, it: Completion, command: Command) {
    run.change(step(it, command), |state| {
        if state.store[0].lock == it.leader.token {
            state.store[0].lock = Token::NONE;
        }
        it.leave(state, look_again);
    });
}

fn read_fence_of_lease(run: &mut Run<'_>, it: Completion) {
    let fence = run.from.store[0].fence.filter(|fence| fence.newest == Did::Deletion);
    match fence {
        Some(fence) if !run.is_without(Without::TombstoneWrittenAgain) => {
            let stage = Stage::Restoring(fence.at, fence.deletion);
            advance(run, it, Command::ReadFence, Leader { stage, ..it.leader });
        }
        Some(_) | None => granted(run, it, Stage::Fetching),
    }
}

/// Reads the fence, with which the lease is granted.
fn granted(run: &mut Run<'_>, it: Completion, stage: Stage) {
    let slot = run.from.store[0];
    let (settles, known) = (settles(run.setup, slot.fence, 0), known_by_the_fence(&slot));
    let open = stage == Stage::Fetching;
    advance(run, it, Command::ReadFence, Leader { stage, open, settles, known, ..it.leader });
}

/// A tombstone that has replaced the lease meanwhile is not known to its holder.
fn known_by_the_fence(slot: &Slot) -> Events {
    slot.known & slot.fence.map_or(0, |fence| fence.holds)
}

/// An evicted tombstone replaces the lease.
fn restore(run: &mut Run<'_>, it: Completion, at: Stamp, deletion: u8) {
    let mut state = *run.from;
    let is_there = state.store[0].entry == Entry::Leased(it.leader.token);
    if !is_there && !run.is_without(Without::RestoredOverTheLease) {
        give_up(run, it, Command::ChangeEntry);
        return;
    }
    state.store[0].entry = Entry::Tombstone { token: state.draw(), at, deletion, late: false };
    let mut broken = Broken::default();
    for lookup in run.from.lookups[it.process].iter().filter(|lookup| lookup.waits_for(it.place)) {
        broken |= judge_tombstone(run.setup, &state, lookup, deletion, false);
    }
    it.leave(&mut state, |lookup| *lookup = Lookup::default());
    run.reach(step(it, Command::ChangeEntry), state, broken);
}

fn write_lock(run: &mut Run<'_>, it: Completion) {
    if run.from.store[0].lock != Token::NONE {
        give_up(run, it, Command::WriteLock);
        return;
    }
    run.change(step(it, Command::WriteLock), |state| {
        state.store[0].lock = it.leader.token;
        state.leaders[it.process][it.place].stage = Stage::Locked;
    });
}

/// An event may have deleted the lock before it was written, and then the entry.
fn check_base(run: &mut Run<'_>, it: Completion) {
    if run.from.store[0].entry.token() != it.leader.base {
        give_up(run, it, Command::ReadEntry);
        return;
    }
    let open = it.leader.task == Task::Refresh;
    advance(run, it, Command::ReadEntry, Leader { stage: Stage::Fetching, open, ..it.leader });
}

/// A leader has what it fetched: the next command of its fill.
pub(in super::super) fn fill(run: &mut Run<'_>, it: Completion) {
    let (leader, slot) = (it.leader, run.from.store[0]);
    match leader.task {
        Task::Refresh => {}
        Task::Verify(deleted) if is_later(run, &leader, deleted) => {}
        Task::Fill | Task::Bypass | Task::Verify(_) => return it.fill(run),
    }
    let locked = slot.lock == leader.token || run.is_without(Without::Lock);
    if locked && slot.entry.token() == leader.base {
        advance(run, it, Command::ReadLock, Leader { stage: Stage::Holding, ..leader });
    } else {
        finish(run, it, Command::ReadLock, false);
    }
}

fn finish(run: &mut Run<'_>, it: Completion, command: Command, stored: bool) {
    let (state, broken) = it.complete(run, Some(stored));
    run.reach(step(it, command), state, broken);
}

fn read_fence_of_fill(run: &mut Run<'_>, it: Completion) {
    let fence = run.from.store[0].fence;
    if let Task::Verify(deleted) = it.leader.task
        && is_overtaken(deleted, fence)
        && !run.is_without(Without::OvertakenTombstone)
    {
        finish(run, it, Command::ReadFence, false);
        return;
    }
    let stage = if overrules(run, it, fence) && !run.is_without(Without::OverruledFirst) {
        Stage::Overruling
    } else {
        Stage::Ready
    };
    let same_fence = stage == Stage::Overruling;
    advance(run, it, Command::ReadFence, Leader { stage, same_fence, ..it.leader });
}

/// Returns whether a later deletion has raised the fence, and will replace the tombstone.
fn is_overtaken(deleted: Stamp, fence: Option<Fence>) -> bool {
    let newest: Option<EventTime> = fence.and_then(|fence| fence.at.at());
    newest.zip(deleted.at()).is_some_and(|(newest, deleted)| newest.compare(deleted).is_gt())
}

/// Returns whether a fill makes the fence forget its deletion: only the verification of a tombstone does.
fn overrules(run: &Run<'_>, it: Completion, fence: Option<Fence>) -> bool {
    let verifies = matches!(it.leader.task, Task::Verify(_));
    (verifies || it.leader.task == Task::Refresh && run.is_without(Without::OnlyTombstonesOverruled))
        && fence.is_some_and(|fence| fence.newest == Did::Deletion)
}

fn overruled(fence: &mut Fence) {
    (fence.newest, fence.doubt, fence.deletion) = (Did::Contested, true, 0);
}

fn overrule(run: &mut Run<'_>, it: Completion) {
    if !it.leader.same_fence && !run.is_without(Without::ComparedOverruling) {
        finish(run, it, Command::WriteFence, false);
        return;
    }
    let setup = run.setup;
    run.change(step(it, Command::WriteFence), |state| {
        if let Some(fence) = &mut state.store[0].fence {
            overruled(fence);
        }
        fence_changed(setup, state);
        state.leaders[it.process][it.place].stage = Stage::Ready;
    });
}

/// Replaces what was read.
fn change_entry(run: &mut Run<'_>, it: Completion) {
    let stored = run.from.store[0].entry.token() == it.leader.base || run.is_without(Without::FillComparison);
    let (mut state, broken) = it.complete(run, Some(stored));
    if run.setup.trouble.crashes && stored {
        let mut stopped = state;
        stopped.store[0].lock = run.from.store[0].lock;
        run.reach(step(it, Command::ChangeEntryAndStop), stopped, broken);
    }
    if stored
        && run.is_without(Without::OverruledFirst)
        && overrules(run, it, state.store[0].fence)
        && let Some(fence) = &mut state.store[0].fence
    {
        overruled(fence);
        fence_changed(run.setup, &mut state);
    }
    run.reach(step(it, Command::ChangeEntry), state, broken);
}
