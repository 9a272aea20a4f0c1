//! The file: six tables, changed by one transaction per batch.
//!
//! | table | contains |
//! |---|---|
//! | `events` | position → wire form of an unsettled event; positions only grow |
//! | `returns` | position → how often that event was returned unsettled; no row means never |
//! | `journal` | position → a settled event and the time of its settlement: see [`journal`](super::journal) |
//! | `dead_letters` | number → a dead letter, as JSON: reason, time, length, SHA-256, and the event if it can be decoded |
//! | `restores` | 0 → the newest restore and its progress |
//! | `ages` | 0 → the time for the ages of settled events |
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

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable};
use tokio::time::Instant;

use crate::domain::Timestamp;
use crate::queue::{DeadLetter, Error};

use super::change::{JournalLimits, LogChange, LogEntry, LogLimits, ROW_BYTES};
use super::dead_letter;
use super::disk::{Content, DiskSpace};
use super::journal::{self, JOURNAL, JournalPage, RESTORES, RestoreState};
use super::sized_table::TableSize;
use super::tables::{AGES, DEAD_LETTERS, EVENTS, LogTotals, RETURNS, Tables, Urgency};

/// How long nothing may have changed before an idle file is compacted, and how many bytes it may then contain: an event that
/// arrives meanwhile waits for a fraction of a second.
const COMPACT_AFTER: Duration = Duration::from_secs(2);
const MOST_COMPACTED: u64 = 4 * 1024 * 1024;

/// How many changes may wait for an fsync while the file is near its limit: each writes and frees about a page of redb, of
/// this many bytes.
const MOST_UNSYNCED: usize = 64;
const PAGE_BYTES: u64 = 4_096;

/// How often the time for the ages of settled events is stored.
const STORE_AGE_EVERY: Duration = Duration::from_secs(60);

/// The open file and the sizes of its tables.
#[derive(Debug)]
pub(super) struct Log {
    file: Database,
    totals: LogTotals,
    limits: LogLimits,
    /// The space of the file; `None` for a file that is not on a disk.
    space: Option<Arc<DiskSpace>>,
    /// The size of the file after it was compacted.
    compacted: Option<u64>,
    /// When the log was changed last.
    changed: Instant,
    /// How many changes are not on the disk yet.
    unsynced: usize,
    /// The size of the file when everything was on the disk.
    synced_size: u64,
    /// The stored time for the ages of settled events, or else the time of the newest settlement, in milliseconds.
    aged_before: Option<i64>,
    /// The time of the first change, and the moment when it was made.
    began: Option<(Timestamp, Instant)>,
}

impl Log {
    /// Takes over an open file. Creates missing tables, which also proves that the disk accepts writes, and reads
    /// every event to compute the sizes.
    pub(super) fn new(file: Database, limits: LogLimits, space: Option<Arc<DiskSpace>>) -> Result<Self, redb::Error> {
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
        let settled = txn.open_table(JOURNAL)?.last()?.map(|(_, row)| row.value().0);
        let aged_before = txn.open_table(AGES)?.get(0)?.map(|time| time.value()).or(settled);
        Ok(Self {
            file,
            totals,
            limits,
            space,
            compacted: None,
            changed: Instant::now(),
            unsynced: 0,
            synced_size: 0,
            aged_before,
            began: None,
        })
    }

    /// Returns whether the disk is full and the file has few free pages: nothing is added.
    pub(super) fn is_disk_full(&self) -> bool {
        self.space.as_ref().is_some_and(|space| space.is_full(self.content()))
    }

    /// Returns how many bytes of events may be added on a disk that is not full.
    pub(super) fn room(&self) -> u64 {
        self.space.as_ref().map_or(u64::MAX, |space| space.left(self.content(), self.totals.events.rows > 0))
    }

    /// See [`DiskSpace::check`].
    pub(super) fn check_space(&self) -> Result<(), Error> {
        self.space.as_ref().map_or(Ok(()), |space| space.check(self.content()))
    }

    /// See [`DiskSpace::most_added`].
    pub(super) fn most_added(&self) -> u64 {
        self.space.as_ref().map_or(u64::MAX, |space| space.most_added())
    }

    /// Compacts a small file if no event waits and nothing has changed for a while.
    pub(super) fn compact_if_idle(&mut self) -> Result<(), redb::Error> {
        let waits = self.totals.events.rows > 0 || self.totals.restore.is_running();
        if waits || self.changed.elapsed() < COMPACT_AFTER {
            return Ok(());
        }
        self.compact(MOST_COMPACTED)
    }

    /// Compacts a file that is much larger than its content, which takes a time in proportion to the content. Does nothing
    /// with more content than `most` bytes, or if that did not help before.
    pub(super) fn compact(&mut self, most: u64) -> Result<(), redb::Error> {
        let Some(space) = self.space.clone() else { return Ok(()) };
        let (content, size) = (self.content(), space.size());
        let helps = self.compacted.is_none_or(|compacted| size > compacted + compacted / 4);
        if content.total() > most || !helps || !space.is_large(content) {
            return Ok(());
        }
        let began = Instant::now();
        self.file.compact()?;
        self.unsynced = 0;
        let (after, took) = (space.size(), began.elapsed());
        self.compacted = Some(after);
        tracing::info!(before = size, after, ?took, "the queue's file was compacted");
        Ok(())
    }

    /// Returns what the tables contain.
    const fn content(&self) -> Content {
        let LogTotals { events, dead_letters, journal, .. } = self.totals;
        let rows = events.rows + dead_letters.rows;
        Content {
            events: events.bytes + dead_letters.bytes + ROW_BYTES * rows,
            journal: journal.bytes + ROW_BYTES * journal.rows,
        }
    }

    /// Returns the present limits of the journal.
    fn journal_limits(&self) -> JournalLimits {
        let limits = self.limits.journal;
        let Some(space) = &self.space else { return limits };
        let most = space.most_journalled(self.content()).saturating_sub(ROW_BYTES * self.totals.journal.rows);
        JournalLimits { max_bytes: limits.max_bytes.min(most), ..limits }
    }

    /// Returns the time for the ages of settled events: `now`, but after what was stored before not more than twice what has
    /// passed since the log was opened. So a wall clock that is days ahead for a while does not delete the journal, and the
    /// time when this program did not run is caught up with.
    fn time_of_ages(&mut self, now: Timestamp) -> Timestamp {
        let before = self.aged_before.map_or(now, Timestamp::from_millis);
        let (first, moment) = *self.began.get_or_insert_with(|| (now.min(before), Instant::now()));
        now.min(first.plus(moment.elapsed() * 2))
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

    /// Returns whether changes should be fsynced now, so that the pages that they freed are used next: the disk is full, or
    /// the file grows towards its limit, or soon will. Its size shows a change only when redb writes the pages, which may be at
    /// the fsync; until then their number shows it.
    pub(super) fn needs_sync(&self) -> bool {
        let has_grown = |space: &DiskSpace| self.unsynced >= MOST_UNSYNCED || space.size() > self.synced_size;
        let unwritten = self.unsynced as u64 * PAGE_BYTES;
        let grows = |space: &Arc<DiskSpace>| space.is_near_limit(unwritten) && has_grown(space);
        self.unsynced > 0 && (self.is_disk_full() || self.space.as_ref().is_some_and(grows))
    }

    /// Returns whether everything in the log is on the disk.
    pub(super) const fn is_synced(&self) -> bool {
        self.unsynced == 0
    }

    /// Applies changes in one transaction. Returns for each of them success, [`Error::Full`] or [`Error::DiskFull`].
    pub(super) fn write(
        &mut self,
        changes: &[&LogChange],
        now: Timestamp,
    ) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let (time_of_ages, journal_limits) = (self.time_of_ages(now), self.journal_limits());
        let mut room = self.space.as_ref().map(|space| space.room(self.content(), self.totals.events.rows > 0));
        let mut txn = self.file.begin_write()?;
        let mut urgency = Urgency::Unchanged;
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut tables = Tables::open(&txn, self.totals)?;
        for change in changes {
            let outcome = match room.as_mut().map_or(Ok(()), |room| room.take(change.added_bytes())) {
                Ok(()) => tables.apply(change, &self.limits, now)?,
                Err(refused) => Err(refused),
            };
            urgency = urgency.max(*outcome.as_ref().unwrap_or(&Urgency::Unchanged));
            outcomes.push(outcome.map(|_| ()));
        }
        if urgency != Urgency::Unchanged {
            self.changed = Instant::now();
            tables.trim_journal(&journal_limits, time_of_ages)?;
        }
        let stored = self.aged_before.map(Timestamp::from_millis);
        // An earlier time is never stored: after one start with a wrong clock, ages would begin there for ever.
        let differs = |stored: Timestamp| time_of_ages.since(stored) >= STORE_AGE_EVERY;
        if urgency != Urgency::Unchanged && stored.is_none_or(differs) {
            tables.store_time_of_ages(time_of_ages)?;
            self.aged_before = Some(time_of_ages.as_millis());
        }
        let totals = tables.close();
        match urgency {
            Urgency::Unchanged => txn.abort()?,
            Urgency::Eventually => {
                txn.set_durability(Durability::None)?;
                txn.commit()?;
                self.unsynced += changes.len();
            }
            Urgency::Now => {
                txn.commit()?;
                self.unsynced = 0;
            }
        }
        self.totals = totals;
        Ok(outcomes)
    }

    /// Makes all earlier changes durable, with an empty transaction that is fsynced.
    pub(super) fn sync(&mut self) -> Result<(), redb::Error> {
        self.file.begin_write()?.commit()?;
        self.unsynced = 0;
        self.synced_size = self.space.as_ref().map_or(0, |space| space.size());
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
