//! An event, command by command: `src/store/memcached/apply.rs` and `tombstones.rs`.

use profile_edge::domain::Kind;
use profile_edge::store::fence::KeyAction;

use super::super::events::{Cause, cause, effect, mark, raiser};
use super::super::history::Stamp;
use super::super::invariants::Broken;
use super::super::mutations::Without;
use super::super::setup::{REDRIVEN, Setup};
use super::super::state::{Did, Entry, Fence, Place, Progress, Slot, State, Token, Work};
use super::super::steps::{Command, Run, Step, still_known};
use super::fence_changed;

/// One delivery of an event.
#[derive(Clone, Copy)]
struct Handling {
    place: usize,
    event: u8,
    cause: Cause,
    work: Work,
}

/// The next command of an event.
pub(in super::super) fn event(run: &mut Run<'_>, place: usize, event: u8) {
    let work = run.from.deliveries[place].work;
    let it = Handling { place, event, cause: cause(run, place), work };
    match work.progress {
        Progress::Waiting => it.begin(run),
        Progress::Unmarked => it.read(run),
        Progress::Read if it.is_first(run, Without::FenceBeforeDelete) => it.delete_first(run),
        Progress::Read => it.raise(run),
        Progress::Raised if it.is_first(run, Without::EffectBeforeMark) => it.mark_first(run),
        Progress::Raised if run.setup.refresh || run.setup.verify => it.delete_lock(run),
        Progress::Raised | Progress::Unlocked => it.change_entry(run),
        Progress::Occupied => it.read_fence(run),
        Progress::Effective => it.mark(run),
    }
}

fn deletes(setup: &Setup, event: u8) -> bool {
    setup.history[usize::from(event)].kind == Kind::Deleted
}

fn slot(state: &mut State) -> &mut Slot {
    &mut state.store[0]
}

impl Handling {
    fn step(self, command: Command) -> Step {
        Step::Command { delivery: self.place, command }
    }

    fn go(self, run: &mut Run<'_>, command: Command, mut state: State, work: Work) {
        state.deliveries[self.place].work = work;
        run.reach(self.step(command), state, Broken::default());
    }

    /// Returns whether a removed rule lets its second half come first, and that is still to be done.
    fn is_first(self, run: &Run<'_>, without: Without) -> bool {
        run.is_without(without) && run.from.deliveries[self.place].half == 0
    }

    /// Reads the mark.
    fn begin(self, run: &mut Run<'_>) {
        let (setup, seen) = (run.setup, run.from.store[0].seen);
        if seen & mark(self.event, self.cause) != 0 && setup.without != Without::Dedup {
            run.change(self.step(Command::ReadMark), |state| state.deliveries[self.place].visited = 1);
            return;
        }
        let remembered = self.cause == Cause::Replayed && seen & mark(self.event, Cause::Announced) != 0;
        let it = Self { work: Work { remembered, ..self.work }, ..self };
        let same = setup.deliveries.iter().filter(|of| **of & !REDRIVEN == self.event).count();
        if same > 1 {
            let work = Work { progress: Progress::Unmarked, ..it.work };
            it.go(run, Command::ReadMark, *run.from, work);
        } else {
            it.read(run);
        }
    }

    /// Reads fence and K.
    fn read(self, run: &mut Run<'_>) {
        let slot = run.from.store[0];
        let effect = effect(run.setup, &slot, self.event, self.cause, self.work.remembered);
        let work = if effect.was_raised {
            // K was read after the fence, so its version is read anew.
            let none = Work { seen: Token::NONE, seen_lease: false, ..self.work };
            planned(none, effect.place, &effect.fence, true)
        } else {
            let found = match slot.entry {
                Entry::Tombstone { at, deletion, .. } if slot.fence.is_none() => Some((at, deletion)),
                _ => None,
            };
            let deletes = deletes(run.setup, self.event);
            Work {
                progress: Progress::Read,
                seen: if deletes { slot.entry.token() } else { Token::NONE },
                seen_lease: deletes && matches!(slot.entry, Entry::Leased(_)),
                tombstone: found,
                found_nothing: slot.fence.is_none() && found.is_none(),
                ..self.work
            }
        };
        self.go(run, Command::ReadFenceAndEntry, *run.from, work);
    }

    /// Raises the fence, if it is what was read.
    fn raise(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let (setup, work) = (run.setup, self.work);
        let entry = work.tombstone.map_or(Entry::Nothing, |(at, deletion)| Entry::Tombstone {
            token: Token::NONE,
            at,
            deletion,
            late: false,
        });
        let blind = run.is_without(Without::ComparedFence) && work.found_nothing;
        let known = slot(&mut state).fence.filter(|_| !blind);
        let effect =
            effect(setup, &Slot { entry, fence: known, ..Slot::default() }, self.event, self.cause, work.remembered);
        let held = slot(&mut state).fence.map_or_else(|| still_known(setup, entry), |fence| fence.holds);
        let (last, holds) =
            if effect.whole { (raiser(self.event, self.cause), held | 1 << self.event) } else { (0, held) };
        let fence = Fence { last, holds, ..effect.fence };
        slot(&mut state).fence = Some(fence);
        fence_changed(setup, &mut state);
        let late = Work { found_nothing: work.found_nothing && self.cause != Cause::Announced, ..work };
        if fence.newest != Did::Deletion {
            slot(&mut state).announced |= holds;
        }
        let mut work = planned(late, effect.place, &fence, effect.whole);
        if run.is_without(Without::FenceBeforeDelete) {
            work.progress = Progress::Effective;
            slot(&mut state).known |= 1 << self.event;
        }
        self.go(run, Command::WriteFence, state, work);
    }

    fn delete_lock(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        if !run.is_without(Without::Lock) {
            slot(&mut state).lock = Token::NONE;
        }
        self.go(run, Command::DeleteLock, state, Work { progress: Progress::Unlocked, ..self.work });
    }

    /// Deletes K, leaves a tombstone there with a new token, or writes one in place of what was seen.
    fn change_entry(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let (token, work) = (state.draw(), self.work);
        let entry = &mut slot(&mut state).entry;
        *entry = match (work.place, *entry) {
            (Place::KeepTombstone, kept @ Entry::Tombstone { .. }) if run.is_without(Without::KeptTombstoneRenewed) => {
                kept
            }
            (Place::KeepTombstone, Entry::Tombstone { at, deletion, late, .. }) => {
                Entry::Tombstone { token, at, deletion, late }
            }
            (Place::KeepTombstone | Place::Clear, _) => Entry::Nothing,
            (Place::WriteTombstone, _) if work.seen == Token::NONE => return self.occupy(run),
            (Place::WriteTombstone, _) => {
                let (at, deletion) = work.tombstone.unwrap_or_default();
                Entry::Tombstone { token, at, deletion, late: work.found_nothing }
            }
        };
        self.has_effect(run, state, Command::ChangeEntry);
    }

    fn has_effect(self, run: &mut Run<'_>, mut state: State, command: Command) {
        let (bit, whole) = (1 << self.event, self.work.whole);
        slot(&mut state).applied |= bit;
        if whole {
            slot(&mut state).known |= bit;
            self.go(run, command, state, Work { progress: Progress::Effective, whole, ..Work::default() });
        } else {
            state.deliveries[self.place].visited = 1;
            self.go(run, command, state, Work::default());
        }
    }

    /// Writes a lease where there is nothing, and reads what is at K.
    fn occupy(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let marker = state.draw();
        let entry = &mut slot(&mut state).entry;
        if *entry == Entry::Nothing {
            *entry = Entry::Leased(marker);
        }
        let (seen, seen_lease) = (entry.token(), matches!(entry, Entry::Leased(_)));
        let known = run.is_without(Without::FenceAfterTheEntry);
        let progress = if known { Progress::Unlocked } else { Progress::Occupied };
        self.go(run, Command::ReadOrOccupyEntry, state, Work { progress, seen, seen_lease, ..self.work });
    }

    /// Reads the fence once more: a later event may have raised it.
    fn read_fence(self, run: &mut Run<'_>) {
        let work = match run.from.store[0].fence {
            None => Work::default(),
            Some(fence) if fence.newest == Did::Deletion => {
                let tombstone = Some((fence.at, fence.deletion));
                Work { progress: Progress::Unlocked, tombstone, found_nothing: false, ..self.work }
            }
            Some(_) => Work { progress: Progress::Unlocked, whole: self.work.whole, ..Work::default() },
        };
        self.go(run, Command::ReadFence, *run.from, work);
    }

    fn mark(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        set_mark(run.setup, slot(&mut state), self);
        state.deliveries[self.place].visited = 1;
        self.go(run, Command::WriteMark, state, Work::default());
    }

    /// Only without the rule: the mark comes before the effect.
    fn mark_first(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        set_mark(run.setup, slot(&mut state), self);
        state.deliveries[self.place].half = 1;
        self.go(run, Command::WriteMark, state, self.work);
    }

    /// Only without the rule: K is deleted before the fence is raised.
    fn delete_first(self, run: &mut Run<'_>) {
        let mut state = *run.from;
        let slot = slot(&mut state);
        slot.entry = Entry::Nothing;
        slot.applied |= 1 << self.event;
        slot.known |= 1 << self.event;
        state.deliveries[self.place].half = 1;
        self.go(run, Command::ChangeEntry, state, self.work);
    }
}

fn set_mark(setup: &Setup, slot: &mut Slot, it: Handling) {
    if setup.without != Without::Dedup {
        slot.seen |= mark(it.event, it.cause) | mark(it.event, Cause::Announced);
    }
}

/// Returns what is to be done at K after the fence.
fn planned(work: Work, action: KeyAction, fence: &Fence, whole: bool) -> Work {
    let progress = Progress::Raised;
    let plain = Work { progress, whole, ..Work::default() };
    match action {
        KeyAction::Clear => plain,
        KeyAction::KeepTombstone => Work { place: Place::KeepTombstone, ..plain },
        KeyAction::WriteTombstone(at) => Work {
            place: Place::WriteTombstone,
            seen: work.seen,
            seen_lease: work.seen_lease,
            tombstone: Some((Stamp::of_at(at), fence.deletion)),
            found_nothing: work.found_nothing,
            ..plain
        },
    }
}
