//! The file: four tables, changed by one transaction per batch.
//!
//! | table | holds |
//! |---|---|
//! | `events` | position → wire form of an event that is not settled; positions only grow |
//! | `returns` | position → how often that event was out and came back; no row means never |
//! | `journal` | position → an event that was settled, and when: see [`journal`](super::journal) |
//! | `dead_letters` | number → what was given up on, as JSON: reason, when, length, SHA-256, and the event where it can be decoded |
//!
//! [`Log::write`] applies a batch of changes as a whole. A batch that adds an event or a dead letter
//! is fsynced before it answers; one that only removes or counts is made durable by the next such
//! batch or by [`Log::sync`], since losing a removal costs no more than a redelivery.
//!
//! The sizes of events and of dead letters together are bounded: nothing that was given up on is
//! ever dropped, and once nobody looks after dead letters for so long that they fill the log,
//! publishers are refused. Moving an event to the dead letters and back is never refused. The journal has a bound of
//! its own, and forgets its oldest events for new ones.
//!
//! After an [`Err`](redb::Error) the file's handle is of no more use (redb refuses to write): drop the
//! [`Log`] and open it again.

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Value};

use crate::domain::Timestamp;
use crate::queue::{self, Error, Reason};

use super::dead_letter;
use super::journal::{self, JOURNAL};
use super::tables::{DEAD_LETTERS, EVENTS, RETURNS, Tables, Totals, Urgency};

/// The open file, with its totals in memory.
#[derive(Debug)]
pub(super) struct Log {
    file: Database,
    totals: Totals,
    limits: Limits,
    synced: bool,
}

/// How much the log may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of events and dead letters, in bytes.
    pub(super) max_bytes: u64,
    /// Of the journal.
    pub(super) journal: journal::Limits,
}

/// One change of the log.
#[derive(Debug)]
pub(super) enum Change {
    /// Adds events, all or none.
    Append(Vec<Bytes>),
    /// Removes an event that was settled.
    Settle(u64, Keeping),
    /// Counts that an event was out and came back.
    Return(u64),
    /// Moves an event to the dead letters.
    Bury(u64, Reason, Keeping),
    /// Puts the event of a dead letter back, if it is one.
    Redrive(u64),
    /// Removes a dead letter.
    Purge(u64),
    /// Adds what was settled at a time or later once more.
    Restore(Timestamp),
}

/// Whether an event goes to the journal when it leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    Keep,
    /// It is a copy of what stands there, or no event.
    Forget,
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

impl Log {
    /// Takes over an open file; makes the tables if they are not there, which also shows that the
    /// disk takes writes. Reads every event once, to know the totals.
    pub(super) fn new(file: Database, limits: Limits) -> Result<Self, redb::Error> {
        let txn = file.begin_write()?;
        Tables::open(&txn, Totals::default())?.close();
        txn.commit()?;
        let txn = file.begin_read()?;
        let (events, event_bytes, next) = measure(&txn.open_table(EVENTS)?, <[u8]>::len)?;
        let (dead_letters, dead_letter_bytes, next_dead_letter) = measure(&txn.open_table(DEAD_LETTERS)?, <[u8]>::len)?;
        let (_, journal_bytes, after_journal) = measure(&txn.open_table(JOURNAL)?, |(_, wire)| wire.len())?;
        let held = Held { events, bytes: event_bytes, dead_letters };
        // A position is not used again, neither for an event that is settled.
        let next = next.max(after_journal);
        let totals = Totals { held, next, dead_letter_bytes, next_dead_letter, journal_bytes };
        Ok(Self { file, totals, limits, synced: true })
    }

    /// Returns what the log holds.
    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Makes positions go on from `next` at least: a position that was ever shown is not used again.
    pub(super) fn continue_from(&mut self, next: u64) {
        self.totals.next = self.totals.next.max(next);
    }

    /// Tells whether what was settled is kept.
    pub(super) fn has_journal(&self) -> bool {
        self.limits.journal.is_kept()
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
            let outcome = tables.apply(change, &self.limits, now)?;
            urgency = urgency.max(*outcome.as_ref().unwrap_or(&Urgency::Unchanged));
            outcomes.push(outcome.map(|_| ()));
        }
        if urgency != Urgency::Unchanged {
            tables.forget(&self.limits.journal, now)?;
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

    /// Returns the oldest events at or after a position, settled or not, at most `limit` of each; of those that are
    /// settled, those that were at `since` or later.
    pub(super) fn journal(&self, from: u64, since: Timestamp, limit: usize) -> Result<journal::Page, redb::Error> {
        let txn = self.file.begin_read()?;
        journal::page(&txn.open_table(JOURNAL)?, &txn.open_table(EVENTS)?, from, since, limit)
    }

    /// Returns the oldest dead letters from a number on, at most `limit`.
    pub(super) fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<queue::DeadLetter>, redb::Error> {
        let table = self.file.begin_read()?.open_table(DEAD_LETTERS)?;
        let rows = table.range(from..)?.take(limit);
        rows.map(|row| row.map(|(number, letter)| dead_letter::read(number.value(), letter.value())))
            .map(|letter| letter.map_err(redb::Error::from))
            .collect()
    }
}

/// Returns a table's rows, the size of what is kept in them, and the number after its last.
pub(super) fn measure<V: Value + 'static>(
    table: &impl ReadableTable<u64, V>,
    length: impl for<'a> Fn(V::SelfType<'a>) -> usize,
) -> Result<(u64, u64, u64), redb::Error> {
    let mut bytes = 0;
    for row in table.iter()? {
        bytes += length(row?.1.value()) as u64;
    }
    let next = table.last()?.map_or(0, |(last, _)| last.value() + 1);
    Ok((table.len()?, bytes, next))
}
