//! The tables of the log, open for writing: what each change does to them.

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::domain::Timestamp;
use crate::queue::{Error, Reason};

use super::dead_letter;
use super::journal::{self, JOURNAL, Kept};
use super::log::{Change, Held, Keeping, Limits};

pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(super) const RETURNS: TableDefinition<'_, u64, u32> = TableDefinition::new("returns");
pub(super) const DEAD_LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead_letters");

/// What the log holds, and where it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// For operators.
    pub(super) held: Held,
    /// The position of the next event.
    pub(super) next: u64,
    /// The size of the dead letters.
    pub(super) dead_letter_bytes: u64,
    /// The number of the next one.
    pub(super) next_dead_letter: u64,
    /// The size of the journal.
    pub(super) journal_bytes: u64,
}

/// How urgently a batch must reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    Unchanged,
    Eventually,
    Now,
}

impl Totals {
    fn admit(&self, events: &[Bytes], max_bytes: u64) -> Result<(), Error> {
        let bytes = self.held.bytes + self.dead_letter_bytes;
        let added: u64 = events.iter().map(|wire| wire.len() as u64).sum();
        if bytes + added > max_bytes { Err(Error::Full { bytes, max_bytes }) } else { Ok(()) }
    }
}

/// The tables, open for writing, with the totals as they will be.
pub(super) struct Tables<'t> {
    events: Table<'t, u64, &'static [u8]>,
    returns: Table<'t, u64, u32>,
    dead_letters: Table<'t, u64, &'static [u8]>,
    journal: Table<'t, u64, Kept<'static>>,
    totals: Totals,
}

impl<'t> Tables<'t> {
    /// Opens them; makes those that are not there.
    pub(super) fn open(txn: &'t WriteTransaction, totals: Totals) -> Result<Self, redb::Error> {
        Ok(Self {
            events: txn.open_table(EVENTS)?,
            returns: txn.open_table(RETURNS)?,
            dead_letters: txn.open_table(DEAD_LETTERS)?,
            journal: txn.open_table(JOURNAL)?,
            totals,
        })
    }

    /// Lets go of the tables, as a commit demands.
    pub(super) fn close(self) -> Totals {
        self.totals
    }

    /// Makes a change. The outer error is the file's; the inner one is the answer to this change alone.
    pub(super) fn apply(
        &mut self,
        change: &Change,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<Result<Urgency, Error>, redb::Error> {
        match change {
            Change::Append(events) => match self.totals.admit(events, limits.max_bytes) {
                Ok(()) => self.append(events).map(Ok),
                Err(full) => Ok(Err(full)),
            },
            Change::Settle(seq, keeping) => {
                let kept = limits.journal.is_kept() && *keeping == Keeping::Keep;
                self.settle(*seq, kept.then_some(now)).map(Ok)
            }
            Change::Return(seq) => self.count_return(*seq).map(Ok),
            Change::Bury(seq, reason, keeping) => {
                let kept = limits.journal.is_kept() && *keeping == Keeping::Keep;
                self.dead_letter(*seq, *reason, kept, now).map(Ok)
            }
            Change::Redrive(number) => self.redrive(*number).map(Ok),
            Change::Purge(number) => {
                Ok(Ok(self.remove_dead_letter(*number)?.map_or(Urgency::Unchanged, |_| Urgency::Now)))
            }
            Change::Restore(since) => {
                let (copies, freed) = journal::restored(&mut self.journal, *since)?;
                self.totals.journal_bytes -= freed;
                self.append(&copies).map(Ok)
            }
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

    /// Removes an event, and keeps it in the journal if it is told when that is.
    fn settle(&mut self, seq: u64, at: Option<Timestamp>) -> Result<Urgency, redb::Error> {
        let Some(wire) = self.take(seq)? else { return Ok(Urgency::Unchanged) };
        if let Some(at) = at {
            self.keep(seq, &wire, at)?;
        }
        Ok(Urgency::Eventually)
    }

    fn keep(&mut self, seq: u64, wire: &[u8], at: Timestamp) -> Result<(), redb::Error> {
        self.journal.insert(seq, (at.as_millis(), wire))?;
        self.totals.journal_bytes += wire.len() as u64;
        Ok(())
    }

    /// Forgets what the journal need not or cannot keep.
    pub(super) fn forget(&mut self, limits: &journal::Limits, now: Timestamp) -> Result<(), redb::Error> {
        let freed = journal::forget(&mut self.journal, self.totals.journal_bytes, limits, now)?;
        self.totals.journal_bytes -= freed;
        Ok(())
    }

    fn redrive(&mut self, number: u64) -> Result<Urgency, redb::Error> {
        let wire = self.dead_letters.get(number)?.and_then(|letter| dead_letter::redriven(letter.value()));
        let Some(wire) = wire else { return Ok(Urgency::Unchanged) };
        self.remove_dead_letter(number)?;
        self.append(&[wire])
    }

    /// Takes a dead letter out; `None` if it is not there.
    fn remove_dead_letter(&mut self, number: u64) -> Result<Option<()>, redb::Error> {
        let Some(length) = self.dead_letters.remove(number)?.map(|letter| letter.value().len() as u64) else {
            return Ok(None);
        };
        self.totals.held.dead_letters -= 1;
        self.totals.dead_letter_bytes -= length;
        Ok(Some(()))
    }

    fn count_return(&mut self, seq: u64) -> Result<Urgency, redb::Error> {
        if self.events.get(seq)?.is_none() {
            return Ok(Urgency::Unchanged);
        }
        let count = self.returns.get(seq)?.map_or(0, |count| count.value());
        self.returns.insert(seq, count.saturating_add(1))?;
        Ok(Urgency::Eventually)
    }

    fn dead_letter(&mut self, seq: u64, reason: Reason, kept: bool, at: Timestamp) -> Result<Urgency, redb::Error> {
        // A delivery that was superseded may have been settled already: then there is nothing to keep.
        let Some(wire) = self.take(seq)? else { return Ok(Urgency::Unchanged) };
        if kept {
            self.keep(seq, &wire, at)?;
        }
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
