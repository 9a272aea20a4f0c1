//! Configurations: what happens at Genesys, how it is announced, and what may go wrong.

use super::history::{self, Happening, created, updated};
use super::mutations::Without;

/// A version of the customer at Genesys: how many changes it has seen.
pub(super) type Version = u8;

/// A set of events, one bit each. The bit of an event is its index in the history.
pub(super) type Events = u8;

/// The key that a merge makes an alias, if there are two keys.
pub(super) const ALIAS: u8 = 0;

/// The most processes, lookups of a process and leaders of a process.
pub(super) const MOST: (usize, usize, usize) = (2, 2, 2);

/// The most deliveries.
pub(super) const DELIVERIES: usize = 4;

/// Marks a delivery of an event that an operator has replayed, settled or not.
pub(super) const REDRIVEN: u8 = 0x80;

/// The failures that may occur, besides expiry or eviction of the entry, late reads and reordering, which always may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Processes are killed, leaders dropped, deliveries returned before their acknowledgement; callers disconnect.
    pub(super) crashes: bool,
    /// The fence is evicted.
    pub(super) fence: bool,
    /// The marks of applied events are evicted.
    pub(super) seen: bool,
    /// The lock of a refresh expires or is evicted.
    pub(super) lock: bool,
    /// The store does not answer a lookup, or its fill.
    pub(super) unreachable: bool,
    /// A replica lags behind and takes over, once.
    pub(super) failover: Failover,
}

/// What limits a failover that loses acknowledged writes (*failover*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Failover {
    #[default]
    Never,
    /// Events are acknowledged when the replica has their effect.
    Waits,
    /// Events are applied again from the journal.
    Replays,
}

/// A configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) name: &'static str,
    /// Whether the customer exists at the beginning.
    pub(super) born: bool,
    pub(super) history: &'static [Happening],
    /// The deliveries: for each the index of its event, or [`REDRIVEN`] and the index.
    pub(super) deliveries: &'static [u8],
    pub(super) keys: u8,
    pub(super) processes: usize,
    pub(super) lookups: usize,
    pub(super) leaders: usize,
    /// A record that is still served may be refreshed.
    pub(super) refresh: bool,
    /// A tombstone may be verified.
    pub(super) verify: bool,
    /// Whether to leave out what cannot matter any more (see `reduction`).
    pub(super) reduced: bool,
    /// Whether a step is one command of Memcached, in place of a whole operation.
    pub(super) commands: bool,
    pub(super) trouble: Trouble,
    pub(super) without: Without,
}

pub(super) const PLAIN: Setup = Setup {
    name: "",
    born: true,
    history: &[updated(20)],
    deliveries: &[0],
    keys: 1,
    processes: 2,
    lookups: 1,
    leaders: 1,
    refresh: false,
    verify: false,
    reduced: true,
    commands: false,
    trouble: QUIET,
    without: Without::Nothing,
};

pub(super) const QUIET: Trouble =
    Trouble { crashes: false, fence: false, seen: false, lock: false, unreachable: false, failover: Failover::Never };

pub(super) const CRASHES: Trouble = Trouble { crashes: true, ..QUIET };

pub(super) const EVICTS: Trouble = Trouble { crashes: true, fence: true, seen: true, lock: true, ..QUIET };

/// Follows every late fill to its end, joined or not: nothing is left out.
pub(super) const FILLS: Setup =
    Setup { name: "fills: an update, unreduced", reduced: false, trouble: CRASHES, ..PLAIN };

pub(super) const STAMPEDE: Setup = Setup {
    name: "stampede: two updates, two lookups and leaders each",
    history: history::UPDATED_TWICE,
    deliveries: &[0, 1],
    lookups: 2,
    leaders: 2,
    refresh: true,
    trouble: Trouble { lock: true, ..CRASHES },
    ..PLAIN
};

pub(super) const ORDER: Setup = Setup {
    name: "order: three updates in any order",
    history: &[updated(20), updated(30), updated(40)],
    deliveries: &[0, 1, 2],
    refresh: true,
    trouble: CRASHES,
    ..PLAIN
};

pub(super) const REFRESH: Setup = Setup {
    name: "refresh: in place, locks lost, unreduced",
    refresh: true,
    reduced: false,
    processes: 1,
    lookups: 2,
    leaders: 2,
    trouble: Trouble { lock: true, ..QUIET },
    ..PLAIN
};

pub(super) const EVICTION: Setup = Setup {
    name: "eviction: of every key, two updates redelivered",
    history: history::UPDATED_TWICE,
    deliveries: &[0, 1],
    refresh: true,
    trouble: EVICTS,
    ..PLAIN
};

pub(super) const RECREATION: Setup = Setup {
    name: "tombstone: deleted and created again, marks lost",
    history: history::RECREATED,
    deliveries: &[0, 1],
    refresh: true,
    trouble: Trouble { seen: true, ..CRASHES },
    ..PLAIN
};

pub(super) const REDRIVE: Setup = Setup {
    name: "redrive: the deletion again, every key lost",
    history: history::RECREATED,
    deliveries: &[0, 1, REDRIVEN],
    verify: true,
    trouble: EVICTS,
    ..PLAIN
};

pub(super) const ONCE_MORE: Setup = Setup {
    name: "once more: deleted and created again, both replayed at any time",
    history: history::RECREATED,
    deliveries: &[0, 1, REDRIVEN, REDRIVEN | 1],
    trouble: EVICTS,
    ..PLAIN
};

pub(super) const OVERTAKEN: Setup = Setup {
    name: "overtaken: updated, deleted, created again, the deletion replayed at any time",
    history: history::UPDATED_DELETED_RECREATED,
    deliveries: &[0, 1, 2, REDRIVEN | 1],
    trouble: Trouble { seen: true, ..CRASHES },
    ..PLAIN
};

pub(super) const LATE_UPDATE: Setup = Setup {
    name: "late update: updated, deleted, created again",
    history: history::UPDATED_DELETED_RECREATED,
    deliveries: &[0, 1, 2],
    refresh: true,
    verify: true,
    trouble: CRASHES,
    ..PLAIN
};

pub(super) const DELETED_AGAIN: Setup = Setup {
    name: "verification: deleted, created and deleted again",
    history: history::RECREATED_DELETED,
    deliveries: &[0, 1, 2],
    verify: true,
    trouble: Trouble { lock: true, ..CRASHES },
    ..PLAIN
};

const fn of_two(name: &'static str, history: &'static [Happening]) -> Setup {
    Setup { name, history, deliveries: &[0, 1], refresh: true, trouble: CRASHES, ..PLAIN }
}

pub(super) const COARSE_TIMES: Setup = of_two("coarse times: updated and deleted in one second", history::COARSE);

pub(super) const ONE_SECOND: Setup = of_two("one second: deleted and created again in it", history::SAME_SECOND);

pub(super) const TIES: Setup = of_two("ties: two updates with one modifyDate", history::TIED);

pub(super) const RESTORE: Setup = of_two("restored: with the modifyDate that it had", history::RESTORED);

pub(super) const SKEW: Setup = of_two("skew: the events' clock is behind", history::SKEWED);

pub(super) const UNSTAMPED: Setup = of_two("unstamped: an event without any time", history::NO_TIME);

pub(super) const BIRTH: Setup = Setup {
    name: "birth: created, then updated",
    born: false,
    history: &[created(20), updated(30)],
    deliveries: &[0, 1],
    refresh: true,
    trouble: Trouble { seen: true, ..CRASHES },
    ..PLAIN
};

pub(super) const MERGE: Setup = Setup {
    name: "merge: two keys, then an event for the canonical one alone",
    history: history::MERGED,
    deliveries: &[0, 1],
    keys: 2,
    processes: 1,
    lookups: 2,
    leaders: 2,
    trouble: CRASHES,
    ..PLAIN
};

pub(super) const UNREACHABLE: Setup = Setup {
    name: "unreachable: lookups go past the store, fills unanswered",
    lookups: 2,
    refresh: true,
    trouble: Trouble { unreachable: true, ..CRASHES },
    ..PLAIN
};

pub(super) const WAIT: Setup = Setup {
    name: "failover: acknowledgements wait for the replica",
    processes: 1,
    lookups: 2,
    trouble: Trouble { failover: Failover::Waits, ..CRASHES },
    ..PLAIN
};

pub(super) const REPLAY: Setup = Setup {
    name: "failover: the journal is replayed",
    history: history::RECREATED,
    deliveries: &[0, 1],
    processes: 1,
    trouble: Trouble { failover: Failover::Replays, ..CRASHES },
    ..PLAIN
};

/// The configurations of every run, the largest first.
pub(super) const SMALL: [Setup; 22] = [
    EVICTION,
    REPLAY,
    MERGE,
    REDRIVE,
    ONCE_MORE,
    OVERTAKEN,
    STAMPEDE,
    ORDER,
    LATE_UPDATE,
    FILLS,
    REFRESH,
    RECREATION,
    DELETED_AGAIN,
    COARSE_TIMES,
    ONE_SECOND,
    TIES,
    RESTORE,
    SKEW,
    UNSTAMPED,
    BIRTH,
    UNREACHABLE,
    WAIT,
];

const fn doubled(setup: Setup) -> Setup {
    Setup { lookups: 2, leaders: 2, ..setup }
}

/// The configurations of the nightly run.
pub(super) const LARGE: [Setup; 8] = [
    Setup { name: "large: unreduced, two lookups each", ..doubled(FILLS) },
    Setup { name: "large: eviction of every key, two lookups each", lookups: 2, ..EVICTION },
    Setup {
        name: "large: three updates, locks and marks lost",
        trouble: Trouble { fence: false, ..EVICTS },
        ..doubled(ORDER)
    },
    Setup { name: "large: tombstones verified, every key lost", verify: true, trouble: EVICTS, ..RECREATION },
    Setup {
        name: "large: deleted again, marks lost",
        refresh: true,
        trouble: Trouble { fence: false, ..EVICTS },
        ..DELETED_AGAIN
    },
    Setup { name: "large: merge, two processes", processes: 2, lookups: 1, refresh: true, ..MERGE },
    Setup {
        name: "large: unreachable, every key lost",
        trouble: Trouble { unreachable: true, ..EVICTS },
        ..UNREACHABLE
    },
    Setup { name: "large: failover over two processes", processes: 2, ..REPLAY },
];
