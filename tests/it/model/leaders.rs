//! Leaders: they fetch, fill by comparison, and complete.

use profile_edge::domain::EventTime;

use super::history::Stamp;
use super::invariants::{Answer, Broken};
use super::lookups::{end, look_again};
use super::memcached;
use super::mutations::Without;
use super::setup::Setup;
use super::state::{Did, Entry, Leader, Lookup, Phase, Read, Stage, State, Task, Token};
use super::steps::{Run, Step};

pub(super) fn steps(run: &mut Run<'_>, process: usize, place: usize) {
    let leader = run.from.leaders[process][place];
    let it = Completion { process, place, leader };
    match leader.stage {
        Stage::Free => return,
        Stage::Fetched if run.setup.commands => memcached::fill(run, it),
        Stage::Asking
        | Stage::Restoring(..)
        | Stage::Locking
        | Stage::Locked
        | Stage::Checking
        | Stage::Holding
        | Stage::Overruling
        | Stage::Ready => memcached::leader(run, it),
        Stage::Forming => run.change(Step::Send { process, leader: place }, |state| {
            state.leaders[process][place].stage = Stage::Fetching;
        }),
        Stage::Fetching => {
            let (setup, store) = (run.setup, run.from.store);
            run.change(Step::Fetch { process, leader: place }, |state| {
                let read = Read { version: state.shown, after: setup.read_after(&store, leader.key) };
                let leader = &mut state.leaders[process][place];
                (leader.stage, leader.read) = (Stage::Fetched, read);
            });
            it.fail(run);
        }
        Stage::Fetched => {
            it.fill(run);
            if run.setup.trouble.unreachable && matches!(leader.task, Task::Fill | Task::Refresh) {
                it.land_unanswered(run);
            }
        }
        Stage::Unanswered => it.fill(run),
        Stage::Lingering => {}
    }
    if run.setup.trouble.crashes || leader.stage == Stage::Unanswered {
        run.change(Step::Lose { process, leader: place }, |state| it.leave(state, look_again));
    }
    let arrives_late = run.is_without(Without::TokenForOneAttempt) && leader.task == Task::Fill;
    let key = usize::from(leader.key);
    if arrives_late && run.from.store[key].entry == Entry::Nothing {
        run.change(Step::LateLease { process, leader: place }, |state| {
            state.store[key].entry = Entry::Leased(leader.token);
        });
    }
}

/// Returns whether a fill by this leader would be stored now (*lease-is-the-value*, *compare-the-read-record*).
pub(super) fn may_fill(run: &Run<'_>, state: &State, leader: &Leader) -> bool {
    let slot = &state.store[usize::from(leader.key)];
    let without = run.setup.without;
    let locked = slot.lock == leader.token || without == Without::Lock;
    match leader.task {
        Task::Bypass => false,
        Task::Fill | Task::Refresh if without == Without::FillComparison => true,
        Task::Fill if without == Without::OwnToken => matches!(slot.entry, Entry::Leased(_)),
        Task::Fill => slot.entry.token() == leader.token,
        Task::Refresh if without == Without::TokenOfTheBase => {
            matches!(slot.entry, Entry::Record { read, .. } if read.version == leader.base_version)
        }
        Task::Verify(_) if without == Without::SameTombstone => matches!(slot.entry, Entry::Tombstone { .. }),
        Task::Refresh | Task::Verify(_) => locked && slot.entry.token() == leader.base,
    }
}

/// A leader about to complete.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) process: usize,
    pub(super) place: usize,
    pub(super) leader: Leader,
}

impl Completion {
    /// The leader is gone. Lookups that waited for it continue in another way.
    pub(super) fn leave(self, state: &mut State, with: impl Fn(&mut Lookup)) {
        state.leaders[self.process][self.place] = Leader::default();
        for lookup in &mut state.lookups[self.process] {
            if lookup.waits_for(self.place) {
                with(lookup);
            }
        }
    }

    /// Answers the lookups that waited.
    fn answer(self, setup: &Setup, state: &mut State, labelled: bool, stored: bool) -> Broken {
        let mut broken = Broken::default();
        for place in 0..setup.lookups {
            let lookup = state.lookups[self.process][place];
            if lookup.waits_for(self.place) {
                let joined = matches!(lookup.phase, Phase::Joined(_));
                let (read, known) = (self.leader.read, self.leader.known);
                broken |= end(setup, state, self.process, place, Answer { read, labelled, joined, stored, known });
            }
        }
        broken
    }

    /// Sends the lookups that waited to the canonical key.
    fn send_on(self, setup: &Setup, state: &mut State) -> Broken {
        let mut broken = Broken::default();
        let canonical = 1 - self.leader.key;
        for place in 0..setup.lookups {
            let lookup = &mut state.lookups[self.process][place];
            if !lookup.waits_for(self.place) {
                continue;
            }
            if setup.without == Without::AliasAnswersNobody && matches!(lookup.phase, Phase::Joined(_)) {
                let (read, known) = (self.leader.read, self.leader.known);
                let answer = Answer { read, labelled: false, joined: true, stored: false, known };
                broken |= end(setup, state, self.process, place, answer);
            } else {
                (lookup.at, lookup.phase) = (canonical, Phase::Looking);
                look_again(lookup);
            }
        }
        broken
    }

    fn finds_alias(self, setup: &Setup) -> bool {
        setup.is_alias(self.leader.key, self.leader.read.version) && setup.without != Without::CanonicalKeyOnly
    }

    /// Ends the flight of a fill that will be refused.
    pub(super) fn complete_refused(self, setup: &Setup, state: &mut State) -> Broken {
        let broken =
            if self.finds_alias(setup) { self.send_on(setup, state) } else { self.answer(setup, state, true, false) };
        state.leaders[self.process][self.place] = Leader::default();
        broken
    }

    fn is_settled(self) -> bool {
        self.leader.settles >> self.leader.read.version & 1 == 1
    }

    pub(super) fn fill(self, run: &mut Run<'_>) {
        let (state, leader) = (run.from, self.leader);
        let verdict = match leader.task {
            Task::Bypass => Some(false),
            Task::Fill | Task::Refresh => Some(may_fill(run, state, &leader)),
            Task::Verify(deleted) if is_later(run, &leader, deleted) => Some(may_fill(run, state, &leader)),
            // The lock stays, so that no other request follows soon.
            Task::Verify(_) => None,
        };
        let (state, broken) = self.complete(run, verdict);
        run.reach(Step::Fill { process: self.process, leader: self.place }, state, broken);
    }

    /// Stores what was fetched, unless it is refused, or there is nothing to store; ends the flight.
    pub(super) fn complete(self, run: &Run<'_>, verdict: Option<bool>) -> (State, Broken) {
        let mut state = *run.from;
        let leader = self.leader;
        if let Some(stored) = verdict {
            self.store(run, &mut state, stored);
        }
        let stored = verdict == Some(true);
        let broken = match leader.stage {
            Stage::Unanswered => Broken::default(),
            _ if self.finds_alias(run.setup) => self.send_on(run.setup, &mut state),
            _ => self.answer(run.setup, &mut state, !stored || !self.is_settled(), stored),
        };
        let lingers = !stored && run.is_without(Without::RefusedServesOnlyJoined);
        state.leaders[self.process][self.place] =
            if lingers { Leader { stage: Stage::Lingering, open: false, ..leader } } else { Leader::default() };
        (state, broken)
    }

    /// The store's part of a fill.
    fn store(self, run: &Run<'_>, state: &mut State, stored: bool) {
        let leader = self.leader;
        let slot = &mut state.store[usize::from(leader.key)];
        let settled = self.is_settled();
        let in_place = leader.task != Task::Fill;
        if stored {
            let (token, read) = (leader.token, leader.read);
            let lasting = settled || run.is_without(Without::ShortUnsettled);
            slot.entry = if self.finds_alias(run.setup) {
                Entry::Pointer(token)
            } else {
                Entry::Record { token, read, settled, lasting }
            };
            // In Memcached by a command of its own.
            let overrules = in_place && !run.setup.commands && !run.is_without(Without::VerifiedOverrules);
            if let Some(fence) = slot.fence.as_mut().filter(|fence| overrules && fence.newest == Did::Deletion) {
                (fence.newest, fence.doubt, fence.deletion) = (Did::Contested, true, 0);
            }
            if matches!(leader.task, Task::Verify(_)) && slot.fence.is_some() {
                slot.revived = slot.revived.max(read.version);
            }
        }
        if in_place && slot.lock == leader.token {
            slot.lock = Token::NONE;
        }
    }

    /// The store applies the fill but does not answer. The lookups that wait get the fetched profile.
    fn land_unanswered(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let broken = if self.finds_alias(run.setup) {
            self.send_on(run.setup, &mut state)
        } else {
            self.answer(run.setup, &mut state, !self.is_settled(), false)
        };
        state.leaders[self.process][self.place] = Leader { stage: Stage::Unanswered, open: false, ..self.leader };
        run.reach(Step::FillUnanswered { process: self.process, leader: self.place }, state, broken);
    }

    /// Genesys fails: the lease is released, and the lookups that waited fail.
    fn fail(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let leader = self.leader;
        let slot = &mut state.store[usize::from(leader.key)];
        match leader.task {
            Task::Fill if slot.entry.token() == leader.token => {
                slot.entry = Entry::Nothing;
                if slot.fence.is_none() {
                    slot.known = 0;
                }
            }
            Task::Refresh if slot.lock == leader.token => slot.lock = Token::NONE,
            Task::Fill | Task::Refresh | Task::Verify(_) | Task::Bypass => {}
        }
        self.leave(&mut state, |lookup| *lookup = Lookup::default());
        run.reach(Step::Fail { process: self.process, leader: self.place }, state, Broken::default());
    }
}

/// Returns whether a profile was modified after a deletion (*tombstone*).
pub(super) fn is_later(run: &Run<'_>, leader: &Leader, deleted: Stamp) -> bool {
    let fetched = run.setup.fetched(leader.key, leader.read.version);
    fetched.zip(deleted.at()).is_some_and(|(modified, at)| EventTime::from_modified(modified).compare(at).is_gt())
        || (fetched.is_some() && run.is_without(Without::VerifiedIsLater))
}
