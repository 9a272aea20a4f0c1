//! Events: sent, delivered in any order, redelivered, applied key by key, acknowledged.

use std::time::Duration;

use profile_edge::domain::{Digest, EventTime, Kind, Modified, Precision, Redelivery, Stamps, Timestamp};
use profile_edge::store::Change;
use profile_edge::store::fence::{self, FenceVerdict, KeyAction, Raised, raise};

use super::history::Stamp;
use super::invariants::Broken;
use super::memcached;
use super::mutations::Without;
use super::setup::{Events, Failover, REDRIVEN, Setup, Version};
use super::state::{Did, Entry, Fence, Progress, Slot, State, Token, Way};
use super::steps::{Run, Step};

/// The only time in the model: every fence is within its settle window.
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const SETTLE_WINDOW: Duration = Duration::from_secs(600);

pub(super) fn steps(run: &mut Run<'_>) {
    for (place, event) in run.setup.deliveries.iter().enumerate() {
        if event & REDRIVEN != 0 {
            let event = event & !REDRIVEN;
            // An event that an operator replays is in the journal, settled or not.
            if run.from.current > event {
                delivery(run, place, event);
            }
        } else if run.from.current > *event {
            delivery(run, place, *event);
        }
    }
}

fn delivery(run: &mut Run<'_>, place: usize, event: u8) {
    let names = run.setup.history[usize::from(event)].names;
    let delivery = run.from.deliveries[place];
    let acknowledged = delivery.stage == Way::Acknowledged;
    let early = run.is_without(Without::EffectBeforeAck);
    if acknowledged && !early {
        return;
    }
    if run.setup.commands && delivery.visited == 0 {
        memcached::event(run, place, event);
    }
    let whole_visits = !run.setup.commands;
    let unvisited = |key: &u8| whole_visits && names >> key & 1 == 1 && delivery.visited >> key & 1 == 0;
    for key in (0..run.setup.keys).filter(unvisited) {
        let splits = run.is_without(Without::FenceBeforeDelete) || run.is_without(Without::EffectBeforeMark);
        if splits && delivery.half >> key & 1 == 0 {
            half(run, place, event, key);
        } else {
            visit(run, place, event, key);
        }
    }
    let held = delivery.visited | delivery.half != 0 || delivery.work.progress != Progress::Waiting;
    if held && run.setup.trouble.crashes && !acknowledged {
        run.change(Step::GiveBack { delivery: place }, |state| {
            let replayed = delivery.replayed;
            state.deliveries[place] = super::state::Delivery { replayed, ..Default::default() };
        });
    }
    let visited = delivery.visited == names || early;
    if visited && !acknowledged && is_replicated(run, event, delivery.duplicate) {
        run.change(Step::Acknowledge { delivery: place }, |state| state.deliveries[place].stage = Way::Acknowledged);
    }
}

/// Returns whether a replica has the effect, where an acknowledgement waits for that (*failover*).
fn is_replicated(run: &Run<'_>, event: u8, duplicate: bool) -> bool {
    let waits = run.setup.trouble.failover == Failover::Waits
        && !run.is_without(Without::ReplicaWait)
        && !(duplicate && run.is_without(Without::DuplicateWaits));
    !waits || run.setup.effective(&run.from.replica) >> event & 1 == 1
}

/// Why an event is delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Announced,
    /// It is restored from the journal after a possible loss. Without a loss it is a duplicate.
    Restored,
    /// An operator wants its effect again.
    Replayed,
}

pub(super) fn cause(run: &Run<'_>, place: usize) -> Cause {
    if run.setup.deliveries[place] & REDRIVEN != 0 {
        Cause::Replayed
    } else if run.from.deliveries[place].replayed {
        Cause::Restored
    } else {
        Cause::Announced
    }
}

pub(super) fn mark(event: u8, cause: Cause) -> u8 {
    1 << (event + if cause == Cause::Replayed { 4 } else { 0 })
}

/// Returns what names the event, or its replay, in a fence.
pub(super) fn raiser(event: u8, cause: Cause) -> u8 {
    event + 1 + if cause == Cause::Replayed { 8 } else { 0 }
}

fn half(run: &mut Run<'_>, place: usize, event: u8, key: u8) {
    let deletes = run.is_without(Without::FenceBeforeDelete);
    let mark = mark(event, cause(run, place));
    let duplicate = run.from.store[usize::from(key)].seen & mark != 0;
    run.change(Step::HalfApply { delivery: place, key }, |state| {
        let (slot, delivery) = (&mut state.store[usize::from(key)], &mut state.deliveries[place]);
        if duplicate {
            delivery.visited |= 1 << key;
        } else if deletes {
            slot.entry = Entry::Nothing;
            slot.applied |= 1 << event;
            delivery.half |= 1 << key;
        } else {
            slot.seen |= mark;
            delivery.half |= 1 << key;
        }
    });
}

fn visit(run: &mut Run<'_>, place: usize, event: u8, key: u8) {
    let mut state = *run.from;
    let cause = cause(run, place);
    let draw = state.draw();
    let duplicate = apply(run.setup, &mut state.store[usize::from(key)], event, cause, key, draw);
    let delivery = &mut state.deliveries[place];
    delivery.duplicate = duplicate && (delivery.visited == 0 || delivery.duplicate);
    delivery.visited |= 1 << key;
    if duplicate && run.is_without(Without::EveryKeyVisited) {
        delivery.visited = run.setup.history[usize::from(event)].names;
    }
    // The order of duplicates matters only if a rule about it is removed.
    delivery.duplicate &= run.is_without(Without::DuplicateWaits);
    run.reach(Step::Apply { delivery: place, key }, state, Broken::default());
}

/// Applies an event at a key in one step: the fence, the entry, the mark. Returns whether it is a duplicate.
fn apply(setup: &Setup, slot: &mut Slot, event: u8, cause: Cause, key: u8, draw: Token) -> bool {
    let (without, replayed) = (setup.without, cause != Cause::Announced);
    let mark = mark(event, cause);
    if slot.seen & mark != 0 && without != Without::EffectBeforeMark {
        return true;
    }
    if without == Without::EveryNameEvicted && key == super::setup::ALIAS {
        slot.applied |= 1 << event;
        return false;
    }
    let bit: Events = 1 << event;
    let forgotten = slot.fence.is_none() && !matches!(slot.entry, Entry::Tombstone { .. });
    let is_remembered = cause == Cause::Replayed && slot.seen & self::mark(event, Cause::Announced) != 0;
    let effect = effect(setup, slot, event, cause, is_remembered);
    slot.fence = Some(effect.fence);
    if !matches!(without, Without::Lock | Without::TokenOfTheBase | Without::SameTombstone) {
        slot.lock = Token::NONE;
    }
    let is_tombstone = matches!(slot.entry, Entry::Tombstone { .. });
    match effect.place {
        KeyAction::WriteTombstone(at) => {
            slot.entry = Entry::Tombstone {
                token: draw,
                at: Stamp::of_at(at),
                deletion: effect.fence.deletion,
                late: forgotten && replayed,
            };
        }
        KeyAction::KeepTombstone if is_tombstone => {}
        KeyAction::Clear | KeyAction::KeepTombstone => {
            let skips = effect.outrun && without == Without::DeleteWhenOutrun;
            if !skips && without != Without::FenceBeforeDelete {
                slot.entry = Entry::Nothing;
            }
        }
    }
    if without != Without::Dedup && effect.whole {
        slot.seen |= mark | self::mark(event, Cause::Announced);
    }
    slot.applied |= bit;
    // A redelivered deletion that writes no tombstone, where its first delivery would have, requires nothing.
    if effect.whole {
        slot.known |= bit;
    }
    false
}

pub(super) struct Effect {
    pub(super) fence: Fence,
    pub(super) place: KeyAction,
    outrun: bool,
    pub(super) whole: bool,
    /// The fence had been raised by this event last, and stays.
    pub(super) was_raised: bool,
}

/// Raises the fence with the function of the stores, without the removed rule.
pub(super) fn effect(setup: &Setup, slot: &Slot, event: u8, cause: Cause, is_remembered: bool) -> Effect {
    let happening = setup.history[usize::from(event)];
    let without = setup.without;
    let known = slot.fence.map(|fence| fence.as_in_the_store());
    let tombstone = match slot.entry {
        Entry::Tombstone { at, .. } => Some(at.at()),
        Entry::Nothing | Entry::Leased(_) | Entry::Record { .. } | Entry::Pointer(_) => None,
    };
    let mut stamps = Stamps { modified: happening.modified.modified(), at: happening.at.at() };
    if without == Without::StampsApart {
        stamps.modified = stamps.at.map(|at| Modified::from_millis(at.as_millis()));
    }
    if without == Without::CoarserPrecision {
        stamps.at = stamps.at.map(|at| EventTime::new(at.as_millis(), Precision::Millis));
    }
    let change = Change {
        event: Digest::from_bytes([0; 16]),
        of: None,
        kind: happening.kind,
        stamps,
        again: match cause {
            Cause::Restored | Cause::Replayed if without == Without::ReplayWritesNoTombstone => None,
            Cause::Restored => Some(Redelivery::Restored),
            // The id is in its mark.
            Cause::Replayed => Some(Redelivery::Redriven),
            Cause::Announced => None,
        },
        force: false,
    };
    let is_ours = slot.fence.is_some_and(|fence| fence.last == raiser(event, cause));
    let repeated = known.as_ref().filter(|_| is_remembered || is_ours).and_then(|known| fence::repeat(known, &change));
    let was_raised = is_ours && repeated.is_some();
    let raised = repeated.unwrap_or_else(|| {
        let mut raised = raise(known.as_ref(), tombstone, &change, NOW);
        remove_rule(without, slot.fence, &change, &mut raised);
        raised
    });
    let before = match (slot.fence, slot.entry) {
        (Some(fence), _) => fence.deletion,
        (None, Entry::Tombstone { deletion, .. }) => deletion,
        (None, _) => 0,
    };
    let deletion = if happening.kind == Kind::Deleted { before.max(event + 1) } else { before };
    let deletion = if raised.fence.says_deleted() { deletion } else { 0 };
    Effect {
        fence: Fence::of(&raised.fence, deletion),
        place: raised.place,
        outrun: raised.outrun,
        whole: raised.whole,
        was_raised,
    }
}

fn remove_rule(without: Without, known: Option<Fence>, change: &Change, raised: &mut Raised) {
    use fence::Newest;
    let same_time =
        known.and_then(|known| known.at.at()).zip(change.stamps.at).is_some_and(|(a, b)| a.compare(b).is_eq());
    let deletes = change.kind == Kind::Deleted;
    let was_deleted = known.is_some_and(|known| known.newest == Did::Deletion);
    let write_tombstone = |raised: &mut Raised| {
        raised.fence.newest = Newest::Deletion;
        raised.fence.doubt = false;
        raised.place = KeyAction::WriteTombstone(raised.fence.at);
    };
    match without {
        Without::HighestModified => raised.fence.modified = change.stamps.modified.or(raised.fence.modified),
        Without::HighestAt => raised.fence.at = change.stamps.at.or(raised.fence.at),
        Without::DoubtOfTies | Without::DoubtOfDeletions => raised.fence.doubt = false,
        Without::TombstoneOnlyByTheNewest if deletes => write_tombstone(raised),
        Without::DoubtOfEqualCreation if same_time && raised.fence.newest == Newest::Contested => {
            write_tombstone(raised)
        }
        Without::DeletionBeatsUpdate if same_time && raised.fence.newest == Newest::Deletion => {
            raised.fence.newest = Newest::Update;
            raised.place = KeyAction::Clear;
        }
        Without::OlderUpdateLeavesTombstone if change.kind == Kind::Updated && was_deleted => {
            raised.fence.newest = Newest::Update;
            raised.place = KeyAction::Clear;
        }
        Without::LaterEventRemovesTombstone if was_deleted => {
            raised.fence.newest = Newest::Deletion;
            raised.place = KeyAction::KeepTombstone;
        }
        _ => {}
    }
}

impl Fence {
    pub(super) fn as_in_the_store(&self) -> fence::Fence {
        fence::Fence {
            modified: self.modified.modified(),
            at: self.at.at(),
            newest: self.newest.into(),
            doubt: self.doubt,
            unstamped: self.unstamped,
            raised: NOW,
        }
    }

    fn of(fence: &fence::Fence, deletion: Version) -> Self {
        Self {
            modified: Stamp::of_modified(fence.modified),
            at: Stamp::of_at(fence.at),
            newest: fence.newest.into(),
            doubt: fence.doubt,
            unstamped: fence.unstamped,
            last: 0,
            deletion,
            holds: 0,
        }
    }
}

/// Returns for which versions a fill under this fence is settled, one bit each (*unsettled*).
pub(super) fn settles(setup: &Setup, fence: Option<Fence>, key: u8) -> u8 {
    let Some(mut fence) = fence.map(|fence| fence.as_in_the_store()) else { return u8::MAX };
    if setup.without == Without::UnsettledUnderDoubt {
        fence.doubt = false;
    }
    let mut settled = 0;
    for version in 0..=u8::try_from(setup.history.len()).unwrap() {
        let fetched = setup.fetched(key, version);
        let holds = match setup.without {
            Without::UnsettledFills => true,
            Without::UnsettledWhenMissing if fetched.is_none() => true,
            _ => fence.judge(fetched, SETTLE_WINDOW, Duration::ZERO) == FenceVerdict::CaughtUp,
        };
        settled |= u8::from(holds) << version;
    }
    settled
}

/// Puts an evicted tombstone back where the fence says "deleted" (*tombstone*).
pub(super) fn put_back(setup: &Setup, state: &mut State, key: u8) -> Option<Version> {
    let token = state.draw();
    let slot = &mut state.store[usize::from(key)];
    let fence = slot.fence.filter(|fence| fence.newest == Did::Deletion)?;
    if setup.without == Without::TombstoneWrittenAgain {
        return None;
    }
    slot.entry = Entry::Tombstone { token, at: fence.at, deletion: fence.deletion, late: false };
    Some(fence.deletion)
}
