//! A state of the model, and its canonical form.
//!
//! States that differ only in the names of tokens, processes, lookups or leaders are one state: tokens are renamed in
//! the order in which they occur, and equivalent parts are sorted ([`State::canonical`]). Fields marked *ghost* are not
//! part of the system: they record what the invariants need.

use profile_edge::store::fence::Newest;

use super::history::Stamp;
use super::setup::{DELIVERIES, Events, MOST, Version};

/// Identifies a write at a key. Only equality matters. [`Token::NONE`] means no token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Token(pub(super) u8);

impl Token {
    pub(super) const NONE: Self = Self(0);
}

/// A read of Genesys: what it showed, and (ghost) which events had been applied before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Read {
    pub(super) version: Version,
    pub(super) after: Events,
}

/// The entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Entry {
    #[default]
    Nothing,
    Leased(Token),
    /// A profile, or "no such customer", depending on the read. `lasting`: with the full TTL and grace.
    Record {
        token: Token,
        read: Read,
        settled: bool,
        lasting: bool,
    },
    Pointer(Token),
    /// `deletion` (ghost): the version that it marks; `late` (ghost): by an old deletion that found nothing.
    Tombstone {
        token: Token,
        at: Stamp,
        deletion: Version,
        late: bool,
    },
}

impl Entry {
    pub(super) const fn token(self) -> Token {
        match self {
            Self::Nothing => Token::NONE,
            Self::Leased(token) | Self::Record { token, .. } | Self::Pointer(token) | Self::Tombstone { token, .. } => {
                token
            }
        }
    }

    fn token_mut(&mut self) -> Option<&mut Token> {
        match self {
            Self::Nothing => None,
            Self::Leased(token) | Self::Record { token, .. } | Self::Pointer(token) | Self::Tombstone { token, .. } => {
                Some(token)
            }
        }
    }
}

/// A [`Fence`](profile_edge::store::fence::Fence), small; always within its settle window.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Fence {
    pub(super) modified: Stamp,
    pub(super) at: Stamp,
    pub(super) newest: Did,
    pub(super) doubt: bool,
    pub(super) unstamped: bool,
    /// The last event that raised it, see `events::raiser` (only in Memcached).
    pub(super) last: u8,
    /// Ghost: the version of the newest deletion that it knows.
    pub(super) deletion: Version,
    /// Ghost: the events that it holds (only in Memcached).
    pub(super) holds: Events,
}

/// A [`Newest`] that can be hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Did {
    Update,
    Creation,
    Deletion,
    Contested,
}

impl From<Newest> for Did {
    fn from(newest: Newest) -> Self {
        match newest {
            Newest::Update => Self::Update,
            Newest::Creation => Self::Creation,
            Newest::Deletion => Self::Deletion,
            Newest::Contested => Self::Contested,
        }
    }
}

impl From<Did> for Newest {
    fn from(did: Did) -> Self {
        match did {
            Did::Update => Self::Update,
            Did::Creation => Self::Creation,
            Did::Deletion => Self::Deletion,
            Did::Contested => Self::Contested,
        }
    }
}

/// One key with its fence, lock and marks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Slot {
    pub(super) entry: Entry,
    pub(super) fence: Option<Fence>,
    pub(super) lock: Token,
    /// The marks of applied events; those of replayed ones in the upper half.
    pub(super) seen: u8,
    /// Ghost: the events that had their effect here.
    pub(super) applied: Events,
    /// Ghost: those of them that the store can still know of.
    pub(super) known: Events,
    /// Ghost: the newest version with which a verification replaced a tombstone that had a fence.
    pub(super) revived: Version,
    /// Ghost: the events that the fence has held while it did not say "deleted" (only in Memcached).
    pub(super) announced: Events,
}

/// A store: the primary, or its replica.
pub(super) type Store = [Slot; 2];

/// The progress of one delivery of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Delivery {
    pub(super) stage: Way,
    /// The keys that were visited since it was taken.
    pub(super) visited: u8,
    /// The keys where a first step was done and the second was not (only where a removed rule splits them).
    pub(super) half: u8,
    /// All visits returned `Duplicate`.
    pub(super) duplicate: bool,
    pub(super) replayed: bool,
    /// How far its commands are (only in Memcached).
    pub(super) work: Work,
}

/// An event between two commands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Work {
    pub(super) progress: Progress,
    pub(super) place: Place,
    /// The token of what was read at K, while that is unchanged, and whether it was a lease.
    pub(super) seen: Token,
    pub(super) seen_lease: bool,
    /// The tombstone that was read where there was no fence; later the one that is to be written.
    pub(super) tombstone: Option<(Stamp, Version)>,
    /// The event itself is marked as applied; this is its replay.
    pub(super) remembered: bool,
    /// It may be marked at the end.
    pub(super) whole: bool,
    /// There was neither a fence nor a tombstone. Later (ghost): it is an old deletion that found nothing.
    pub(super) found_nothing: bool,
}

/// The last command of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Progress {
    #[default]
    Waiting,
    /// It is not marked as applied.
    Unmarked,
    /// Fence and K were read. If the fence changes, it begins again.
    Read,
    /// The fence is raised.
    Raised,
    /// The lock is deleted.
    Unlocked,
    /// The version at K is known anew; the fence must be read after that.
    Occupied,
    /// K is changed.
    Effective,
}

/// What an event does at K.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Place {
    #[default]
    Clear,
    KeepTombstone,
    WriteTombstone,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Way {
    /// Queued (nothing visited) or held by a consumer.
    #[default]
    Open,
    Acknowledged,
}

/// A task that fetches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Leader {
    pub(super) stage: Stage,
    pub(super) task: Task,
    pub(super) key: u8,
    pub(super) token: Token,
    /// What the fill replaces, if that is not the lease.
    pub(super) base: Token,
    /// The content of the base (only where a removed rule compares that).
    pub(super) base_version: Version,
    /// The versions that are settled under the lease's fence, one bit each.
    pub(super) settles: u8,
    /// Others of its process may join.
    pub(super) open: bool,
    pub(super) read: Read,
    /// The fence is unchanged since it was read to be overruled (only in Memcached).
    pub(super) same_fence: bool,
    /// Ghost: what the store knew of when it granted the lease.
    pub(super) known: Events,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Stage {
    /// No leader.
    #[default]
    Free,
    /// The lease is written, and the fence must be read (this and the next four: only in Memcached).
    Asking,
    /// The fence says "deleted": this tombstone is to replace the lease.
    Restoring(Stamp, Version),
    /// A lock is to be written beside what was read.
    Locking,
    /// The lock is written, and the fence must be read.
    Locked,
    /// The fence is read, and what is beside the lock must be there still.
    Checking,
    /// The request has not been sent (only without the store).
    Forming,
    /// Genesys has not read yet.
    Fetching,
    Fetched,
    /// The lock was compared, and the fence must be read (this and the next two: only in Memcached).
    Holding,
    /// The fence says "deleted", and is to be overruled by a verified profile.
    Overruling,
    /// K is to be replaced.
    Ready,
    /// The fill is under way. The lookups that waited have their answer.
    Unanswered,
    /// Refused, but still answers later lookups (only if a rule is removed).
    Lingering,
}

impl Stage {
    /// Returns whether it has what Genesys read, and may answer or store it.
    pub(super) const fn has_read(self) -> bool {
        matches!(self, Self::Fetched | Self::Holding | Self::Overruling | Self::Ready | Self::Unanswered)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Task {
    /// Its lease is the entry.
    #[default]
    Fill,
    /// Its lease is the lock beside the entry.
    Refresh,
    /// The same, over a tombstone of this time.
    Verify(Stamp),
    /// Without the store.
    Bypass,
}

/// A lookup.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Lookup {
    pub(super) phase: Phase,
    pub(super) asked: u8,
    /// The key it looks at.
    pub(super) at: u8,
    /// A fence read before the lease: a token's view of it (only where a removed rule reads it so).
    pub(super) settles: Option<u8>,
    /// Ghost: the events that had been applied, as far as they concern it, when it started.
    pub(super) before: Events,
    /// Ghost: the newest version that an earlier lookup had answered.
    pub(super) bar: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) enum Phase {
    /// Not begun, or answered.
    #[default]
    Idle,
    /// About to look (again).
    Looking,
    /// Waits for a leader of its process that it started.
    Leads(u8),
    /// Waits for a leader of another lookup.
    Joined(u8),
}

impl Lookup {
    /// Returns whether it waits for the leader at this place of its process.
    pub(super) fn waits_for(&self, place: usize) -> bool {
        match self.phase {
            Phase::Leads(leader) | Phase::Joined(leader) => usize::from(leader) == place,
            Phase::Idle | Phase::Looking => false,
        }
    }
}

/// A state; see the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct State {
    /// Genesys' own version.
    pub(super) current: Version,
    /// What its read side shows.
    pub(super) shown: Version,
    pub(super) store: Store,
    pub(super) replica: Store,
    pub(super) failed_over: bool,
    pub(super) deliveries: [Delivery; DELIVERIES],
    pub(super) leaders: [[Leader; MOST.2]; MOST.0],
    pub(super) lookups: [[Lookup; MOST.1]; MOST.0],
    /// Ghost: the newest version that a lookup by each key answered without a label.
    pub(super) bar: [Version; 2],
}

impl State {
    /// Returns an unused token.
    pub(super) fn draw(&self) -> Token {
        let mut taken = 0u32;
        self.clone_tokens(|token| taken |= 1 << token.0);
        Token((!taken & !1).trailing_zeros().try_into().unwrap())
    }

    fn clone_tokens(&self, mut see: impl FnMut(Token)) {
        let mut copy = *self;
        copy.each_token(|token| see(*token));
    }

    fn each_token(&mut self, mut with: impl FnMut(&mut Token)) {
        for slot in self.store.iter_mut().chain(&mut self.replica) {
            if let Some(token) = slot.entry.token_mut() {
                with(token);
            }
            if slot.lock != Token::NONE {
                with(&mut slot.lock);
            }
        }
        for leader in self.leaders.iter_mut().flatten().filter(|leader| leader.stage != Stage::Free) {
            with(&mut leader.token);
            if leader.base != Token::NONE {
                with(&mut leader.base);
            }
        }
        for delivery in self.deliveries.iter_mut().filter(|delivery| delivery.work.seen != Token::NONE) {
            with(&mut delivery.work.seen);
        }
    }

    fn rename_tokens(&mut self) {
        let mut names = [0u8; 32];
        let mut last = 0;
        self.each_token(|token| {
            let name = &mut names[usize::from(token.0)];
            if *name == 0 {
                last += 1;
                *name = last;
            }
            token.0 = *name;
        });
    }

    /// Returns the state that represents all states that differ only in names.
    pub(super) fn canonical(mut self) -> Self {
        self.rename_tokens();
        // In descending order: unused places are the smallest and stay last.
        for process in 0..MOST.0 {
            if self.leaders[process][0] < self.leaders[process][1] {
                self.leaders[process].swap(0, 1);
                for lookup in &mut self.lookups[process] {
                    lookup.phase = match lookup.phase {
                        Phase::Leads(slot) => Phase::Leads(1 - slot),
                        Phase::Joined(slot) => Phase::Joined(1 - slot),
                        Phase::Idle | Phase::Looking => lookup.phase,
                    };
                }
            }
            if self.lookups[process][0] < self.lookups[process][1] {
                self.lookups[process].swap(0, 1);
            }
        }
        if (self.lookups[0], self.leaders[0]) < (self.lookups[1], self.leaders[1]) {
            self.lookups.swap(0, 1);
            self.leaders.swap(0, 1);
        }
        self.rename_tokens();
        self
    }
}
