//! The steps: each is one command or script of the protocol, or one request to Genesys.

use super::state::{Answer, Before, C, D, Effect, Entry, JUDGED, Leader, OTHER, Phase, Pointer, Pointing, Read, State};
use super::{Model, Without};

impl Model {
    /// Returns the states after one step, or what an answer breaks. Nothing follows the answer that is judged.
    pub(super) fn successors(&self, state: &State) -> Result<Vec<State>, &'static str> {
        let mut found = Vec::new();
        if state.lookups[JUDGED] == Phase::Done {
            return Ok(found);
        }
        self.world(state, &mut found);
        self.background(state, &mut found);
        for place in [JUDGED, OTHER] {
            self.lookup(state, place, &mut found)?;
        }
        Ok(found)
    }

    /// Changes, what Genesys shows of them, events, and losses of entries.
    fn world(&self, state: &State, found: &mut Vec<State>) {
        let mut reach = |edit: &dyn Fn(&mut State)| {
            let mut next = *state;
            edit(&mut next);
            found.push(next);
        };
        if usize::from(state.current) < self.history.len() {
            reach(&|next| next.current += 1);
        }
        if state.contacts < state.current {
            reach(&|next| next.contacts += 1);
        }
        if state.search < state.current {
            reach(&|next| next.search += 1);
        }
        for number in 0..state.current {
            let (change, event) = (self.history[usize::from(number)], 1 << number);
            for who in [C, D] {
                let Some(effect) = change[who].filter(|_| state.at_customer[who] & event == 0) else { continue };
                reach(&|next| {
                    let is_deletion = effect == Effect::Deletes || self.buries(who, next.at_customer[who]);
                    next.entries[who] = if is_deletion { Entry::Tombstone } else { Entry::Nothing };
                    next.at_customer[who] |= event;
                });
            }
            if change.contains(&Some(Effect::Shows)) && state.at_identifier & event == 0 {
                reach(&|next| {
                    next.at_identifier |= event;
                    if self.without != Without::IdentifierEviction {
                        next.pointing = Pointing::Nothing;
                    }
                });
            }
        }
        if state.pointing != Pointing::Nothing {
            reach(&|next| next.pointing = Pointing::Nothing);
        }
        for who in [C, D] {
            if state.entries[who] != Entry::Nothing {
                reach(&|next| next.entries[who] = Entry::Nothing);
            }
        }
        if matches!(state.lookups[OTHER], Phase::Leads(_)) {
            reach(&|next| next.lookups[OTHER] = Phase::Done);
        }
    }

    /// The fill of a customer's entry by its own request.
    fn background(&self, state: &State, found: &mut Vec<State>) {
        let Some((who, token, read)) = state.background else { return };
        let mut next = *state;
        match read {
            None => {
                let body = Read { shown: state.contacts, at_identifier: 0, at_customer: state.at_customer[who] };
                next.background = Some((who, token, Some(body)));
            }
            Some(body) => {
                if state.entries[who] == Entry::Leased(token) {
                    next.entries[who] = self.record(state, who, token, body);
                }
                next.background = None;
            }
        }
        found.push(next);
    }

    fn record(&self, state: &State, who: usize, token: u8, body: Read) -> Entry {
        let settled = self.modified(who, body.shown) >= Self::fence(state.at_customer[who]);
        Entry::Record { token, body: Read { at_identifier: 0, ..body }, settled }
    }

    fn lookup(&self, state: &State, place: usize, found: &mut Vec<State>) -> Result<(), &'static str> {
        let mut go = |phase: Phase| {
            let mut next = *state;
            next.lookups[place] = phase;
            if place == JUDGED && phase == Phase::Looking && state.lookups[place] == Phase::Idle {
                next.before = Before { at_identifier: state.at_identifier, at_customer: state.at_customer };
            }
            found.push(next);
        };
        match state.lookups[place] {
            Phase::Idle => go(Phase::Looking),
            Phase::Done => {}
            Phase::Looking => match state.pointing {
                Pointing::Nothing => {
                    self.lead(state, place, None, None, found);
                    // The process of the judged lookup may remember that the last pointer led to C.
                    if let Entry::Nothing | Entry::Record { .. } = state.entries[C]
                        && place == JUDGED
                    {
                        self.lead(state, place, None, Some(C), found);
                    }
                }
                Pointing::Leased(token) => self.wait(state, place, token)?,
                Pointing::Negative { search, settled } => {
                    self.check(state, place, &Answer { to: None, search, body: search, labelled: !settled })?;
                    go(Phase::Done);
                }
                Pointing::Pointer(pointer) => go(Phase::Following(pointer)),
            },
            Phase::Following(pointer) => match state.entries[pointer.to] {
                Entry::Leased(_) => go(Phase::Looking),
                Entry::Record { token, body, settled }
                    if token == pointer.with
                        || self.shows(pointer.to, body.shown)
                        || self.without == Without::Confirmation =>
                {
                    let labelled = !(settled && pointer.settled);
                    self.check(state, place, &Answer { to: Some(pointer.to), search: pointer.search, body, labelled })?;
                    go(Phase::Done);
                }
                Entry::Record { body, .. } if self.effect(pointer.to, body.shown) == Some(Effect::Redirects) => {
                    self.lead(state, place, Some(pointer.token), None, found);
                }
                Entry::Tombstone => self.lead(state, place, Some(pointer.token), None, found),
                Entry::Nothing | Entry::Record { .. } => {
                    self.lead(state, place, Some(pointer.token), Some(pointer.to), found);
                }
            },
            Phase::Leads(Leader { read: None, .. }) => self.ask(state, place, found),
            Phase::Leads(leader @ Leader { filled: None, .. }) => self.fill(state, place, leader, found),
            Phase::Leads(leader) => self.answer(state, place, leader, found)?,
        }
        Ok(())
    }

    fn check(&self, state: &State, place: usize, answer: &Answer) -> Result<(), &'static str> {
        if place == JUDGED { self.judge(&state.before, answer) } else { Ok(()) }
    }

    /// A follower waits for a change of the entry; without the rule it takes what the leader read.
    fn wait(&self, state: &State, place: usize, token: u8) -> Result<(), &'static str> {
        if let Phase::Leads(Leader { token: held, read: Some(read), .. }) = state.lookups[1 - place]
            && held == token
            && self.without == Without::FollowersReadAgain
            && let Some(to) = self.owner(read.shown)
        {
            self.check(state, place, &Answer { to: Some(to), search: read, body: read, labelled: true })?;
        }
        Ok(())
    }

    /// Takes the lease of the customer whom a hint names, and that of the identifier over the pointer that was seen.
    fn lead(&self, state: &State, place: usize, seen: Option<u8>, hint: Option<usize>, found: &mut Vec<State>) {
        let mut next = *state;
        let token = next.draw(&[]);
        let unchanged = match (state.pointing, seen) {
            (Pointing::Pointer(standing), Some(seen)) => standing.token == seen,
            (Pointing::Nothing, None) => true,
            (Pointing::Nothing | Pointing::Leased(_) | Pointing::Negative { .. } | Pointing::Pointer(_), _) => false,
        };
        next.lookups[place] = Phase::Looking;
        if let Some(to) = hint.filter(|to| self.buries(*to, state.at_customer[*to])) {
            // The fence of the deletion writes its tombstone again, in place of the lease.
            next.entries[to] = Entry::Tombstone;
        } else if unchanged {
            let hint = hint.map(|to| {
                let lease = next.draw(&[token]);
                next.entries[to] = Entry::Leased(lease);
                (to, lease)
            });
            next.pointing = Pointing::Leased(token);
            let fence = Self::fence(state.at_identifier);
            let leader = Leader { token, hint, fence, read: None, filled: None, deleted: false };
            next.lookups[place] = Phase::Leads(leader);
        }
        found.push(next);
    }

    /// Genesys' search answers the leader.
    fn ask(&self, state: &State, place: usize, found: &mut Vec<State>) {
        let mut next = *state;
        let at_customer = self.owner(state.search).map_or(0, |to| state.at_customer[to]);
        if let Phase::Leads(leader) = &mut next.lookups[place] {
            leader.read = Some(Read { shown: state.search, at_identifier: state.at_identifier, at_customer });
        }
        found.push(next);
    }

    /// Fills the entry of the customer under the lease that the leader holds, or leaves it to a request of its own.
    fn fill(&self, state: &State, place: usize, leader: Leader, found: &mut Vec<State>) {
        let (mut next, mut filled, mut deleted) = (*state, 0, false);
        let read = leader.read.unwrap_or_default();
        let owner = self.owner(read.shown);
        if let Some((to, lease)) = leader.hint.filter(|(to, lease)| state.entries[*to] == Entry::Leased(*lease)) {
            next.entries[to] = Entry::Nothing;
            if owner == Some(to) {
                next.entries[to] = self.record(state, to, lease, read);
                filled = lease;
            }
        }
        if let Some(to) = owner.filter(|to| leader.hint.is_none_or(|(hinted, _)| hinted != *to)) {
            if self.buries(to, state.at_customer[to]) && self.without != Without::Tombstone {
                next.entries[to] = Entry::Tombstone;
                deleted = true;
            } else if state.entries[to] == Entry::Nothing {
                let lease = next.draw(&[]);
                if self.without == Without::LeaseOfTheBody {
                    let body = Read { at_identifier: 0, ..read };
                    next.entries[to] = Entry::Record { token: lease, body, settled: true };
                } else if next.background.is_none() {
                    next.entries[to] = Entry::Leased(lease);
                    next.background = Some((to, lease, None));
                }
            }
        }
        next.lookups[place] = Phase::Leads(Leader { filled: Some(filled), deleted, ..leader });
        found.push(next);
    }

    /// Fills the entry of the identifier and answers.
    fn answer(&self, state: &State, place: usize, leader: Leader, found: &mut Vec<State>) -> Result<(), &'static str> {
        let mut next = *state;
        let read = leader.read.unwrap_or_default();
        let owner = self.owner(read.shown).filter(|_| !leader.deleted);
        let is_newest = owner.is_some_and(|to| self.modified(to, read.shown) >= leader.fence);
        let settled = !leader.deleted && (is_newest || leader.fence == 0) || self.without == Without::Settlement;
        if state.pointing == Pointing::Leased(leader.token) {
            next.pointing = match owner {
                None => Pointing::Negative { search: Read { at_customer: 0, ..read }, settled },
                Some(to) => {
                    let with = leader.filled.unwrap_or_default();
                    Pointing::Pointer(Pointer { token: leader.token, to, with, search: read, settled })
                }
            };
        }
        self.check(state, place, &Answer { to: owner, search: read, body: read, labelled: !settled })?;
        next.lookups[place] = Phase::Done;
        found.push(next);
        Ok(())
    }
}
