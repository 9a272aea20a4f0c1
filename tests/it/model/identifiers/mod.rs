//! A model of the rule *identifier pointer*: one identifier, two customers between whom it moves, one of whom is deleted or
//! merged into the other, lookups by it, the events of all that, and a Genesys whose contacts and whose search lag behind,
//! each for itself.
//!
//! Every order of changes, reads, deliveries (key by key), losses of any entry and steps of the lookups is visited. A duplicate
//! of an event is the loss of an entry. One lookup is judged; the other one fills, and may be killed while it leads. What a
//! fence settles is reduced to the highest version that it announced; the rules of the fence are in the model of one key.

mod state;
mod steps;

use std::collections::HashSet;

use state::{Answer, Before, C, Change, D, Effect, Events, State};

const HIDES_C: Change = [Some(Effect::Hides), None];
const SHOWS_C: Change = [Some(Effect::Shows), None];
const DELETES_C: Change = [Some(Effect::Deletes), None];
const SHOWS_D: Change = [None, Some(Effect::Shows)];
const HIDES_D: Change = [None, Some(Effect::Hides)];
/// C is merged into D.
const MERGES: Change = [Some(Effect::Redirects), Some(Effect::Shows)];

/// C has the identifier at first.
const HISTORIES: [&[Change]; 8] = [
    &[HIDES_C, SHOWS_D],
    &[SHOWS_D, HIDES_C],
    &[SHOWS_C, HIDES_C],
    &[HIDES_C, SHOWS_C],
    &[DELETES_C, SHOWS_D],
    &[SHOWS_D, DELETES_C],
    &[MERGES],
    &[MERGES, HIDES_D],
];

/// The rule that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A pointer is believed only because of a record that confirms it.
    Confirmation,
    /// An event evicts the pointer of each identifier in its body.
    IdentifierEviction,
    /// A profile is filled only under the lease of its customer, from a request sent after that.
    LeaseOfTheBody,
    /// A lookup that waited for a leader reads both entries again.
    FollowersReadAgain,
    /// What is older than an announced version is labelled.
    Settlement,
    /// A deleted customer whom Genesys' search still finds is absent.
    Tombstone,
}

struct Model {
    history: &'static [Change],
    without: Without,
}

impl Model {
    /// Returns what the last change of a customer did, after so many changes.
    fn effect(&self, who: usize, shown: u8) -> Option<Effect> {
        self.history[..usize::from(shown)].iter().rev().find_map(|change| change[who])
    }

    /// Returns whether a customer's profile shows the identifier after so many changes.
    fn shows(&self, who: usize, shown: u8) -> bool {
        self.effect(who, shown).map_or(who == C, |effect| effect == Effect::Shows)
    }

    fn modified(&self, who: usize, shown: u8) -> u8 {
        let last = self.history[..usize::from(shown)].iter().rposition(|change| change[who].is_some());
        last.map_or(0, |at| at as u8 + 1)
    }

    /// Returns whether one of these events deletes a customer.
    fn buries(&self, who: usize, events: Events) -> bool {
        let is_deletion =
            |(at, change): (usize, &Change)| events & 1 << at != 0 && change[who] == Some(Effect::Deletes);
        self.history.iter().enumerate().any(is_deletion)
    }

    /// Returns whom Genesys' search finds: of two customers the one that changed last.
    fn owner(&self, shown: u8) -> Option<usize> {
        [C, D].into_iter().filter(|who| self.shows(*who, shown)).max_by_key(|who| self.modified(*who, shown))
    }

    /// Returns the highest version that these events announced.
    fn fence(events: Events) -> u8 {
        8 - events.leading_zeros() as u8
    }

    /// Returns what breaks the promise.
    fn judge(&self, before: &Before, answer: &Answer) -> Result<(), &'static str> {
        let Answer { to, search, body, labelled } = *answer;
        if before.at_identifier & !search.at_identifier != 0 {
            return Err("the owner was read before an event about the identifier");
        }
        let announced = Self::fence(before.at_identifier);
        let Some(to) = to else {
            let is_former = !labelled && search.shown < announced;
            return if is_former { Err("an absence that an event denies has no label") } else { Ok(()) };
        };
        if before.at_customer[to] & !body.at_customer != 0 {
            return Err("the profile was read before an event about its customer");
        }
        if before.at_customer[to] & !search.at_customer != 0 && !self.shows(to, body.shown) {
            return Err("the owner was read before an event about it, and its profile does not confirm it");
        }
        if self.buries(to, before.at_customer[to]) {
            return Err("a deleted customer is answered");
        }
        let is_newer = announced > 0 && self.history[usize::from(announced) - 1][to] != Some(Effect::Shows);
        let is_former = is_newer && !labelled && self.modified(to, body.shown) < announced;
        if is_former { Err("a former owner has no label") } else { Ok(()) }
    }

    /// Visits every state; returns how many there are, or what breaks.
    fn explore(&self) -> Result<usize, &'static str> {
        let mut met = HashSet::from([State::START]);
        let mut open = vec![State::START];
        while let Some(state) = open.pop() {
            for mut next in self.successors(&state)? {
                next.forget();
                if met.insert(next) {
                    open.push(next);
                }
            }
        }
        Ok(met.len())
    }
}

fn breaks(without: Without, what: &str) -> bool {
    HISTORIES.into_iter().any(|history| Model { history, without }.explore().is_err_and(|broken| broken.contains(what)))
}

#[test]
fn no_order_of_events_and_reads_answers_with_a_former_owner() {
    for history in HISTORIES {
        let states = Model { history, without: Without::Nothing }.explore().unwrap_or_else(|broken| panic!("{broken}"));
        assert!(states > 10_000, "{states}");
    }
}

#[test]
fn without_confirmation_a_pointer_leads_to_somebody_else() {
    assert!(breaks(Without::Confirmation, "does not confirm"));
}

#[test]
fn without_evictions_of_identifiers_a_former_owner_is_served() {
    assert!(breaks(Without::IdentifierEviction, "about the identifier"));
}

#[test]
fn without_the_lease_of_its_customer_an_old_profile_is_filled() {
    assert!(breaks(Without::LeaseOfTheBody, "the profile was read before"));
}

#[test]
fn a_follower_that_takes_the_answer_of_its_leader_gets_an_old_one() {
    assert!(breaks(Without::FollowersReadAgain, "the profile was read before"));
}

#[test]
fn without_settlement_a_former_owner_has_no_label() {
    assert!(breaks(Without::Settlement, "label"));
}

#[test]
fn without_evictions_of_identifiers_a_customer_stays_absent() {
    let model = Model { history: &[HIDES_C, SHOWS_D], without: Without::IdentifierEviction };
    assert!(model.explore().is_err());
}

#[test]
fn without_tombstones_the_search_leads_to_a_deleted_customer() {
    assert!(breaks(Without::Tombstone, "a deleted customer"));
}
