//! What an oracle run records: changes, when their events were applied, and what readers were answered.

use std::collections::{HashMap, HashSet, VecDeque};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

/// A moment of the run: microseconds since it began, by the monotonic clock of this process.
pub(super) type Moment = u64;

/// A time by the wall clock of this machine, as the processes under test told it: milliseconds since the epoch.
pub(super) type WallMillis = i64;

/// The number of a customer in [`History::customers`].
pub(super) type Customer = u32;

/// How many of the customers that were last changed readers are drawn to.
const RECENT: usize = 24;

/// How a customer stood before its first change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It was there, as the sandbox invented it.
    Invented,
    /// It came into being by its first change.
    Absent,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// It wrote its own number into the profile: a creation, an update, or a merge.
    Write,
    /// It deleted the customer.
    Delete,
}

/// One change of a profile, as its writer saw it. Changes of one profile never overlap.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Its number, unique in the run: what the profile says of itself afterwards.
    pub(super) number: u32,
    pub(super) did: Did,
    /// Every customer whose lookup shows this profile: more than one after a merge.
    pub(super) customers: Vec<Customer>,
    /// When it was sent; the sandbox made it after this.
    pub(super) began: Moment,
    /// When it was answered; the sandbox had made it before this.
    pub(super) ended: Moment,
    /// Its events, each of which names all of `customers`.
    pub(super) events: Vec<Uuid>,
}

/// How an event was applied, as a consumer told it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Apply {
    /// When this process read a consumer's line about it; its effect was complete before this.
    pub(super) observed: Moment,
    /// When that consumer began to apply it, if no other had before: its effect came after this.
    pub(super) taken_at: Option<WallMillis>,
}

/// What an answer showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saw {
    /// A profile with the number of its last change; zero: as invented.
    Profile(u32),
    /// 404.
    Absent,
    /// 410.
    Deleted,
}

/// What an answer said about itself in `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    /// Nothing.
    None,
    /// It may be older than what events announced.
    Unsettled,
    /// The store could not be asked, so nobody knows what events announced.
    StoreUnavailable,
}

/// One answer to a reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) customer: Customer,
    /// When it was asked for.
    pub(super) began: Moment,
    /// When it was there, whole.
    pub(super) ended: Moment,
    pub(super) saw: Saw,
    pub(super) label: Label,
    /// It is what the store held: a hit, or a fetch that was stored.
    pub(super) stood: bool,
    /// When upstream read the profile.
    pub(super) read_at: Option<WallMillis>,
}

/// Everything that happened in a round.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) customers: Vec<Start>,
    pub(super) changes: Vec<Change>,
    pub(super) applies: HashMap<Uuid, Apply>,
    pub(super) answers: Vec<Answer>,
}

/// Takes down what is told while a round goes on.
#[derive(Debug)]
pub(super) struct Recorder {
    zero: Instant,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    applies: HashMap<Uuid, Apply>,
    /// Whom each event names.
    events: HashMap<Uuid, Vec<Customer>>,
    /// Those of them that are not known to be applied.
    open: HashSet<Uuid>,
    /// The customers that were changed, or whose change was applied, last.
    recent: VecDeque<Customer>,
}

/// A consumer's line about an applied event.
#[derive(Deserialize)]
struct Line {
    event: Uuid,
    verdict: String,
    taken_at: WallMillis,
    /// Why it was handed out once more.
    again: Option<String>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { zero: Instant::now(), told: Mutex::default() }
    }

    pub(super) fn now(&self) -> Moment {
        Moment::try_from(self.zero.elapsed().as_micros()).expect("no run takes so long")
    }

    /// Takes a line of a consumer's log; tells whether it was about an applied event.
    ///
    /// A consumer writes it between the effect and the acknowledgement, so no event that is gone from the queue
    /// lacks it, whoever was killed; and a redelivery makes another.
    pub(super) fn consumer_says(&self, line: &str) -> bool {
        if !line.contains("\"event applied\"") {
            return false;
        }
        let Ok(line) = serde_json::from_str::<Line>(line) else { return false };
        if line.again.is_some() {
            // A replay binds nobody by itself: the event is applied when it is.
            return true;
        }
        let mut told = self.told.lock();
        // Under the lock, so that whoever finds the event applied comes after this moment.
        let observed = self.now();
        let taken_at = (line.verdict != "Duplicate").then_some(line.taken_at);
        told.applies.entry(line.event).or_insert(Apply { observed, taken_at });
        told.open.remove(&line.event);
        let named = told.events.get(&line.event).cloned();
        told.draw_readers_to(named.as_deref().unwrap_or_default());
        true
    }

    /// Takes down whom the events of a change name.
    pub(super) fn announced(&self, events: &[Uuid], customers: &[Customer]) {
        let mut told = self.told.lock();
        for event in events {
            told.events.insert(*event, customers.to_vec());
            // A consumer may have been quicker than the writer's answer.
            if !told.applies.contains_key(event) {
                told.open.insert(*event);
            }
        }
        told.draw_readers_to(customers);
    }

    /// How many events there were, and how many of them are not known to be applied.
    pub(super) fn events(&self) -> (usize, usize) {
        let told = self.told.lock();
        (told.events.len(), told.open.len())
    }

    /// A customer that was changed lately, the `n`-th last.
    pub(super) fn recent(&self, n: usize) -> Option<Customer> {
        let told = self.told.lock();
        let last = told.recent.len().checked_sub(1)?;
        told.recent.get(last.saturating_sub(n % RECENT)).copied()
    }

    /// Ends a round: returns how events were applied, and forgets everything.
    pub(super) fn finish(&self) -> HashMap<Uuid, Apply> {
        std::mem::take(&mut *self.told.lock()).applies
    }
}

impl Told {
    fn draw_readers_to(&mut self, customers: &[Customer]) {
        self.recent.extend(customers);
        let over = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..over);
    }
}
