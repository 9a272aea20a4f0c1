//! Histories: what happens to the customer at Genesys and how it is announced, and what an invariant may ask
//! of them.

use profile_edge::domain::{EventTime, Kind, Modified, Precision};

use super::setup::{ALIAS, Events, Setup, Version};
use super::state::Store;

/// The unit of the model's stamps, in milliseconds.
const TICK: i64 = 100;

/// A time of Genesys in ticks, 0 for none. If the high bit is set, its precision is a second.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Stamp(u8);

const SECONDS: u8 = 0x80;

impl Stamp {
    pub(super) const NONE: Self = Self(0);

    pub(super) const fn ticks(ticks: u8) -> Self {
        Self(ticks)
    }

    const fn whole_second(ticks: u8) -> Self {
        Self(ticks | SECONDS)
    }

    pub(super) fn at(self) -> Option<EventTime> {
        let precision = if self.0 & SECONDS == 0 { Precision::Millis } else { Precision::Seconds };
        (self != Self::NONE).then(|| EventTime::new(i64::from(self.0 & !SECONDS) * TICK, precision))
    }

    pub(super) fn of_at(at: Option<EventTime>) -> Self {
        let Some(at) = at else { return Self::NONE };
        let seconds = if at.precision() == Precision::Seconds { SECONDS } else { 0 };
        Self(u8::try_from(at.as_millis() / TICK).unwrap() | seconds)
    }

    pub(super) fn modified(self) -> Option<Modified> {
        (self != Self::NONE).then(|| Modified::from_millis(i64::from(self.0) * TICK))
    }

    pub(super) fn of_modified(modified: Option<Modified>) -> Self {
        modified.map_or(Self::NONE, |modified| Self(u8::try_from(modified.as_millis() / TICK).unwrap()))
    }
}

/// A change at Genesys and the event that announces it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Happening {
    pub(super) kind: Kind,
    pub(super) modified: Stamp,
    pub(super) at: Stamp,
    /// The keys that the event names, one bit each.
    pub(super) names: u8,
}

const fn happening(kind: Kind, modified: Stamp, at: Stamp) -> Happening {
    Happening { kind, modified, at, names: 0b01 }
}

pub(super) const fn updated(ticks: u8) -> Happening {
    happening(Kind::Updated, Stamp::ticks(ticks), Stamp::ticks(ticks))
}

pub(super) const fn created(ticks: u8) -> Happening {
    happening(Kind::Created, Stamp::ticks(ticks), Stamp::ticks(ticks))
}

pub(super) const fn deleted(ticks: u8) -> Happening {
    happening(Kind::Deleted, Stamp::NONE, Stamp::ticks(ticks))
}

/// Deletions have a precision of a second: an earlier update, in milliseconds, seems to be later.
pub(super) const COARSE: &[Happening] =
    &[updated(102), happening(Kind::Deleted, Stamp::NONE, Stamp::whole_second(100))];

/// Deleted and created again in the same second.
pub(super) const SAME_SECOND: &[Happening] = &[
    happening(Kind::Deleted, Stamp::NONE, Stamp::whole_second(100)),
    happening(Kind::Created, Stamp::ticks(105), Stamp::whole_second(100)),
];

/// Restored: the profile exists again with its old `modifyDate`.
pub(super) const RESTORED: &[Happening] = &[deleted(20), happening(Kind::Created, Stamp::ticks(10), Stamp::ticks(30))];

/// Two changes with one `modifyDate`.
pub(super) const TIED: &[Happening] = &[
    happening(Kind::Updated, Stamp::ticks(20), Stamp::ticks(20)),
    happening(Kind::Updated, Stamp::ticks(20), Stamp::ticks(21)),
];

/// The clock of events is behind that of profiles.
pub(super) const SKEWED: &[Happening] = &[
    happening(Kind::Updated, Stamp::ticks(20), Stamp::ticks(2)),
    happening(Kind::Updated, Stamp::ticks(30), Stamp::ticks(3)),
];

/// A sender that gives no time.
pub(super) const NO_TIME: &[Happening] = &[updated(20), happening(Kind::Updated, Stamp::NONE, Stamp::NONE)];

pub(super) const UPDATED_TWICE: &[Happening] = &[updated(20), updated(30)];
pub(super) const RECREATED: &[Happening] = &[deleted(20), created(30)];
pub(super) const UPDATED_DELETED_RECREATED: &[Happening] = &[updated(20), deleted(30), created(40)];
pub(super) const RECREATED_DELETED: &[Happening] = &[deleted(20), created(30), deleted(40)];

/// Merged into the canonical customer, which then changes alone.
pub(super) const MERGED: &[Happening] = &[
    Happening { kind: Kind::Merged, modified: Stamp::ticks(20), at: Stamp::ticks(20), names: 0b11 },
    Happening { kind: Kind::Updated, modified: Stamp::ticks(30), at: Stamp::ticks(30), names: 0b10 },
];

impl Setup {
    /// Returns the event or change that made a version.
    fn made(&self, version: Version) -> usize {
        usize::from(version) - 1
    }

    fn merge(&self) -> Version {
        let place = self.history.iter().position(|happening| happening.kind == Kind::Merged);
        place.map_or(Version::MAX, |place| u8::try_from(place + 1).unwrap())
    }

    /// Returns whether a read at this version finds that the key is an alias.
    pub(super) fn is_alias(&self, key: u8, version: Version) -> bool {
        self.keys > 1 && key == ALIAS && version >= self.merge()
    }

    /// Returns the events that name a key.
    pub(super) fn naming(&self, key: u8) -> Events {
        self.among(|happening| happening.names & (1 << key) != 0)
    }

    /// Returns the events that satisfy a condition.
    pub(super) fn among(&self, holds: impl Fn(&Happening) -> bool) -> Events {
        let mut events = 0;
        for (place, happening) in self.history.iter().enumerate() {
            events |= u8::from(holds(happening)) << place;
        }
        events
    }

    /// Returns whether a read at this version finds a customer.
    pub(super) fn exists(&self, version: Version) -> bool {
        if version == 0 { self.born } else { self.history[self.made(version)].kind != Kind::Deleted }
    }

    /// Returns the `modifyDate` of the profile that a read at this version finds.
    pub(super) fn modified(&self, key: u8, version: Version) -> Stamp {
        if !self.exists(version) {
            return Stamp::NONE;
        }
        let naming = self.naming(key);
        let made = (0..usize::from(version)).rev().find(|place| naming & (1 << place) != 0);
        made.map_or(Stamp::ticks(10), |place| self.history[place].modified)
    }

    /// As [`Setup::modified`], for the code under test.
    pub(super) fn fetched(&self, key: u8, version: Version) -> Option<Modified> {
        self.modified(key, version).modified()
    }

    /// Returns the events that had their effect at all keys that they name.
    pub(super) fn effective(&self, store: &Store) -> Events {
        let mut events = Events::MAX;
        for key in 0..self.keys {
            events &= store[usize::from(key)].applied | !self.naming(key);
        }
        events & self.among(|_| true)
    }

    /// Returns which of these events matter to a lookup by this key: those that name it, and once it is a known alias
    /// also those that name the canonical customer.
    pub(super) fn concerning(&self, key: u8, events: Events) -> Events {
        let merged = self.among(|happening| happening.kind == Kind::Merged) & events;
        let aliased = if key == ALIAS && merged != 0 { self.after(merged) } else { 0 };
        events & (self.naming(key) | aliased)
    }

    /// Returns the events later than all of these.
    pub(super) fn after(&self, events: Events) -> Events {
        let newest = Events::BITS - events.leading_zeros();
        self.among(|_| true) & !(((1u16 << newest) - 1) as Events)
    }

    /// Returns the events newer than a version.
    pub(super) fn newer(&self, version: Version) -> Events {
        self.among(|_| true) & !(((1u16 << version) - 1) as Events)
    }

    /// Returns the events whose effect a read for this key follows, if it happens now.
    pub(super) fn read_after(&self, store: &Store, key: u8) -> Events {
        if self.keys == 1 {
            return store[0].applied;
        }
        let other = 1 - key;
        let here = self.naming(key);
        (store[usize::from(key)].applied & here) | (store[usize::from(other)].applied & !here)
    }
}
