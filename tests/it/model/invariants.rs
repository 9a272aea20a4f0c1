//! The invariants, one by one.

use std::ops::{BitAnd, BitOr, BitOrAssign};

use profile_edge::domain::Kind;

use super::setup::{ALIAS, Events, REDRIVEN, Setup, Version};
use super::state::{Entry, Lookup, Read, State, Way};

/// What must hold. An event is "applied" when it had its effect at every key that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invariant {
    /// The answer of a lookup is at least as new as every event that was applied before the lookup started, or was read
    /// at Genesys after that event's delete.
    NoStaleAnswer,
    /// The same, for an answer from the leader of another lookup.
    JoinedNeverOlder,
    /// The same, for a lookup by an alias. Events that name only the canonical customer count once the merge was
    /// applied. After that only an `unsettled` answer may lack them.
    AliasNeverOlder,
    /// No answer was read at Genesys before the delete of an event that was applied before the lookup started,
    /// however new it is.
    NothingReadBefore,
    /// An answer that is, by its stamps, older than an event applied before the lookup started has the label
    /// `unsettled` (or `bypass`).
    SettledLabel,
    /// What is stored for its full TTL is, by its stamps, as new as all announced events.
    Settlement,
    /// A deleted customer's profile is not served until an event later than the deletion was applied. In single
    /// commands it may have raised the fence only; its other steps follow.
    DeletedNotServed,
    /// A tombstone is not served after an event later than its deletion was applied, or a later profile replaced it.
    RecreationShows,
    /// A lookup that started after another got an unlabelled profile does not return an older one without a label.
    NoBackwards,
    /// No lease is granted while the fill of another leader would still be stored.
    OneFetchPerLease,
    /// An acknowledged event had its effect at its key.
    EveryEventApplied,
    /// An acknowledged event had its effect at each of several keys.
    EveryKeyVisited,
}

impl Invariant {
    pub(super) const ALL: [Self; 12] = [
        Self::NoStaleAnswer,
        Self::JoinedNeverOlder,
        Self::AliasNeverOlder,
        Self::NothingReadBefore,
        Self::SettledLabel,
        Self::Settlement,
        Self::DeletedNotServed,
        Self::RecreationShows,
        Self::NoBackwards,
        Self::OneFetchPerLease,
        Self::EveryEventApplied,
        Self::EveryKeyVisited,
    ];
}

/// A set of invariants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Broken(u16);

impl Broken {
    pub(super) const ALL: Self = Self(u16::MAX);

    pub(super) const fn only(invariant: Invariant) -> Self {
        Self(1 << invariant as u16)
    }

    pub(super) const fn all_but(invariant: Invariant) -> Self {
        Self(!Self::only(invariant).0)
    }

    pub(super) fn when(broken: bool, invariant: Invariant) -> Self {
        if broken { Self::only(invariant) } else { Self::default() }
    }

    pub(super) fn first(self) -> Option<Invariant> {
        Invariant::ALL.into_iter().find(|invariant| self.0 & Self::only(*invariant).0 != 0)
    }
}

impl BitAnd for Broken {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Broken {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Broken {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The answer of a lookup.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) read: Read,
    /// It has the label `unsettled` or `bypass`.
    pub(super) labelled: bool,
    /// It is from the leader of another lookup.
    pub(super) joined: bool,
    /// It is from the store, or is stored there now.
    pub(super) stored: bool,
    /// The events that the store knew when it judged the answer.
    pub(super) known: Events,
}

/// Checks a profile, or "no such customer", as the answer of a lookup.
pub(super) fn judge_answer(setup: &Setup, state: &State, lookup: &Lookup, answer: Answer) -> Broken {
    let Answer { read, labelled, joined, stored, known } = answer;
    let by_alias = setup.keys > 1 && lookup.asked == ALIAS;
    let named = setup.naming(lookup.asked);
    let read_before = lookup.before & !read.after;
    let stale = read_before & setup.newer(read.version);
    let announced = lookup.before & known;
    let deletions = announced & setup.newer(read.version) & setup.among(|happening| happening.kind == Kind::Deleted);
    let slot = &state.store[usize::from(lookup.at)];
    let later = setup.after(deletions) & (slot.applied | slot.announced);
    let older = if by_alias {
        let excused = if labelled { !named } else { 0 };
        Broken::when(stale & !excused != 0, Invariant::AliasNeverOlder)
    } else if joined {
        Broken::when(stale != 0, Invariant::JoinedNeverOlder)
    } else {
        Broken::when(stale != 0, Invariant::NoStaleAnswer)
    };
    let served_deleted = setup.exists(read.version) && deletions != 0 && later == 0;
    older
        | Broken::when(read_before & named != 0, Invariant::NothingReadBefore)
        | Broken::when(!labelled && shows_newer(setup, lookup.at, announced, read.version), Invariant::SettledLabel)
        | Broken::when(served_deleted, Invariant::DeletedNotServed)
        | Broken::when(!labelled && stored && read.version < lookup.bar, Invariant::NoBackwards)
}

/// Checks a tombstone as the answer of a lookup.
pub(super) fn judge_tombstone(setup: &Setup, state: &State, lookup: &Lookup, deletion: Version, late: bool) -> Broken {
    let slot = &state.store[usize::from(lookup.at)];
    let announced = if late { lookup.before } else { lookup.before & slot.known };
    let overtaken = announced & setup.newer(deletion) != 0;
    Broken::when(overtaken || deletion < slot.revived, Invariant::RecreationShows)
}

/// Checks the entries of the store.
pub(super) fn judge_state(setup: &Setup, state: &State) -> Broken {
    let mut broken = Broken::default();
    for key in 0..setup.keys {
        let slot = &state.store[usize::from(key)];
        if let Entry::Record { read, lasting: true, .. } = slot.entry {
            let announced = slot.known & setup.naming(key);
            broken |= Broken::when(shows_newer(setup, key, announced, read.version), Invariant::Settlement);
        }
    }
    for (delivery, event) in state.deliveries.iter().zip(setup.deliveries) {
        let event = event & !REDRIVEN;
        if delivery.stage == Way::Acknowledged {
            let names = setup.history[usize::from(event)].names;
            let lost = (0..setup.keys)
                .any(|key| names >> key & 1 == 1 && state.store[usize::from(key)].applied >> event & 1 == 0);
            let invariant =
                if names.count_ones() > 1 { Invariant::EveryKeyVisited } else { Invariant::EveryEventApplied };
            broken |= Broken::when(lost, invariant);
        }
    }
    broken
}

/// Returns whether these events show that the content of a key at a version is old.
///
/// If the profile has the same `modified` as a later event, they show it only once they include all events with that
/// `modified` and the deletions between them. Before, nothing distinguishes the two.
fn shows_newer(setup: &Setup, key: u8, events: Events, version: Version) -> bool {
    let newer = events & setup.newer(version);
    if newer == 0 {
        return false;
    }
    let modified = setup.modified(key, version);
    let tied = setup.among(|happening| happening.modified == modified);
    let between = setup.newer(version) & setup.among(|happening| happening.kind == Kind::Deleted);
    let unlike = newer & !tied;
    let told_apart = (tied | between) & !events == 0;
    (unlike & setup.naming(key) != 0) || (newer & tied != 0 && told_apart)
}
