//! What a state is: see [`State`].

/// One bit for each event, by its position in the history.
pub(super) type Events = u8;

pub(super) const C: usize = 0;
pub(super) const D: usize = 1;

/// The lookup that is judged, and the other one.
pub(super) const JUDGED: usize = 0;
pub(super) const OTHER: usize = 1;

/// The token of what nobody refers to any more.
const FORGOTTEN: u8 = 63;

/// What a change does to a customer's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It shows the identifier.
    Shows,
    /// It does not show the identifier.
    Hides,
    /// The customer is deleted.
    Deletes,
    /// The customer was merged into the other one, whose profile is answered for both.
    Redirects,
}

/// A change: what it does to each customer, if anything. Its event names these customers, and the identifier if one of
/// their profiles shows it.
pub(super) type Change = [Option<Effect>; 2];

/// The version that a request to Genesys showed, and which events had been applied by then: at the identifier's key, and at
/// that of the customer whom it showed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Read {
    pub(super) shown: u8,
    pub(super) at_identifier: Events,
    pub(super) at_customer: Events,
}

/// The events that had been applied when the judged lookup began.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Before {
    pub(super) at_identifier: Events,
    pub(super) at_customer: [Events; 2],
}

/// An answer: the customer, if anybody has the identifier, what the search and the profile were read from, and whether it is
/// labelled.
pub(super) struct Answer {
    pub(super) to: Option<usize>,
    pub(super) search: Read,
    pub(super) body: Read,
    pub(super) labelled: bool,
}

/// A pointer, the token of its record, and that of the record that was filled together with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pointer {
    pub(super) token: u8,
    pub(super) to: usize,
    pub(super) with: u8,
    pub(super) search: Read,
    pub(super) settled: bool,
}

/// What stands at the identifier's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pointing {
    Nothing,
    Leased(u8),
    Negative { search: Read, settled: bool },
    Pointer(Pointer),
}

/// What stands at a customer's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Nothing,
    Leased(u8),
    Tombstone,
    Record { token: u8, body: Read, settled: bool },
}

/// How far a lookup is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    Looking,
    /// It has read the pointer.
    Following(Pointer),
    /// It holds the leases: of the identifier, and of the customer whom a hint named.
    Leads(Leader),
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) token: u8,
    /// The customer, and its lease; zero once that is lost.
    pub(super) hint: Option<(usize, u8)>,
    pub(super) fence: u8,
    pub(super) read: Option<Read>,
    /// The customer's entry was filled, under this token; or that was given up.
    pub(super) filled: Option<u8>,
    /// The customer whom the search found is deleted.
    pub(super) deleted: bool,
}

/// What Genesys has and shows, the three entries, the events that were applied at each key, and how far everybody is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) current: u8,
    pub(super) contacts: u8,
    pub(super) search: u8,
    pub(super) pointing: Pointing,
    pub(super) entries: [Entry; 2],
    pub(super) at_identifier: Events,
    pub(super) at_customer: [Events; 2],
    pub(super) lookups: [Phase; 2],
    pub(super) before: Before,
    /// A request that fills a customer's entry in the background: the customer, its lease, and what it has read.
    pub(super) background: Option<(usize, u8, Option<Read>)>,
}

impl State {
    /// The judged lookup has not begun.
    pub(super) const START: Self = Self {
        current: 0,
        contacts: 0,
        search: 0,
        pointing: Pointing::Nothing,
        entries: [Entry::Nothing; 2],
        at_identifier: 0,
        at_customer: [0; 2],
        lookups: [Phase::Idle, Phase::Looking],
        before: Before { at_identifier: 0, at_customer: [0; 2] },
        background: None,
    };

    /// Returns an unused token, which is none of `more`.
    pub(super) fn draw(&self, more: &[u8]) -> u8 {
        let mut used = self.referred() | more.iter().fold(1, |used, token| used | 1 << token);
        used |= match self.pointing {
            Pointing::Leased(token) | Pointing::Pointer(Pointer { token, .. }) => 1 << token,
            Pointing::Nothing | Pointing::Negative { .. } => 0,
        };
        for entry in self.entries {
            if let Entry::Leased(token) | Entry::Record { token, .. } = entry {
                used |= 1 << token;
            }
        }
        (!used).trailing_zeros() as u8
    }

    /// Returns the tokens that a lookup, a request in the background or the pointer compares with those of entries.
    fn referred(&self) -> u64 {
        let mut tokens = self.background.map_or(0, |(_, token, _)| 1 << token);
        if let Pointing::Pointer(pointer) = self.pointing {
            tokens |= 1 << pointer.with;
        }
        for lookup in self.lookups {
            tokens |= match lookup {
                Phase::Following(Pointer { token, with, .. }) => 1 << token | 1 << with,
                Phase::Leads(Leader { token, hint, filled, .. }) => {
                    1 << token | 1 << filled.unwrap_or_default() | 1 << hint.map_or(0, |(_, lease)| lease)
                }
                Phase::Idle | Phase::Looking | Phase::Done => 0,
            };
        }
        tokens
    }

    /// Forgets what decides nothing any more, and gives the same name to all that nobody can tell apart.
    pub(super) fn forget(&mut self) {
        self.forget_lost_leases();
        self.forget_lost_records();
        if self.lookups[JUDGED] != Phase::Idle {
            self.forget_other_events();
        }
        let referred = self.referred();
        let forget = |token: &mut u8| {
            if referred & 1 << *token == 0 {
                *token = FORGOTTEN;
            }
        };
        match &mut self.pointing {
            Pointing::Leased(token) | Pointing::Pointer(Pointer { token, .. }) => forget(token),
            Pointing::Nothing | Pointing::Negative { .. } => {}
        }
        for entry in &mut self.entries {
            if let Entry::Leased(token) | Entry::Record { token, .. } = entry {
                forget(token);
            }
        }
    }

    /// Nobody fills under a lease that is gone.
    fn forget_lost_leases(&mut self) {
        let (pointing, entries) = (self.pointing, self.entries);
        self.background = self.background.filter(|(who, token, _)| entries[*who] == Entry::Leased(*token));
        for (place, lookup) in self.lookups.iter_mut().enumerate() {
            let Phase::Leads(leader) = lookup else { continue };
            if let Some((to, lease)) = &mut leader.hint
                && entries[*to] != Entry::Leased(*lease)
            {
                *lease = 0;
            }
            if pointing != Pointing::Leased(leader.token) {
                leader.token = 0;
                leader.filled = leader.filled.map(|_| 0);
                if place == OTHER {
                    leader.fence = 0;
                    if leader.filled.is_some() {
                        *lookup = Phase::Done;
                    }
                }
            }
        }
    }

    /// A record that no entry holds any more confirms no pointer.
    fn forget_lost_records(&mut self) {
        let (standing, entries) = (self.pointing, self.entries);
        let is_held = |to: usize, with: u8| matches!(entries[to], Entry::Record { token, .. } if token == with);
        let forget = |pointer: &mut Pointer| {
            if !is_held(pointer.to, pointer.with) {
                pointer.with = 0;
            }
        };
        if let Pointing::Pointer(pointer) = &mut self.pointing {
            forget(pointer);
        }
        for lookup in &mut self.lookups {
            if let Phase::Following(pointer) = lookup {
                forget(pointer);
                if !matches!(standing, Pointing::Pointer(standing) if standing.token == pointer.token) {
                    pointer.token = 0;
                }
            }
        }
    }

    /// Of the events that had been applied when something was read, those count that the judged lookup must see.
    fn forget_other_events(&mut self) {
        let before = self.before;
        let mask = |read: &mut Read, of: Option<usize>| {
            read.at_identifier &= before.at_identifier;
            read.at_customer &= of.map_or(before.at_customer[C] | before.at_customer[D], |who| before.at_customer[who]);
        };
        match &mut self.pointing {
            Pointing::Pointer(pointer) => mask(&mut pointer.search, Some(pointer.to)),
            Pointing::Negative { search, .. } => mask(search, None),
            Pointing::Nothing | Pointing::Leased(_) => {}
        }
        for (who, entry) in self.entries.iter_mut().enumerate() {
            if let Entry::Record { body, .. } = entry {
                mask(body, Some(who));
            }
        }
        for lookup in &mut self.lookups {
            match lookup {
                Phase::Following(pointer) => mask(&mut pointer.search, Some(pointer.to)),
                Phase::Leads(Leader { read: Some(read), .. }) => mask(read, None),
                Phase::Idle | Phase::Looking | Phase::Leads(_) | Phase::Done => {}
            }
        }
        if let Some((who, _, Some(read))) = &mut self.background {
            mask(read, Some(*who));
        }
    }
}
