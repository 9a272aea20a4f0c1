//! The fence: what events announced about a key, and what follows from it.
//!
//! Pure decisions, the same for every adapter (an adapter that decides inside its server mirrors
//! them there, and the contract suite compares). DESIGN section 2, rules 5–8.

use std::cmp::Ordering;
use std::time::Duration;

use crate::domain::{At, Kind, Modified, Redelivery, Stamps, Timestamp};

use super::Change;

/// The longest that an unsettled fill is kept (rule 7).
pub const UNSETTLED_MAX: Duration = Duration::from_secs(30);

/// What the events applied so far announced about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The highest `modified`.
    pub modified: Option<Modified>,
    /// The highest `at`; of times that cannot be told apart, the one told more coarsely.
    pub at: Option<At>,
    /// What the event (or events) at `at` did.
    pub newest: Newest,
    /// A profile with exactly `modified` may still be the older one.
    pub doubt: bool,
    /// An event told no `modified`: no profile can be shown to be newer than it.
    pub unstamped: bool,
    /// When the fence was last raised, by our clock: its effect on fills ends `settle_window` later.
    pub raised: Timestamp,
}

/// What the newest event of a fence did. Events whose order cannot be told are joined: creation and
/// deletion each outweigh an update, and against each other are contested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newest {
    /// It changed the customer.
    Update,
    /// It created the customer.
    Creation,
    /// It deleted the customer: K holds a tombstone, and gets it back when it was evicted.
    Deletion,
    /// A creation and a deletion at the same time: no tombstone, and doubt.
    Contested,
}

/// Whether a fetched profile has caught up with what events announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It has, or nothing was announced.
    Settled,
    /// It may still be older; `age` is how long ago the fence was raised.
    Unsettled {
        /// Time since the last raise.
        age: Duration,
    },
}

/// What an event does at K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Delete whatever is there.
    Clear,
    /// Delete whatever is there unless it is a tombstone, which stays.
    KeepTombstone,
    /// Write a tombstone with this time.
    Bury(Option<At>),
}

/// The outcome of raising a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The fence to keep.
    pub fence: Fence,
    /// What to do at K.
    pub place: Place,
    /// The fence knew a later event: for counting, and for a deletion also "no tombstone".
    pub outrun: bool,
    /// It had all of the event's effect, and may be remembered. A deletion that was handed out once more and did not
    /// bury has not: its first delivery may still be under way, and then buries.
    pub whole: bool,
}

impl Fence {
    /// Judges a fetched profile: below the fence, equal under doubt, or without a way to tell while
    /// the fence stands is unsettled (rule 7). Beyond `settle_window` the fence has no say.
    #[must_use]
    pub fn judge(&self, fetched: Option<Modified>, settle_window: Duration, now: Timestamp) -> Settlement {
        let age = now.since(self.raised);
        let caught_up = match (fetched, self.modified) {
            (Some(fetched), Some(announced)) => match fetched.cmp(&announced) {
                Ordering::Less => false,
                Ordering::Equal => !self.doubt && !self.unstamped,
                Ordering::Greater => !self.unstamped,
            },
            _ => false,
        };
        if caught_up || age >= settle_window { Settlement::Settled } else { Settlement::Unsettled { age } }
    }

    /// Tells whether the newest known event deleted the customer.
    #[must_use]
    pub fn says_deleted(&self) -> bool {
        self.newest == Newest::Deletion
    }
}

/// How long an unsettled fill is kept: the fence's age, but at least `unsettled_ttl` and at most 30 s.
#[must_use]
pub fn unsettled_lifetime(age: Duration, unsettled_ttl: Duration) -> Duration {
    age.clamp(unsettled_ttl.min(UNSETTLED_MAX), UNSETTLED_MAX)
}

/// Raises the fence by one event and says what the event does at K.
///
/// `fence` is what stood so far; `tombstone` is the time of the tombstone at K, if there is one
/// (its own time may be unknown). The result does not depend on the order of the events, as far as
/// their times tell one.
///
/// A deletion that is handed out once more may be older than a re-creation that nobody remembers, and a tombstone that
/// hides a living customer is worse than none: whoever was deleted is not found at Genesys either. So an old one
/// ([`Redelivery::Redriven`], [`Redelivery::Replayed`]) buries only where the fence says "deleted" already, and a
/// [restored](Redelivery::Restored) one also where it is later than what is known. Else it evicts and binds nobody.
#[must_use]
pub fn raise(fence: Option<&Fence>, tombstone: Option<Option<At>>, change: &Change, now: Timestamp) -> Raised {
    let known = fence.cloned().or_else(|| tombstone.map(|at| deleted_at(at, now)));
    let Some(known) = known else {
        return first(change, now);
    };
    let order = match (change.stamps.at, known.at) {
        (Some(at), Some(newest)) => Some(at.compare(newest)),
        _ => None,
    };
    let does = what_it_does(change.kind);
    if does == Newest::Deletion && known.newest != Newest::Deletion && !may_bury(change.again, order) {
        return unburied(known, change, now);
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
    // An event later than all before it in both stamps lays their doubts to rest.
    let lays_to_rest = rises && order == Some(Ordering::Greater);
    let tie = change.stamps.modified.is_some() && change.stamps.modified == known.modified;
    Raised {
        place: match (newest, does) {
            (Newest::Deletion, Newest::Deletion) => Place::Bury(latest(known.at, change.stamps.at)),
            (Newest::Deletion, _) if !force => Place::KeepTombstone,
            _ => Place::Clear,
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
                || (known.doubt && !lays_to_rest),
            unstamped: lacks_modified(change) || (known.unstamped && !lays_to_rest),
            raised: now.max(known.raised),
        },
        outrun,
        whole: true,
    }
}

/// Tells whether a deletion may bury a customer who is not known to be deleted, or would not anyway.
fn may_bury(again: Option<Redelivery>, order: Option<Ordering>) -> bool {
    match again {
        None => true,
        Some(Redelivery::Restored) => order.is_some(),
        Some(Redelivery::Redriven | Redelivery::Replayed(_)) => order == Some(Ordering::Less),
    }
}

/// Tells whether an event removes a tombstone whatever the times say. What an operator forced once need not be right
/// any more when it is replayed.
fn forces(change: &Change) -> bool {
    change.force && !matches!(change.again, Some(Redelivery::Replayed(_)))
}

/// A deletion that evicts, casts doubt, and binds nobody: what it did, and when, is not kept.
fn unburied(known: Fence, change: &Change, now: Timestamp) -> Raised {
    let modified = known.modified.max(change.stamps.modified);
    let fence = Fence { modified, doubt: true, raised: now.max(known.raised), ..known };
    Raised { fence, place: Place::Clear, outrun: false, whole: false }
}

/// Says what a replay does at K of an event that is remembered, if `fence` still holds all that it announced (`None`:
/// it was lost since, and is to be raised anew). The fence stays as it is: raised again by the same `modified` it
/// would doubt itself. K is evicted, or has its tombstone, as the fence says.
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
        (true, true) => Place::Bury(fence.at),
        (true, false) => Place::KeepTombstone,
        (false, _) => Place::Clear,
    };
    holds.then(|| Raised { fence: fence.clone(), place, outrun, whole: true })
}

fn first(change: &Change, now: Timestamp) -> Raised {
    let does = what_it_does(change.kind);
    let nothing =
        Fence { modified: None, at: None, newest: Newest::Update, doubt: false, unstamped: false, raised: now };
    if does == Newest::Deletion && change.again.is_some() {
        // It may be older than a re-creation that nobody remembers.
        return unburied(nothing, change, now);
    }
    let Stamps { modified, at } = change.stamps;
    let fence = Fence { modified, at, newest: does, unstamped: lacks_modified(change), ..nothing };
    let place = if does == Newest::Deletion { Place::Bury(at) } else { Place::Clear };
    Raised { fence, place, outrun: false, whole: true }
}

/// The fence that a tombstone stands for when its own fence was evicted.
fn deleted_at(at: Option<At>, now: Timestamp) -> Fence {
    Fence { modified: None, at, newest: Newest::Deletion, doubt: true, unstamped: true, raised: now }
}

/// A deletion tells no `modified` and needs none: its tombstone, not its stamp, keeps fills out.
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

/// Joins what two events did whose order cannot be told (equal times).
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

/// Without any time to go by, the order of arrival counts: a creation removes a tombstone, a
/// deletion writes one, an update leaves one.
fn without_time(known: Newest, does: Newest) -> Newest {
    match does {
        Newest::Update => known,
        Newest::Creation | Newest::Deletion | Newest::Contested => does,
    }
}

/// The later of two times; of times that cannot be told apart, the one told more coarsely.
fn latest(a: Option<At>, b: Option<At>) -> Option<At> {
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
