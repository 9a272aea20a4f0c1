//! The file: three tables, changed by one transaction per batch.
//!
//! | table | holds |
//! |---|---|
//! | `events` | position → wire form of an event that is not settled; positions only grow |
//! | `returns` | position → how often that event was out and came back; no row means never |
//! | `dead_letters` | number → what was given up on, as JSON: reason, when, length, SHA-256, and the event where it can be decoded |
//!
//! [`Log::write`] applies a batch of changes as a whole. A batch that adds an event or a dead letter
//! is fsynced before it answers; one that only removes or counts is made durable by the next such
//! batch or by [`Log::sync`], since losing a removal costs no more than a redelivery.
//!
//! The sizes of events and of dead letters together are bounded: nothing that was given up on is
//! ever dropped, and once nobody looks after dead letters for so long that they fill the log,
//! publishers are refused. Moving an event to the dead letters is never refused.
//!
//! After an [`Err`](redb::Error) the file's handle is of no more use (redb refuses to write): drop the
//! [`Log`] and open it again.

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::domain::Timestamp;
use crate::queue::{self, Error, Reason};

use super::dead_letter;

pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(super) const RETURNS: TableDefinition<'_, u64, u32> = TableDefinition::new("returns");
pub(super) const DEAD_LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead_letters");

/// The open file, with its totals in memory.
#[derive(Debug)]
pub(super) struct Log {
    file: Database,
    totals: Totals,
    max_bytes: u64,
    synced: bool,
}

/// One change of the log.
#[derive(Debug)]
pub(super) enum Change {
    /// Adds events, all or none.
    Append(Vec<Bytes>),
    /// Removes an event that was settled.
    Remove(u64),
    /// Counts that an event was out and came back.
    Return(u64),
    /// Moves an event to the dead letters.
    Bury(u64, Reason),
}

/// An event as it stands in the log.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its position.
    pub(super) seq: u64,
    /// How often it was out and came back.
    pub(super) returns: u32,
    /// Its wire form.
    pub(super) wire: Bytes,
}

/// How much the log holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Events not yet settled.
    pub(super) events: u64,
    /// Their size in bytes.
    pub(super) bytes: u64,
    /// Dead letters.
    pub(super) dead_letters: u64,
}

/// What the log holds, and where it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// For operators.
    pub(super) held: Held,
    /// The position of the next event.
    pub(super) next: u64,
    dead_letter_bytes: u64,
    next_dead_letter: u64,
}

/// How urgently a batch must reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Unchanged,
    Eventually,
    Now,
}

impl Log {
    /// Takes over an open file; makes the tables if they are not there, which also shows that the
    /// disk takes writes. Reads every event once, to know the totals.
    pub(super) fn new(file: Database, max_bytes: u64) -> Result<Self, redb::Error> {
        let txn = file.begin_write()?;
        Tables::open(&txn, Totals::default())?.close();
        txn.commit()?;
        let txn = file.begin_read()?;
        let (events, event_bytes, next) = measure(&txn.open_table(EVENTS)?)?;
        let (dead_letters, dead_letter_bytes, next_dead_letter) = measure(&txn.open_table(DEAD_LETTERS)?)?;
        let held = Held { events, bytes: event_bytes, dead_letters };
        let totals = Totals { held, next, dead_letter_bytes, next_dead_letter };
        Ok(Self { file, totals, max_bytes, synced: true })
    }

    /// Returns what the log holds.
    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Makes positions go on from `next` at least: a position that was ever shown is not used again.
    pub(super) fn continue_from(&mut self, next: u64) {
        self.totals.next = self.totals.next.max(next);
    }

    /// Tells whether everything in the log is on the disk.
    pub(super) const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Applies changes in one transaction, and answers each: done, or [`Error::Full`].
    pub(super) fn write(&mut self, changes: &[&Change], now: Timestamp) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let mut txn = self.file.begin_write()?;
        let mut urgency = Urgency::Unchanged;
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut tables = Tables::open(&txn, self.totals)?;
        for change in changes {
            let outcome = tables.apply(change, self.max_bytes, now)?;
            urgency = urgency.max(*outcome.as_ref().unwrap_or(&Urgency::Unchanged));
            outcomes.push(outcome.map(|_| ()));
        }
        let totals = tables.close();
        match urgency {
            Urgency::Unchanged => txn.abort()?,
            Urgency::Eventually => {
                txn.set_durability(Durability::None)?;
                txn.commit()?;
                self.synced = false;
            }
            Urgency::Now => {
                txn.commit()?;
                self.synced = true;
            }
        }
        self.totals = totals;
        Ok(outcomes)
    }

    /// Makes everything durable that is not yet, with an empty transaction that is fsynced.
    pub(super) fn sync(&mut self) -> Result<(), redb::Error> {
        self.file.begin_write()?.commit()?;
        self.synced = true;
        Ok(())
    }

    /// Returns the oldest events at or after a position, at most `limit`.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<Entry>, redb::Error> {
        let txn = self.file.begin_read()?;
        let (events, returns) = (txn.open_table(EVENTS)?, txn.open_table(RETURNS)?);
        let mut entries = Vec::new();
        for row in events.range(from..)?.take(limit) {
            let (seq, wire) = row?;
            let seq = seq.value();
            let returns = returns.get(seq)?.map_or(0, |count| count.value());
            entries.push(Entry { seq, returns, wire: Bytes::copy_from_slice(wire.value()) });
        }
        Ok(entries)
    }

    /// Returns the oldest dead letters, at most `limit`.
    pub(super) fn dead_letters(&self, limit: usize) -> Result<Vec<queue::DeadLetter>, redb::Error> {
        let table = self.file.begin_read()?.open_table(DEAD_LETTERS)?;
        let rows = table.range::<u64>(..)?.take(limit);
        rows.map(|row| row.map(|(number, letter)| dead_letter::read(number.value(), letter.value())))
            .map(|letter| letter.map_err(redb::Error::from))
            .collect()
    }
}

impl Totals {
    fn admit(&self, events: &[Bytes], max_bytes: u64) -> Result<(), Error> {
        let bytes = self.held.bytes + self.dead_letter_bytes;
        let added: u64 = events.iter().map(|wire| wire.len() as u64).sum();
        if bytes + added > max_bytes { Err(Error::Full { bytes, max_bytes }) } else { Ok(()) }
    }
}

/// The tables, open for writing, with the totals as they will be.
struct Tables<'t> {
    events: Table<'t, u64, &'static [u8]>,
    returns: Table<'t, u64, u32>,
    dead_letters: Table<'t, u64, &'static [u8]>,
    totals: Totals,
}

impl<'t> Tables<'t> {
    fn open(txn: &'t WriteTransaction, totals: Totals) -> Result<Self, redb::Error> {
        Ok(Self {
            events: txn.open_table(EVENTS)?,
            returns: txn.open_table(RETURNS)?,
            dead_letters: txn.open_table(DEAD_LETTERS)?,
            totals,
        })
    }

    /// Lets go of the tables, as a commit demands.
    fn close(self) -> Totals {
        self.totals
    }

    /// The outer error is the file's; the inner one is the answer to this change alone.
    fn apply(
        &mut self,
        change: &Change,
        max_bytes: u64,
        now: Timestamp,
    ) -> Result<Result<Urgency, Error>, redb::Error> {
        match change {
            Change::Append(events) => match self.totals.admit(events, max_bytes) {
                Ok(()) => self.append(events).map(Ok),
                Err(full) => Ok(Err(full)),
            },
            Change::Remove(seq) => Ok(Ok(self.take(*seq)?.map_or(Urgency::Unchanged, |_| Urgency::Eventually))),
            Change::Return(seq) => self.count_return(*seq).map(Ok),
            Change::Bury(seq, reason) => self.bury(*seq, *reason, now).map(Ok),
        }
    }

    fn append(&mut self, events: &[Bytes]) -> Result<Urgency, redb::Error> {
        for wire in events {
            self.events.insert(self.totals.next, &**wire)?;
            self.totals.next += 1;
            self.totals.held.events += 1;
            self.totals.held.bytes += wire.len() as u64;
        }
        Ok(Urgency::Now)
    }

    fn count_return(&mut self, seq: u64) -> Result<Urgency, redb::Error> {
        if self.events.get(seq)?.is_none() {
            return Ok(Urgency::Unchanged);
        }
        let count = self.returns.get(seq)?.map_or(0, |count| count.value());
        self.returns.insert(seq, count.saturating_add(1))?;
        Ok(Urgency::Eventually)
    }

    fn bury(&mut self, seq: u64, reason: Reason, at: Timestamp) -> Result<Urgency, redb::Error> {
        // A delivery that was superseded may have been settled already: then there is nothing to keep.
        let Some(wire) = self.take(seq)? else { return Ok(Urgency::Unchanged) };
        let dead_letter = dead_letter::write(&wire, reason, at);
        self.dead_letters.insert(self.totals.next_dead_letter, &*dead_letter)?;
        self.totals.next_dead_letter += 1;
        self.totals.held.dead_letters += 1;
        self.totals.dead_letter_bytes += dead_letter.len() as u64;
        Ok(Urgency::Now)
    }

    /// Takes an event out, with its count; `None` if it was settled before.
    fn take(&mut self, seq: u64) -> Result<Option<Bytes>, redb::Error> {
        let Some(wire) = self.events.remove(seq)?.map(|wire| Bytes::copy_from_slice(wire.value())) else {
            return Ok(None);
        };
        self.returns.remove(seq)?;
        self.totals.held.events -= 1;
        self.totals.held.bytes -= wire.len() as u64;
        Ok(Some(wire))
    }
}

/// Returns a table's rows, the size of their values, and the number after its last.
fn measure(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<(u64, u64, u64), redb::Error> {
    let mut bytes = 0;
    for row in table.iter()? {
        bytes += row?.1.value().len() as u64;
    }
    let next = table.last()?.map_or(0, |(last, _)| last.value() + 1);
    Ok((table.len()?, bytes, next))
}
