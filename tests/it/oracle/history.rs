//! The record of an oracle run: changes, the times at which their events were applied, and the answers to readers.

use std::collections::{HashMap, HashSet, VecDeque};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

/// A time in the run: microseconds since its start, by the monotonic clock of this process.
pub(crate) type RunMicros = u64;

/// A time that the processes under test report: milliseconds since the epoch, by the wall clock of this machine.
pub(crate) type WallMillis = i64;

/// The number of a customer in [`RunHistory::customers`].
pub(crate) type CustomerNumber = u32;

/// The number of recently changed customers that readers prefer.
const RECENT: usize = 24;

/// The state of a customer before its first change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitialState {
    /// The sandbox created it at its start.
    Invented,
    /// Its first change creates it.
    Absent,
    /// It is a phone number, which nobody has before the first change.
    Number,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// Writes its own number into the profile: a creation, an update, or a merge.
    Write,
    /// Deletes the customer.
    Delete,
}

/// One change of a profile, as its writer observed it. Changes of one profile never overlap.
#[derive(Clone, Debug)]
pub(crate) struct ProfileChange {
    /// Its number, unique in the run. The profile holds it after the change.
    pub(crate) number: u32,
    pub(crate) kind: ChangeKind,
    /// The customers whose lookups show this profile; more than one after a merge, and the number that it got.
    pub(crate) customers: Vec<CustomerNumber>,
    /// When the request was sent; the sandbox applied it later.
    pub(crate) began: RunMicros,
    /// When the answer arrived; the sandbox applied it earlier.
    pub(crate) ended: RunMicros,
    /// Its events; each names all of `customers`.
    pub(crate) events: Vec<Uuid>,
}

/// How an event was applied, as a consumer logged it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventApply {
    /// When this process read the log line; the effect was complete before.
    pub(crate) observed: RunMicros,
    /// When that consumer started to apply it, if no delivery had reached any of its keys before; the effect came later.
    pub(crate) taken_at: Option<WallMillis>,
}

/// What an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observation {
    /// A profile with the number of its last change; zero before the first change.
    Profile(u32),
    /// 404.
    Absent,
    /// 410.
    Deleted,
}

/// How `Cache-Status` labels an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerLabel {
    /// Not labelled.
    None,
    /// The answer may be older than announced changes.
    Unsettled,
    /// The store was unreachable, so announced changes are unknown.
    StoreUnavailable,
}

/// One answer to a reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObservedAnswer {
    pub(crate) customer: CustomerNumber,
    /// The port of the lookup process that answered.
    pub(crate) port: u16,
    /// When the lookup was sent.
    pub(crate) began: RunMicros,
    /// When the whole answer had arrived.
    pub(crate) ended: RunMicros,
    /// By a number: the move that the profile shows.
    pub(crate) saw: Observation,
    /// By a number: the version of the profile, as a lookup by the id of its customer shows it.
    pub(crate) of_owner: Option<u32>,
    pub(crate) label: AnswerLabel,
    /// Whether the store held it: a hit, or a fetch that was stored.
    pub(crate) from_store: bool,
    /// When the sandbox read the profile.
    pub(crate) read_at: Option<WallMillis>,
}

/// The record of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunHistory {
    /// The id and the initial state of each customer, by its number.
    pub(crate) customers: Vec<(String, InitialState)>,
    pub(crate) changes: Vec<ProfileChange>,
    pub(crate) applies: HashMap<Uuid, EventApply>,
    pub(crate) answers: Vec<ObservedAnswer>,
}

impl RunHistory {
    /// Returns the events that were not applied, each with its change.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&Uuid, &ProfileChange)> {
        let events = self.changes.iter().flat_map(|change| change.events.iter().map(move |event| (event, change)));
        events.filter(|(event, _)| !self.applies.contains_key(event))
    }
}

/// Records what happens during a round.
#[derive(Debug)]
pub(crate) struct Recorder {
    zero: Instant,
    /// Whether copies from the journal show that their event was applied.
    counts_copies: bool,
    record: Mutex<EventRecord>,
}

#[derive(Debug, Default)]
struct EventRecord {
    applies: HashMap<Uuid, EventApply>,
    /// The customers that each event names.
    events: HashMap<Uuid, Vec<CustomerNumber>>,
    /// The events that are not known to be applied.
    open: HashSet<Uuid>,
    /// The customers that were changed, or whose change was applied, most recently.
    recent: VecDeque<CustomerNumber>,
}

/// A consumer's log line about an applied event.
#[derive(Deserialize)]
struct AppliedEventLine {
    event: Uuid,
    /// Whether another delivery had reached some of its keys before.
    resumed: bool,
    taken_at: WallMillis,
    /// Why the event was delivered again by a replay or a redrive.
    again: Option<String>,
}

/// A record about an event in the audit trail of a consumer.
#[derive(Deserialize)]
struct AuditedEventLine {
    event: Uuid,
    #[serde(default)]
    replayed: bool,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { zero: Instant::now(), counts_copies: false, record: Mutex::default() }
    }

    /// Returns a recorder for a run in which nobody replays events: a copy from the journal is there in place of an event
    /// that the queue lost, so it counts.
    pub(crate) fn counting_copies() -> Self {
        Self { counts_copies: true, ..Self::new() }
    }

    pub(crate) fn now(&self) -> RunMicros {
        RunMicros::try_from(self.zero.elapsed().as_micros()).expect("a run is shorter than the range of the type")
    }

    /// Records a line of a consumer's log. Returns whether it reports an applied event.
    ///
    /// A consumer logs it between the effect and the acknowledgement; a redelivery logs another. The log waits in memory, so
    /// a kill may lose the line of an event that has left the queue. Its audit record was written before that: see
    /// [`record_audited`](Self::record_audited).
    pub(crate) fn record_consumer_line(&self, line: &str) -> bool {
        if !line.contains("\"event applied\"") {
            return false;
        }
        let Ok(line) = serde_json::from_str::<AppliedEventLine>(line) else { return false };
        if line.again.is_some() && !self.counts_copies {
            // A replayed copy does not show that the event itself was applied.
            return true;
        }
        self.record_apply(line.event, (!line.resumed).then_some(line.taken_at));
        true
    }

    /// Records the events that are not known to be applied and have a record in this audit trail.
    pub(crate) fn record_audited(&self, trail: &str) {
        for line in trail.lines() {
            let Ok(audited) = serde_json::from_str::<AuditedEventLine>(line) else { continue };
            if !audited.replayed && self.record.lock().open.contains(&audited.event) {
                self.record_apply(audited.event, None);
            }
        }
    }

    fn record_apply(&self, event: Uuid, taken_at: Option<WallMillis>) {
        let mut record = self.record.lock();
        // Under the lock, so that a reader that sees the event as applied starts after this time.
        let observed = self.now();
        record.applies.entry(event).or_insert(EventApply { observed, taken_at });
        record.open.remove(&event);
        let named = record.events.get(&event).cloned();
        record.draw_readers_to(named.as_deref().unwrap_or_default());
    }

    /// Records the events of a change and the customers that they name.
    pub(crate) fn record_events(&self, events: &[Uuid], customers: &[CustomerNumber]) {
        let mut record = self.record.lock();
        for event in events {
            record.events.insert(*event, customers.to_vec());
            // A consumer may have applied it before the writer got its answer.
            if !record.applies.contains_key(event) {
                record.open.insert(*event);
            }
        }
        record.draw_readers_to(customers);
    }

    /// Returns the number of events, and the number of those that are not known to be applied.
    pub(crate) fn event_counts(&self) -> (usize, usize) {
        let record = self.record.lock();
        (record.events.len(), record.open.len())
    }

    /// Returns whether an event is known to be applied.
    pub(crate) fn is_applied(&self, event: Uuid) -> bool {
        self.record.lock().applies.contains_key(&event)
    }

    /// Returns the customer with the `n`-th last change.
    pub(crate) fn recent(&self, n: usize) -> Option<CustomerNumber> {
        let record = self.record.lock();
        let last = record.recent.len().checked_sub(1)?;
        record.recent.get(last.saturating_sub(n % RECENT)).copied()
    }

    /// Ends a round: returns how events were applied, and clears the record.
    pub(crate) fn finish(&self) -> HashMap<Uuid, EventApply> {
        std::mem::take(&mut *self.record.lock()).applies
    }
}

impl EventRecord {
    fn draw_readers_to(&mut self, customers: &[CustomerNumber]) {
        self.recent.extend(customers);
        let over = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_whose_line_a_kill_took_is_known_from_its_audit_record() {
        let (recorder, events) = (Recorder::new(), [1, 2, 3].map(Uuid::from_u128));
        recorder.record_events(&events, &[]);
        let audited = serde_json::json!({ "type": "event", "event": events[0], "verdict": "applied" });
        let copy = serde_json::json!({ "type": "event", "event": events[1], "verdict": "applied", "replayed": true });
        recorder.record_audited(&format!("{{\"type\":\"started\"}}\n{audited}\n{copy}\n{{\"type\":\"ev"));
        assert_eq!(events.map(|event| recorder.is_applied(event)), [true, false, false]);
    }

    /// An event names its customer and his identifiers, which are visited one after another. A delivery that finds one of
    /// them visited says nothing about when the first one was.
    #[test]
    fn the_time_of_a_delivery_counts_only_if_it_reached_every_key_first() {
        let taken_at = |resumed: bool| {
            let recorder = Recorder::new();
            let fields = serde_json::json!({
                "event": Uuid::nil(), "resumed": resumed, "taken_at": 7, "message": "event applied",
            });
            assert!(recorder.record_consumer_line(&fields.to_string()));
            recorder.finish()[&Uuid::nil()].taken_at
        };
        assert_eq!([taken_at(false), taken_at(true)], [Some(7), None]);
    }
}
