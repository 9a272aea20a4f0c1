//! The steps: everything that can happen next in a state. Genesys and failures are here, events in `events`, lookups
//! and their leaders in `lookups`.

use super::invariants::{Broken, judge_state};
use super::mutations::Without;
use super::reduction::reduce;
use super::setup::{Events, Failover, Setup};
use super::state::{Entry, Phase, Stage, State, Token, Way};
use super::{events, lookups, memcached};

/// One step. A process, lookup, leader or delivery is named by its index in the state before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The customer changes at Genesys, and the event is sent.
    Change,
    /// Genesys' read side shows one more change.
    Show,
    /// The entry expires or is evicted.
    ExpireEntry {
        key: u8,
    },
    EvictFence {
        key: u8,
    },
    EvictSeen {
        key: u8,
        mark: u8,
    },
    ExpireLock {
        key: u8,
    },
    /// The replica catches up.
    Replicate,
    /// The replica takes over.
    FailOver,
    /// A process is killed.
    Kill {
        process: usize,
    },

    /// A removed rule splits an event's step: this is the first half.
    HalfApply {
        delivery: usize,
        key: u8,
    },
    Apply {
        delivery: usize,
        key: u8,
    },
    /// A command of an event at Memcached.
    Command {
        delivery: usize,
        command: Command,
    },
    Acknowledge {
        delivery: usize,
    },
    /// A consumer is lost, or returns the delivery.
    GiveBack {
        delivery: usize,
    },

    /// A lookup reads the entry and continues (see [`Took`]).
    Look {
        process: usize,
        lookup: usize,
        key: u8,
        took: Took,
    },
    /// Its caller disconnects, or its deadline passes.
    Abandon {
        process: usize,
        lookup: usize,
    },
    /// A lookup finds the store unreachable.
    PassBy {
        process: usize,
        lookup: usize,
        key: u8,
        joins: bool,
    },
    /// A leader without the store sends its request.
    Send {
        process: usize,
        leader: usize,
    },
    /// Genesys reads for a leader.
    Fetch {
        process: usize,
        leader: usize,
    },
    /// Genesys fails, and the lease is released.
    Fail {
        process: usize,
        leader: usize,
    },
    /// A leader is dropped. Its lease remains.
    Lose {
        process: usize,
        leader: usize,
    },
    /// A leader fills and completes.
    Fill {
        process: usize,
        leader: usize,
    },
    /// The store applies the fill but does not answer in time. The leader completes.
    FillUnanswered {
        process: usize,
        leader: usize,
    },
    /// A command of a leader at Memcached.
    Ask {
        process: usize,
        leader: usize,
        command: Command,
    },
    /// A repeated lease command arrives (only where a removed rule lets it).
    LateLease {
        process: usize,
        leader: usize,
    },
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// An answer.
    Hit,
    /// An answer that starts the verification of a tombstone.
    HitAndVerify,
    /// A pointer, followed.
    Pointer,
    /// A lease.
    Lease,
    /// The lock of the record, to refresh it.
    Lock,
    /// A flight to wait for.
    Seat,
    /// A wait.
    Wait,
    /// An answer that a removed rule allows.
    Leftover,
}

/// A command at Memcached, or those of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    ReadMark,
    ReadFenceAndEntry,
    WriteFence,
    DeleteLock,
    ChangeEntry,
    ReadOrOccupyEntry,
    ReadFence,
    WriteMark,
    WriteLock,
    ReadLock,
    ReadEntry,
    /// Its process stops before it removes the lock.
    ChangeEntryAndStop,
}

/// A successor of a state: the step, the state after it, and the broken invariants.
pub(super) type Found = Vec<(Step, State, Broken)>;

/// Collects the successors of one state.
pub(super) struct Run<'a> {
    pub(super) setup: &'a Setup,
    pub(super) from: &'a State,
    pub(super) found: &'a mut Found,
}

impl Run<'_> {
    pub(super) fn reach(&mut self, step: Step, mut state: State, broken: Broken) {
        if self.setup.commands {
            memcached::settle(self.setup, &mut state);
        }
        let broken = broken | judge_state(self.setup, &state) | reduce(self.setup, &mut state);
        self.found.push((step, state.canonical(), broken));
    }

    pub(super) fn is_without(&self, rule: Without) -> bool {
        self.setup.without == rule
    }

    /// Adds the successor that one change of the state gives.
    pub(super) fn change(&mut self, step: Step, with: impl FnOnce(&mut State)) {
        let mut state = *self.from;
        with(&mut state);
        self.reach(step, state, Broken::default());
    }
}

/// Collects everything that can happen next.
pub(super) fn successors(setup: &Setup, from: &State, found: &mut Found) {
    let mut run = Run { setup, from, found };
    genesys(&mut run);
    losses(&mut run);
    events::steps(&mut run);
    lookups::steps(&mut run);
}

fn genesys(run: &mut Run<'_>) {
    if usize::from(run.from.current) < run.setup.history.len() {
        run.change(Step::Change, |state| state.current += 1);
    }
    if run.from.shown < run.from.current {
        run.change(Step::Show, |state| state.shown += 1);
    }
}

fn losses(run: &mut Run<'_>) {
    for key in 0..run.setup.keys {
        losses_at(run, key);
    }
    let failover = run.setup.trouble.failover;
    let replicates = failover != Failover::Never || run.is_without(Without::PrimaryReads);
    if replicates && run.from.replica != run.from.store {
        run.change(Step::Replicate, |state| state.replica = state.store);
    }
    if failover != Failover::Never && !run.from.failed_over {
        let setup = run.setup;
        run.change(Step::FailOver, |state| fail_over(setup, state));
    }
    if run.setup.trouble.crashes {
        for process in 0..run.setup.processes {
            if run.from.leaders[process].iter().any(|leader| leader.stage != Stage::Free) {
                run.change(Step::Kill { process }, |state| {
                    state.leaders[process] = Default::default();
                    state.lookups[process] = Default::default();
                });
            }
        }
    }
}

fn losses_at(run: &mut Run<'_>, key: u8) {
    let at = usize::from(key);
    let slot = run.from.store[at];
    let trouble = run.setup.trouble;
    if slot.entry != Entry::Nothing {
        run.change(Step::ExpireEntry { key }, |state| {
            state.store[at].entry = Entry::Nothing;
            if slot.fence.is_none() {
                state.store[at].known = 0;
            }
        });
    }
    let short_lived = run.is_without(Without::FenceOutlivesRedelivery);
    if slot.fence.is_some() && (trouble.fence || short_lived) {
        let setup = run.setup;
        run.change(Step::EvictFence { key }, |state| {
            let slot = &mut state.store[at];
            slot.fence = None;
            if !short_lived {
                slot.known &= still_known(setup, slot.entry);
                slot.revived = 0;
            }
            memcached::fence_changed(setup, state);
        });
    }
    if trouble.seen {
        for mark in (0..8).filter(|mark| slot.seen >> mark & 1 == 1) {
            run.change(Step::EvictSeen { key, mark }, |state| state.store[at].seen &= !(1 << mark));
        }
    }
    if trouble.lock && slot.lock != Token::NONE {
        run.change(Step::ExpireLock { key }, |state| state.store[at].lock = Token::NONE);
    }
}

/// The events that a key without its fence still shows: the deletion of its tombstone.
pub(super) fn still_known(setup: &Setup, entry: Entry) -> Events {
    match entry {
        Entry::Tombstone { deletion, .. } => setup.among(|_| true) & !setup.newer(deletion),
        Entry::Nothing | Entry::Leased(_) | Entry::Record { .. } | Entry::Pointer(_) => 0,
    }
}

/// The replica takes over: what it has not received is lost.
fn fail_over(setup: &Setup, state: &mut State) {
    state.store = state.replica;
    state.failed_over = true;
    state.bar = Default::default();
    let kept = setup.effective(&state.store);
    // A lookup under way may still answer with what was lost.
    for lookup in state.lookups.iter_mut().flatten().filter(|lookup| lookup.phase != Phase::Idle) {
        (lookup.before, lookup.bar) = (0, 0);
    }
    for leader in state.leaders.iter_mut().flatten().filter(|leader| leader.stage != Stage::Free) {
        leader.read.after &= kept;
        leader.known &= kept;
    }
    if setup.trouble.failover == Failover::Replays && setup.without != Without::JournalReplay {
        for delivery in &mut state.deliveries {
            if delivery.stage == Way::Acknowledged || delivery.visited != 0 {
                *delivery = super::state::Delivery { replayed: true, ..Default::default() };
            }
        }
    }
}
