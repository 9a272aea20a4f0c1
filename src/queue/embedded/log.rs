//! The file: five tables, changed by one transaction per batch.
//!
//! | table | contains |
//! |---|---|
//! | `events` | position → wire form of an unsettled event; positions only grow |
//! | `returns` | position → how often that event was returned unsettled; no row means never |
//! | `journal` | position → a settled event and the time of its settlement: see [`journal`](super::journal) |
//! | `dead_letters` | number → a dead letter, as JSON: reason, time, length, SHA-256, and the event if it can be decoded |
//! | `restores` | 0 → the newest restore and its progress |
//!
//! The state of an event is the table that contains it. A change of state moves the row in one transaction. Each table
//! counts its own rows and bytes, see [`sized_table`](super::sized_table).
//!
//! [`Log::write`] applies a batch of changes as a whole. A batch that adds an event or a dead letter is fsynced before
//! it is answered. A batch that only removes or counts becomes durable with the next such batch or with
//! [`Log::sync`]: the loss of a removal only costs a redelivery.
//!
//! One limit covers events and dead letters. The queue never drops a dead letter; if dead letters fill the log,
//! publishers are refused. Moving an event to the dead letters and back is never refused. The journal has its own limit
//! and deletes its oldest events.
//!
//! After an [`Err`](redb::Error) redb refuses further writes: drop the [`Log`] and open it again.

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable};
use tokio::time::Instant;

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error};

use super::change::{LogChange, LogEntry, LogLimits};
use super::dead_letter;
use super::journal::{self, JOURNAL, JournalPage, RESTORES, RestoreState};
use super::sized_table::TableSize;
use super::tables::{DEAD_LETTERS, EVENTS, LogTotals, RETURNS, Tables, Urgency};

/// The open file and the sizes of its tables.
#[derive(Debug)]
pub(super) struct Log {
    file: Database,
    totals: LogTotals,
    limits: LogLimits,
    synced: bool,
    /// The time of the newest settlement before this log was opened, in milliseconds.
    settled_before: Option<i64>,
    /// The time of the first change, and the moment when it was made.
    began: Option<(Timestamp, Instant)>,
}

impl Log {
    /// Takes over an open file. Creates missing tables, which also proves that the disk accepts writes, and reads
    /// every event to compute the sizes.
    pub(super) fn new(file: Database, limits: LogLimits) -> Result<Self, redb::Error> {
        let txn = file.begin_write()?;
        Tables::open(&txn, LogTotals::default())?.close();
        txn.commit()?;
        let txn = file.begin_read()?;
        let mut totals = LogTotals {
            events: TableSize::of(&txn.open_table(EVENTS)?)?,
            dead_letters: TableSize::of(&txn.open_table(DEAD_LETTERS)?)?,
            journal: TableSize::of(&txn.open_table(JOURNAL)?)?,
            restore: txn.open_table(RESTORES)?.get(0)?.map(|row| RestoreState::of_row(row.value())).unwrap_or_default(),
        };
        // A position is never used twice, not even after its event was settled.
        totals.events.next = totals.events.next.max(totals.journal.next);
        let settled_before = txn.open_table(JOURNAL)?.last()?.map(|(_, row)| row.value().0);
        Ok(Self { file, totals, limits, synced: true, settled_before, began: None })
    }

    /// Returns the time for the ages of settled events: `now`, but not more than what has passed since the log was opened
    /// after the newest settlement before. So a wall clock that is days ahead for a while does not delete the journal.
    fn time_of_ages(&mut self, now: Timestamp) -> Timestamp {
        let settled = self.settled_before.map_or(now, Timestamp::from_millis);
        let (first, moment) = *self.began.get_or_insert_with(|| (now.min(settled), Instant::now()));
        now.min(first.plus(moment.elapsed()))
    }

    /// Returns the sizes of the tables.
    pub(super) const fn totals(&self) -> LogTotals {
        self.totals
    }

    /// Raises the next position to `next` at least, so that a position once shown is never used again.
    pub(super) fn continue_from(&mut self, next: u64) {
        self.totals.events.next = self.totals.events.next.max(next);
    }

    /// Returns whether settled events are kept.
    pub(super) fn has_journal(&self) -> bool {
        self.limits.journal.is_enabled()
    }

    /// Returns whether everything in the log is on the disk.
    pub(super) const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Applies changes in one transaction. Returns for each of them success or [`Error::Full`].
    pub(super) fn write(
        &mut self,
        changes: &[&LogChange],
        now: Timestamp,
    ) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let time_of_ages = self.time_of_ages(now);
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
            tables.trim_journal(&self.limits.journal, time_of_ages)?;
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

    /// Makes all earlier changes durable, with an empty transaction that is fsynced.
    pub(super) fn sync(&mut self) -> Result<(), redb::Error> {
        self.file.begin_write()?.commit()?;
        self.synced = true;
        Ok(())
    }

    /// Returns the oldest unsettled events at or after a position, at most `limit`.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<LogEntry>, redb::Error> {
        let txn = self.file.begin_read()?;
        let (events, returns) = (txn.open_table(EVENTS)?, txn.open_table(RETURNS)?);
        let mut entries = Vec::new();
        for row in events.range(from..)?.take(limit) {
            let (position, wire) = row?;
            let position = position.value();
            let returns = returns.get(position)?.map_or(0, |count| count.value());
            entries.push(LogEntry { position, returns, wire: Bytes::copy_from_slice(wire.value()) });
        }
        Ok(entries)
    }

    /// Returns a page of the journal, see [`journal::page`].
    pub(super) fn journal(&self, from: u64, since: Timestamp, limit: usize) -> Result<JournalPage, redb::Error> {
        let txn = self.file.begin_read()?;
        journal::page(&txn.open_table(JOURNAL)?, &txn.open_table(EVENTS)?, from, since, limit)
    }

    /// Returns the oldest dead letters at or after a number, at most `limit`.
    pub(super) fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, redb::Error> {
        let table = self.file.begin_read()?.open_table(DEAD_LETTERS)?;
        let rows = table.range(from..)?.take(limit);
        rows.map(|row| row.map(|(number, letter)| dead_letter::read(number.value(), letter.value())))
            .map(|letter| letter.map_err(redb::Error::from))
            .collect()
    }
}
