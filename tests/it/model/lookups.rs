//! Lookups: they read the entry, lead, join, wait, and get an answer.
//!
//! A read and its result (a hit, a lease, a flight joined) are one step. No behaviour is lost by that: a lease is
//! requested with what was read, so a later request answers as a later read would, and a later join gives the same
//! result. Time is reduced to its effects: any entry may expire, and a record may be fresh, stale or both at any
//! moment.

use super::events::{put_back, settles};
use super::history::Stamp;
use super::invariants::{Answer, Broken, Invariant, judge_answer, judge_tombstone};
use super::leaders;
use super::memcached;
use super::mutations::Without;
use super::setup::{ALIAS, Setup, Version};
use super::state::{Entry, Leader, Lookup, Phase, Read, Stage, State, Task, Token};
use super::steps::{Run, Step, Took};

pub(super) fn steps(run: &mut Run<'_>) {
    for process in 0..run.setup.processes {
        for place in 0..run.setup.lookups {
            lookup(run, process, place);
        }
        for place in 0..run.setup.leaders {
            leaders::steps(run, process, place);
        }
    }
}

fn lookup(run: &mut Run<'_>, process: usize, place: usize) {
    let lookup = run.from.lookups[process][place];
    let applied = run.setup.effective(&run.from.store);
    match lookup.phase {
        Phase::Idle => {
            for asked in 0..run.setup.keys {
                let before = run.setup.concerning(asked, applied);
                let bar = run.from.bar[usize::from(asked)];
                let lookup = Lookup { phase: Phase::Looking, asked, at: asked, settles: None, before, bar };
                Looker { process, place, lookup }.look(run);
            }
        }
        Phase::Looking => {
            let before = run.setup.concerning(lookup.asked, applied);
            let bar = run.from.bar[usize::from(lookup.asked)];
            Looker { process, place, lookup: Lookup { before, bar, ..lookup } }.look(run);
        }
        Phase::Leads(_) | Phase::Joined(_) => {}
    }
    if lookup.phase != Phase::Idle && run.setup.trouble.crashes {
        run.change(Step::Abandon { process, lookup: place }, |state| state.lookups[process][place] = Lookup::default());
    }
}

/// A lookup that reads the entry.
#[derive(Clone, Copy)]
pub(super) struct Looker {
    pub(super) process: usize,
    pub(super) place: usize,
    pub(super) lookup: Lookup,
}

impl Looker {
    fn look(self, run: &mut Run<'_>) {
        let key = usize::from(self.lookup.at);
        let slot = run.from.store[key];
        if run.is_without(Without::PrimaryReads)
            && let Entry::Record { read, settled, .. } = run.from.replica[key].entry
        {
            self.hit(run, read, settled);
        }
        match slot.entry {
            Entry::Nothing => self.contend(run),
            Entry::Leased(token) => {
                self.follow(run, token);
                if run.is_without(Without::LeaseExclusion) {
                    self.lead(run, Task::Fill, Token::NONE);
                }
            }
            Entry::Record { token, read, settled, .. } => {
                self.hit(run, read, settled);
                if run.setup.refresh {
                    self.refresh(run, token);
                }
            }
            Entry::Pointer(_) => {
                let canonical = 1 - ALIAS;
                self.turn(run, Took::Pointer, Lookup { at: canonical, ..self.lookup });
            }
            Entry::Tombstone { token, at, deletion, late } => self.find_tombstone(run, token, at, (deletion, late)),
        }
        if run.setup.trouble.unreachable {
            self.pass_by(run);
        }
    }

    pub(super) fn step(self, took: Took) -> Step {
        Step::Look { process: self.process, lookup: self.place, key: self.lookup.at, took }
    }

    fn turn(self, run: &mut Run<'_>, took: Took, mut lookup: Lookup) {
        if lookup.phase == Phase::Looking {
            look_again(&mut lookup);
        }
        if run.from.lookups[self.process][self.place] != lookup {
            run.change(self.step(took), |state| state.lookups[self.process][self.place] = lookup);
        }
    }

    fn hit(self, run: &mut Run<'_>, read: Read, settled: bool) {
        let mut state = *run.from;
        let known = state.store[usize::from(self.lookup.at)].known;
        let answer = Answer { read, labelled: !settled, joined: false, stored: true, known };
        let broken = self.answer(run, &mut state, answer);
        run.reach(self.step(Took::Hit), state, broken);
    }

    fn answer(self, run: &Run<'_>, state: &mut State, answer: Answer) -> Broken {
        state.lookups[self.process][self.place] = self.lookup;
        end(run.setup, state, self.process, self.place, answer)
    }

    fn find_tombstone(self, run: &mut Run<'_>, token: Token, at: Stamp, (deletion, late): (Version, bool)) {
        let mut state = *run.from;
        let broken = judge_tombstone(run.setup, &state, &self.lookup, deletion, late);
        state.lookups[self.process][self.place] = Lookup::default();
        run.reach(self.step(Took::Hit), state, broken);
        let free = state.store[usize::from(self.lookup.at)].lock == Token::NONE;
        if run.setup.verify
            && free
            && let Some(leader) = free_leader(run, self.process)
        {
            if run.setup.commands {
                memcached::lock_beside(&mut state, self, leader, (Task::Verify(at), token));
            } else {
                let lease = self.lease(run, &mut state, leader, Task::Verify(at), token);
                state.store[usize::from(self.lookup.at)].lock = lease;
            }
            run.reach(self.step(Took::HitAndVerify), state, broken);
        }
    }

    /// There is no entry: requests the lease.
    fn contend(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        if !run.setup.commands
            && let Some(deletion) = put_back(run.setup, &mut state, self.lookup.at)
        {
            let broken = judge_tombstone(run.setup, &state, &self.lookup, deletion, false);
            state.lookups[self.process][self.place] = Lookup::default();
            run.reach(self.step(Took::Hit), state, broken);
            return;
        }
        self.take_leftovers(run);
        if run.is_without(Without::FenceOfTheLease) && self.lookup.settles.is_none() {
            let slot = &run.from.store[usize::from(self.lookup.at)];
            let settles = Some(settles(run.setup, slot.fence, self.lookup.at));
            self.turn(run, Took::Wait, Lookup { settles, ..self.lookup });
            return;
        }
        self.lead(run, Task::Fill, Token::NONE);
    }

    /// What is possible only without the *witness* rule.
    fn take_leftovers(self, run: &mut Run<'_>) {
        if run.is_without(Without::Witness) {
            self.join(run, None);
        }
        for leader in run.from.leaders[self.process] {
            if leader.stage == Stage::Lingering && leader.key == self.lookup.at {
                let answer =
                    Answer { read: leader.read, labelled: true, joined: true, stored: false, known: leader.known };
                let mut state = *run.from;
                let broken = self.answer(run, &mut state, answer);
                run.reach(self.step(Took::Leftover), state, broken);
            }
        }
    }

    fn refresh(self, run: &mut Run<'_>, base: Token) {
        if run.from.store[usize::from(self.lookup.at)].lock == Token::NONE {
            self.lead(run, Task::Refresh, base);
        } else {
            self.follow(run, base);
        }
    }

    /// Joins the flight of its process with the same witness. Otherwise waits and reads again.
    fn follow(self, run: &mut Run<'_>, seen: Token) {
        let witness = if run.is_without(Without::Witness) { None } else { Some(seen) };
        if !self.join(run, witness) {
            self.turn(run, Took::Wait, self.lookup);
        }
    }

    fn join(self, run: &mut Run<'_>, witness: Option<Token>) -> bool {
        let joined = run.from.leaders[self.process].iter().position(|leader| {
            let started_at = if leader.task == Task::Refresh { leader.base } else { leader.token };
            leader.open
                && leader.key == self.lookup.at
                && matches!(leader.task, Task::Fill | Task::Refresh)
                && witness.is_none_or(|witness| witness == started_at)
        });
        if let Some(place) = joined {
            self.turn(run, Took::Seat, Lookup { phase: seat(place, false), ..self.lookup });
        }
        joined.is_some()
    }

    /// Takes the lease, and starts the flight of its process for the key.
    fn lead(self, run: &mut Run<'_>, task: Task, base: Token) {
        let Some(place) = free_leader(run, self.process) else { return };
        let mut state = *run.from;
        let key = usize::from(self.lookup.at);
        let others = run.from.leaders.iter().flatten();
        let fetched_twice = others.filter(|other| other.key == self.lookup.at).any(|other| {
            matches!(other.stage, Stage::Fetching | Stage::Fetched) && leaders::may_fill(run, &state, other)
        });
        if run.setup.commands {
            memcached::begin(run, self, place, (task, base));
            return;
        }
        let token = self.lease(run, &mut state, place, task, base);
        match task {
            Task::Fill => state.store[key].entry = Entry::Leased(token),
            Task::Refresh | Task::Verify(_) => state.store[key].lock = token,
            Task::Bypass => {}
        }
        for other in &mut state.leaders[self.process] {
            other.open &= other.key != self.lookup.at || other.task == Task::Bypass;
        }
        state.leaders[self.process][place].open = true;
        state.lookups[self.process][self.place] = Lookup { phase: seat(place, true), settles: None, ..self.lookup };
        let took = if task == Task::Fill { Took::Lease } else { Took::Lock };
        run.reach(self.step(took), state, Broken::when(fetched_twice, Invariant::OneFetchPerLease));
    }

    /// Creates the leader of a lease with the current fence.
    fn lease(self, run: &Run<'_>, state: &mut State, place: usize, task: Task, base: Token) -> Token {
        let slot = &state.store[usize::from(self.lookup.at)];
        let token = state.draw();
        let settles = self.lookup.settles.unwrap_or_else(|| settles(run.setup, slot.fence, self.lookup.at));
        let base_version = match slot.entry {
            Entry::Record { read, .. } if run.is_without(Without::TokenOfTheBase) => read.version,
            _ => 0,
        };
        let (key, known) = (self.lookup.at, slot.known);
        state.leaders[self.process][place] = Leader {
            stage: Stage::Fetching,
            task,
            key,
            token,
            base,
            base_version,
            settles,
            known,
            ..Leader::default()
        };
        token
    }

    /// Bypasses the store: joins a leader of its process whose request has not been sent, or becomes one.
    fn pass_by(self, run: &mut Run<'_>) {
        let (process, lookup, key) = (self.process, self.place, self.lookup.at);
        let step = |joins| Step::PassBy { process, lookup, key, joins };
        for (place, leader) in run.from.leaders[process].iter().enumerate() {
            let sent = matches!(leader.stage, Stage::Fetching | Stage::Fetched);
            let joinable = leader.stage == Stage::Forming || (sent && run.is_without(Without::JoinBeforeSending));
            if leader.task == Task::Bypass && joinable {
                let joined = Lookup { phase: seat(place, false), ..self.lookup };
                run.change(step(true), |state| state.lookups[process][lookup] = joined);
            }
        }
        if let Some(place) = free_leader(run, process) {
            run.change(step(false), |state| {
                state.leaders[process][place] =
                    Leader { stage: Stage::Forming, task: Task::Bypass, key, ..Leader::default() };
                state.lookups[process][lookup] = Lookup { phase: seat(place, true), ..self.lookup };
            });
        }
    }
}

/// Lets a lookup read again as if it started now, which is stricter than an earlier start.
pub(super) fn look_again(lookup: &mut Lookup) {
    let Lookup { asked, at, settles, .. } = *lookup;
    *lookup = if at == asked && settles.is_none() {
        Lookup::default()
    } else {
        Lookup { phase: Phase::Looking, asked, at, settles, before: 0, bar: 0 }
    };
}

/// Ends a lookup with an answer.
pub(super) fn end(setup: &Setup, state: &mut State, process: usize, place: usize, answer: Answer) -> Broken {
    let lookup = state.lookups[process][place];
    let broken = judge_answer(setup, state, &lookup, answer);
    state.lookups[process][place] = Lookup::default();
    if answer.stored && !answer.labelled {
        let bar = &mut state.bar[usize::from(lookup.asked)];
        *bar = answer.read.version.max(*bar);
    }
    broken
}

pub(super) fn seat(place: usize, leads: bool) -> Phase {
    let place = u8::try_from(place).unwrap();
    if leads { Phase::Leads(place) } else { Phase::Joined(place) }
}

fn free_leader(run: &Run<'_>, process: usize) -> Option<usize> {
    run.from.leaders[process][..run.setup.leaders].iter().position(|leader| leader.stage == Stage::Free)
}
