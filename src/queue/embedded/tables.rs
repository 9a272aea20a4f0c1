//! The tables of the log, open for writing: what each change does to them.

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::domain::Timestamp;
use crate::queue::{DeadLetterReason, Error, wire};

use super::change::{JournalLimits, LogChange, LogLimits, Retention};
use super::dead_letter;
use super::journal::{self, JOURNAL, JournalRow, RESTORES, RestoreRow, RestoreState};
use super::sized_table::{SizedTable, TableSize};

pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(super) const RETURNS: TableDefinition<'_, u64, u32> = TableDefinition::new("returns");
pub(super) const DEAD_LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead_letters");

/// 0 → the time for the ages of settled events, in milliseconds.
pub(super) const AGES: TableDefinition<'_, u64, i64> = TableDefinition::new("ages");

/// The sizes of the tables. Each count of returns belongs to an event and needs no size of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogTotals {
    /// Unsettled events. The next key is the position of the next event.
    pub(super) events: TableSize,
    /// Dead letters.
    pub(super) dead_letters: TableSize,
    /// Settled events.
    pub(super) journal: TableSize,
    /// The newest restore.
    pub(super) restore: RestoreState,
}

/// How urgently a batch must reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    Unchanged,
    Eventually,
    Now,
}

/// The tables, open for writing.
pub(super) struct Tables<'t> {
    events: SizedTable<'t, &'static [u8]>,
    returns: Table<'t, u64, u32>,
    dead_letters: SizedTable<'t, &'static [u8]>,
    journal: SizedTable<'t, JournalRow<'static>>,
    restores: Table<'t, u64, RestoreRow>,
    restore: RestoreState,
    ages: Table<'t, u64, i64>,
}

impl<'t> Tables<'t> {
    /// Opens the tables; creates those that do not exist.
    pub(super) fn open(txn: &'t WriteTransaction, totals: LogTotals) -> Result<Self, redb::Error> {
        Ok(Self {
            events: SizedTable::open(txn, EVENTS, totals.events)?,
            returns: txn.open_table(RETURNS)?,
            dead_letters: SizedTable::open(txn, DEAD_LETTERS, totals.dead_letters)?,
            journal: SizedTable::open(txn, JOURNAL, totals.journal)?,
            restores: txn.open_table(RESTORES)?,
            restore: totals.restore,
            ages: txn.open_table(AGES)?,
        })
    }

    /// Closes the tables, as a commit requires, and returns their sizes.
    pub(super) fn close(self) -> LogTotals {
        let (events, dead_letters) = (self.events.size(), self.dead_letters.size());
        LogTotals { events, dead_letters, journal: self.journal.size(), restore: self.restore }
    }

    /// Applies a change. The outer error is a failure of the file, the inner one the result of this change alone.
    pub(super) fn apply(
        &mut self,
        change: &LogChange,
        limits: &LogLimits,
        now: Timestamp,
    ) -> Result<Result<Urgency, Error>, redb::Error> {
        let kept = |kept: Retention| if limits.journal.is_enabled() { kept } else { Retention::Discard };
        let urgency = match change {
            LogChange::Append(events) => match self.admit(events, limits.max_bytes) {
                Ok(()) => self.append(events),
                Err(full) => return Ok(Err(full)),
            },
            LogChange::Ack(position, retention) => self.ack(*position, kept(*retention), now),
            LogChange::CountReturn(position) => self.count_return(*position),
            LogChange::DeadLetter(position, reason, retention) => {
                self.dead_letter(*position, *reason, kept(*retention), now)
            }
            LogChange::Redrive(number) => self.redrive(*number),
            LogChange::Purge(number) => {
                let removed = self.dead_letters.remove(*number)?;
                Ok(removed.map_or(Urgency::Unchanged, |_| Urgency::Now))
            }
            LogChange::OrderRestore(since) => self.order_restore(*since),
            LogChange::RestoreSome => self.restore_some(),
        };
        urgency.map(Ok)
    }

    /// Deletes the oldest events of the journal beyond its limits.
    pub(super) fn trim_journal(&mut self, limits: &JournalLimits, now: Timestamp) -> Result<(), redb::Error> {
        journal::trim(&mut self.journal, limits, now)
    }

    /// Stores the time for the ages of settled events.
    pub(super) fn store_time_of_ages(&mut self, time: Timestamp) -> Result<(), redb::Error> {
        self.ages.insert(0, time.as_millis())?;
        Ok(())
    }

    fn admit(&self, events: &[Bytes], max_bytes: u64) -> Result<(), Error> {
        let bytes = self.events.size().bytes + self.dead_letters.size().bytes;
        let added: u64 = events.iter().map(|wire| wire.len() as u64).sum();
        if bytes + added > max_bytes { Err(Error::Full { bytes, max_bytes }) } else { Ok(()) }
    }

    fn append(&mut self, events: &[Bytes]) -> Result<Urgency, redb::Error> {
        for wire in events {
            self.events.push(wire)?;
        }
        Ok(Urgency::Now)
    }

    fn order_restore(&mut self, since: Timestamp) -> Result<Urgency, redb::Error> {
        if !self.restore.order(since, self.events.size().next) {
            return Ok(Urgency::Unchanged);
        }
        self.restores.insert(0, self.restore.row())?;
        Ok(Urgency::Now)
    }

    fn restore_some(&mut self) -> Result<Urgency, redb::Error> {
        for wire in journal::restore_some(&mut self.journal, &mut self.restore)? {
            self.events.push(&wire)?;
        }
        self.restores.insert(0, self.restore.row())?;
        Ok(Urgency::Eventually)
    }

    /// Settles an event. If a restore has passed its position meanwhile, its effect may be among what was lost, so it is
    /// restored too.
    fn ack(&mut self, position: u64, kept: Retention, now: Timestamp) -> Result<Urgency, redb::Error> {
        let is_missed = kept != Retention::Discard && self.restore.has_passed(position);
        let kept = if is_missed { Retention::Discard } else { kept };
        let Some(wire) = self.take(position, kept, now)? else { return Ok(Urgency::Unchanged) };
        if is_missed && let Some(restored) = journal::marked(&wire) {
            self.events.push(&restored)?;
        }
        Ok(Urgency::Eventually)
    }

    /// Removes an event and its count, and moves it to the journal if that keeps it; `None` if it was settled before,
    /// which a superseded delivery may have done.
    fn take(&mut self, position: u64, kept: Retention, now: Timestamp) -> Result<Option<Bytes>, redb::Error> {
        let Some(wire) = self.events.remove(position)?.map(|wire| Bytes::copy_from_slice(wire.value())) else {
            return Ok(None);
        };
        self.returns.remove(position)?;
        let row = match kept {
            Retention::Journal => Some(wire.clone()),
            Retention::Unmarked => wire::decode(&wire).ok().map(|event| wire::encode(&journal::without_mark(event))),
            Retention::Discard => None,
        };
        if let Some(row) = row {
            self.journal.insert(position, (now.as_millis(), &row))?;
        }
        Ok(Some(wire))
    }

    fn count_return(&mut self, position: u64) -> Result<Urgency, redb::Error> {
        if self.events.rows().get(position)?.is_none() {
            return Ok(Urgency::Unchanged);
        }
        let count = self.returns.get(position)?.map_or(0, |count| count.value());
        self.returns.insert(position, count.saturating_add(1))?;
        Ok(Urgency::Eventually)
    }

    fn dead_letter(
        &mut self,
        position: u64,
        reason: DeadLetterReason,
        kept: Retention,
        now: Timestamp,
    ) -> Result<Urgency, redb::Error> {
        let Some(wire) = self.take(position, kept, now)? else { return Ok(Urgency::Unchanged) };
        self.dead_letters.push(&dead_letter::write(&wire, reason, now))?;
        Ok(Urgency::Now)
    }

    fn redrive(&mut self, number: u64) -> Result<Urgency, redb::Error> {
        let wire = self.dead_letters.rows().get(number)?.and_then(|letter| dead_letter::redriven(letter.value()));
        let Some(wire) = wire else { return Ok(Urgency::Unchanged) };
        self.dead_letters.remove(number)?;
        self.append(&[wire])
    }
}
