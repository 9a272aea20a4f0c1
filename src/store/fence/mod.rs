//! The fence of a key: the newest event versions announced for it (a high-water mark), and the decisions by it.
//!
//! Pure decisions, the same for every adapter. An adapter that decides inside its server mirrors them there, and the
//! contract suite compares. They implement [`rules::two-stamps`](crate::rules#two-stamps), [`rules::fence`](crate::rules#fence),
//! [`rules::unsettled`](crate::rules#unsettled) and [`rules::tombstone`](crate::rules#tombstone).

use std::cmp::Ordering;
use std::time::Duration;

use crate::domain::{EventTime, Kind, Modified, Redelivery, Stamps, Timestamp};

use super::Change;

/// The longest lifetime of an unsettled fill: [`rules::unsettled`](crate::rules#unsettled).
pub const UNSETTLED_MAX: Duration = Duration::from_secs(30);

/// What the applied events announced about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The highest `modified`.
    pub modified: Option<Modified>,
    /// The highest `at`; of times that are equal at the coarser precision, the one with that precision.
    pub at: Option<EventTime>,
    /// What the event or events at `at` did.
    pub newest: Newest,
    /// Whether a profile with exactly `modified` may still be the older one.
    pub doubt: bool,
    /// Whether an event had no `modified`, so that no profile can be proved to be newer.
    pub unstamped: bool,
    /// When the fence was last raised, by the clock of the process that did. Its effect on fills ends `settle_window` later.
    pub raised: Timestamp,
}

/// What the newest event of a fence did. Events of unknown order are joined: a creation or a deletion outweighs an
/// update; a creation and a deletion together are contested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newest {
    /// It updated or merged the customer.
    Update,
    /// It created the customer.
    Creation,
    /// It deleted the customer: the key holds a tombstone, which is restored after an eviction.
    Deletion,
    /// A creation and a deletion at the same time: no tombstone, and doubt.
    Contested,
}

/// Whether a fetched profile is as new as the announced events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceVerdict {
    /// It is, or no event was announced.
    CaughtUp,
    /// It may be older.
    Unsettled {
        /// The time since the fence was raised.
        age: Duration,
    },
}

/// What an event does to the entry of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAction {
    /// Delete the entry.
    Clear,
    /// Delete the entry unless it is a tombstone.
    KeepTombstone,
    /// Write a tombstone with this time.
    WriteTombstone(Option<EventTime>),
}

/// The outcome of raising a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The new fence.
    pub fence: Fence,
    /// What to do with the entry.
    pub place: KeyAction,
    /// Whether the fence had a later event. It is counted; a deletion then writes no tombstone.
    pub outrun: bool,
    /// Whether the event had its whole effect and may be marked as applied. A deletion that was delivered once more
    /// and wrote no tombstone had not: its first delivery may still arrive, and then writes one.
    pub whole: bool,
}

impl Fence {
    /// Judges a fetched profile. It is unsettled if its `modified` is below the fence, equal under doubt, or missing
    /// or not comparable. `age` is the time since it was raised; after `settle_window` it has no effect.
    #[must_use]
    pub fn judge(&self, fetched: Option<Modified>, settle_window: Duration, age: Duration) -> FenceVerdict {
        let caught_up = match (fetched, self.modified) {
            (Some(fetched), Some(announced)) => match fetched.cmp(&announced) {
                Ordering::Less => false,
                Ordering::Equal => !self.doubt && !self.unstamped,
                Ordering::Greater => !self.unstamped,
            },
            _ => false,
        };
        if caught_up || age >= settle_window { FenceVerdict::CaughtUp } else { FenceVerdict::Unsettled { age } }
    }

    /// Returns the time since it was raised, by the clocks of two processes, but at most what the store knows:
    /// clocks differ, and under a fence that counts as older than it is an outdated profile lives for longer.
    #[must_use]
    pub fn age(&self, now: Timestamp, most: Duration) -> Duration {
        now.since(self.raised).min(most)
    }

    /// Returns whether the newest event deleted the customer.
    #[must_use]
    pub fn says_deleted(&self) -> bool {
        self.newest == Newest::Deletion
    }
}

/// Returns the lifetime of an unsettled fill: the age of the fence, at least `unsettled_ttl` and at most 30 s.
#[must_use]
pub fn unsettled_lifetime(age: Duration, unsettled_ttl: Duration) -> Duration {
    age.clamp(unsettled_ttl.min(UNSETTLED_MAX), UNSETTLED_MAX)
}

/// Raises the fence by one event and returns what the event does to the entry.
///
/// `fence` is the fence so far. `tombstone` is the time of the tombstone at the key, if there is one; that time may be
/// unknown. The result does not depend on the order in which events arrive, as far as their times show an order.
///
/// A deletion that is delivered once more may be older than a re-creation whose fence has expired. A tombstone that
/// hides an existing customer is worse than no tombstone: a deleted customer is not found at Genesys either. So an old
/// deletion ([`Redelivery::Redriven`], [`Redelivery::Replayed`]) writes a tombstone only if the fence says "deleted"
/// already, and a [restored](Redelivery::Restored) one also if its time can be compared with the known one. Otherwise
/// it only deletes the entry.
#[must_use]
pub fn raise(fence: Option<&Fence>, tombstone: Option<Option<EventTime>>, change: &Change, now: Timestamp) -> Raised {
    let known = fence.cloned().or_else(|| tombstone.map(|at| deleted_at(at, now)));
    let Some(known) = known else {
        return first(change, now);
    };
    let order = match (change.stamps.at, known.at) {
        (Some(at), Some(newest)) => Some(at.compare(newest)),
        _ => None,
    };
    let does = what_it_does(change.kind);
    if does == Newest::Deletion && known.newest != Newest::Deletion && !may_write_tombstone(change.again, order) {
        return without_tombstone(known, change, now);
    }
    let newest = match order {
        Some(Ordering::Greater) => does,
        Some(Ordering::Less) => known.newest,
        Some(Ordering::Equal) => join(known.newest, does),
        None => without_time(known.newest, does),
    };
    let force = forces(change);
    let outrun = order == Some(Ordering::Less);
    let removes_tombstone = known.newest == Newest::Deletion && newest != Newest::Deletion;
    let overtaken_deletion = does == Newest::Deletion && newest != Newest::Deletion;
    let rises = match (change.stamps.modified, known.modified) {
        (Some(new), Some(old)) => new > old,
        (Some(_), None) => true,
        _ => false,
    };
    // An event that is later in both stamps ends the doubt of earlier ones.
    let ends_doubt = rises && order == Some(Ordering::Greater);
    let tie = change.stamps.modified.is_some() && change.stamps.modified == known.modified;
    Raised {
        place: match (newest, does) {
            (Newest::Deletion, Newest::Deletion) => KeyAction::WriteTombstone(latest(known.at, change.stamps.at)),
            (Newest::Deletion, _) if !force => KeyAction::KeepTombstone,
            _ => KeyAction::Clear,
        },
        fence: Fence {
            modified: known.modified.max(change.stamps.modified),
            at: latest(known.at, change.stamps.at),
            newest: if force && newest == Newest::Deletion { Newest::Contested } else { newest },
            doubt: removes_tombstone
                || overtaken_deletion
                || force
                || newest == Newest::Contested
                || tie
                || (known.doubt && !ends_doubt),
            unstamped: lacks_modified(change) || (known.unstamped && !ends_doubt),
            raised: now.max(known.raised),
        },
        outrun,
        whole: true,
    }
}

/// Returns whether a deletion may write a tombstone for a customer whose fence does not say "deleted". It is also true
/// if the deletion is older than the fence and would write none.
fn may_write_tombstone(again: Option<Redelivery>, order: Option<Ordering>) -> bool {
    match again {
        None => true,
        Some(Redelivery::Restored) => order.is_some(),
        Some(Redelivery::Redriven | Redelivery::Replayed(_)) => order == Some(Ordering::Less),
    }
}

/// Returns whether an event removes a tombstone whatever the times are. A forced event of an operator may be outdated
/// when it is replayed.
fn forces(change: &Change) -> bool {
    change.force && !matches!(change.again, Some(Redelivery::Replayed(_)))
}

/// Returns the effect of a deletion that writes no tombstone: it deletes the entry and causes doubt. The fence does not
/// keep that it was a deletion, nor its time.
fn without_tombstone(known: Fence, change: &Change, now: Timestamp) -> Raised {
    let modified = known.modified.max(change.stamps.modified);
    let fence = Fence { modified, doubt: true, raised: now.max(known.raised), ..known };
    Raised { fence, place: KeyAction::Clear, outrun: false, whole: false }
}

/// Returns what the replay of a remembered event does, if `fence` still holds all that the event announced. `None`
/// means that the fence was lost since and must be raised again.
///
/// The fence stays unchanged: raising it again by the same `modified` would cause doubt. The entry is deleted or
/// replaced by a tombstone, as the fence says.
#[must_use]
pub fn repeat(fence: &Fence, change: &Change) -> Option<Raised> {
    let order = change.stamps.at.zip(fence.at).map(|(at, newest)| at.compare(newest));
    let outrun = order == Some(Ordering::Less);
    let deletes = change.kind == Kind::Deleted;
    let says_deleted = fence.newest == Newest::Deletion;
    let holds = change.stamps.modified <= fence.modified
        && (change.stamps.at.is_none() || order.is_some_and(Ordering::is_le))
        && (outrun || (!deletes || says_deleted) && (!lacks_modified(change) || fence.unstamped));
    let place = match (says_deleted, deletes) {
        (true, true) => KeyAction::WriteTombstone(fence.at),
        (true, false) => KeyAction::KeepTombstone,
        (false, _) => KeyAction::Clear,
    };
    holds.then(|| Raised { fence: fence.clone(), place, outrun, whole: true })
}

fn first(change: &Change, now: Timestamp) -> Raised {
    let does = what_it_does(change.kind);
    let nothing =
        Fence { modified: None, at: None, newest: Newest::Update, doubt: false, unstamped: false, raised: now };
    if does == Newest::Deletion && change.again.is_some() {
        // It may be older than a re-creation whose fence has expired.
        return without_tombstone(nothing, change, now);
    }
    let Stamps { modified, at } = change.stamps;
    let fence = Fence { modified, at, newest: does, unstamped: lacks_modified(change), ..nothing };
    let place = if does == Newest::Deletion { KeyAction::WriteTombstone(at) } else { KeyAction::Clear };
    Raised { fence, place, outrun: false, whole: true }
}

/// Returns the fence that a tombstone implies after its own fence was evicted.
fn deleted_at(at: Option<EventTime>, now: Timestamp) -> Fence {
    Fence { modified: None, at, newest: Newest::Deletion, doubt: true, unstamped: true, raised: now }
}

/// Returns whether an event lacks a `modified` that it should have. A deletion has none and needs none: its tombstone,
/// not its stamp, prevents fills.
fn lacks_modified(change: &Change) -> bool {
    change.stamps.modified.is_none() && change.kind != Kind::Deleted
}

fn what_it_does(kind: Kind) -> Newest {
    match kind {
        Kind::Created => Newest::Creation,
        Kind::Updated | Kind::Merged => Newest::Update,
        Kind::Deleted => Newest::Deletion,
    }
}

/// Joins what two events of equal times did.
fn join(a: Newest, b: Newest) -> Newest {
    match (a, b) {
        (Newest::Update, other) | (other, Newest::Update) => other,
        (Newest::Creation, Newest::Creation) => Newest::Creation,
        (Newest::Deletion, Newest::Deletion) => Newest::Deletion,
        (Newest::Contested, _)
        | (_, Newest::Contested)
        | (Newest::Creation, Newest::Deletion)
        | (Newest::Deletion, Newest::Creation) => Newest::Contested,
    }
}

/// Without times the order of arrival counts: a creation removes a tombstone, a deletion writes one, an update leaves
/// it.
fn without_time(known: Newest, does: Newest) -> Newest {
    match does {
        Newest::Update => known,
        Newest::Creation | Newest::Deletion | Newest::Contested => does,
    }
}

/// Returns the later of two times; of times that are equal at the coarser precision, the one with that precision.
fn latest(a: Option<EventTime>, b: Option<EventTime>) -> Option<EventTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(match a.compare(b) {
            Ordering::Greater => a,
            Ordering::Less => b,
            Ordering::Equal if b.precision() < a.precision() => b,
            Ordering::Equal => a,
        }),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
