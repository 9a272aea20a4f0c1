//! The journal: settled events are kept for a while, so that they can be delivered again.
//!
//! A settled event moves from `events` to `journal` in one transaction. It keeps its position and gets the time of its
//! settlement. An event that becomes a dead letter is kept too. The journal is limited by age and by size and deletes
//! its oldest events first.
//!
//! A restore moves events back to `events`, marked as restored: nothing is stored twice. When such an event is settled
//! again, it returns to the journal without the mark, with the new time, so a later restore covers it too. The order of a
//! restore and its progress ([`RestoreState`]) are durable. It moves a few events at a time, while few events wait; so
//! live events do not wait behind it, and a full queue does not grow. An event that is settled after the restore has passed
//! its position waits again in the same way, since its effect may be older than the loss. The same order again has no
//! effect; another order during a restore lets it start over, from the earlier of both times.
//!
//! The journal keeps an event that an operator redrove or replayed, so that it can be restored, but readers skip it, since
//! its first delivery is in the journal.
//!
//! A reader reads page by page, settled and unsettled events together in the order of their positions. An event that is
//! settled between two pages keeps its position and is returned once. A reader may omit an event that a restore moves
//! meanwhile, since the restore applies it again.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use crate::domain::{Event, Redelivery, Timestamp};
use crate::queue::wire;

use super::change::JournalLimits;
use super::sized_table::{Measured, SizedTable};

/// A settled event: the time of its settlement in milliseconds, and its wire form.
pub(super) type JournalRow<'a> = (i64, &'a [u8]);

impl Measured for JournalRow<'static> {
    fn bytes((_, wire): &Self::SelfType<'_>) -> u64 {
        wire.len() as u64
    }
}

pub(super) const JOURNAL: TableDefinition<'_, u64, JournalRow<'_>> = TableDefinition::new("journal");

/// How much earlier than the requested time reading starts, in milliseconds.
const MARGIN_MILLIS: i64 = 60_000;

/// How many events one batch deletes at most: several times what a batch adds.
const MAX_TRIMMED: usize = 8_192;

/// A part of the journal.
#[derive(Debug)]
pub(super) struct JournalPage {
    /// The wire forms of events, oldest first.
    pub(super) events: Vec<Bytes>,
    /// The position where the next page starts; `None` at the end.
    pub(super) next: Option<u64>,
}

/// Reads settled and unsettled events at or after a position, at most `limit` rows. Skips what was settled before
/// `since`, less the margin.
pub(super) fn page(
    journal: &impl ReadableTable<u64, JournalRow<'static>>,
    events: &impl ReadableTable<u64, &'static [u8]>,
    from: u64,
    since: Timestamp,
    limit: usize,
) -> Result<JournalPage, redb::Error> {
    let mut rows = Vec::new();
    let since = since.as_millis().saturating_sub(MARGIN_MILLIS);
    for row in journal.range(from..)?.take(limit) {
        let (position, row) = row?;
        let (settled, wire) = row.value();
        // An event is settled after it is received; the margin covers a clock that was set back.
        rows.push((position.value(), (settled >= since).then(|| Bytes::copy_from_slice(wire))));
    }
    for row in events.range(from..)?.take(limit) {
        let (position, wire) = row?;
        rows.push((position.value(), Some(Bytes::copy_from_slice(wire.value()))));
    }
    rows.sort_unstable_by_key(|(position, _)| *position);
    rows.truncate(limit);
    let next = rows.last().map(|(position, _)| position + 1);
    Ok(JournalPage { events: rows.into_iter().filter_map(|(_, wire)| wire).collect(), next })
}

/// The only row of the table [`RESTORES`]: order, since, cursor, end, moved; see [`RestoreState`].
pub(super) type RestoreRow = (i64, i64, u64, u64, u64);

pub(super) const RESTORES: TableDefinition<'_, u64, RestoreRow> = TableDefinition::new("restores");

/// How many rows of the journal one step of a restore moves, and how many it looks at.
const MAX_MOVED: usize = 256;
const MAX_SCANNED: usize = 4_096;

/// The newest restore and its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RestoreState {
    /// The time of the newest order, in milliseconds.
    ordered: i64,
    /// Events settled at this time or later are restored, in milliseconds.
    since: i64,
    /// The next position to look at, and the position after the last one.
    cursor: u64,
    end: u64,
    /// How many events were moved.
    pub(super) moved: u64,
}

impl RestoreState {
    pub(super) const fn of_row((ordered, since, cursor, end, moved): RestoreRow) -> Self {
        Self { ordered, since, cursor, end, moved }
    }

    pub(super) const fn row(&self) -> RestoreRow {
        (self.ordered, self.since, self.cursor, self.end, self.moved)
    }

    /// Returns whether there is something left to look at.
    pub(super) const fn is_running(&self) -> bool {
        self.cursor < self.end
    }

    /// Returns whether the newest restore, running or complete, has looked at a position.
    pub(super) const fn has_passed(&self, position: u64) -> bool {
        position < self.cursor
    }

    /// Adds an order for all positions before `end`; returns whether that changed anything.
    pub(super) fn order(&mut self, since: Timestamp, end: u64) -> bool {
        let ordered = since.as_millis();
        if ordered == self.ordered {
            return false;
        }
        let since = if self.is_running() { ordered.min(self.since) } else { ordered };
        *self = Self { ordered, since, cursor: 0, end, moved: 0 };
        true
    }
}

/// Takes the next events of a restore out of the journal; returns them marked as restored.
pub(super) fn restore_some(
    journal: &mut SizedTable<'_, JournalRow<'static>>,
    state: &mut RestoreState,
) -> Result<Vec<Bytes>, redb::Error> {
    let since = state.since.saturating_sub(MARGIN_MILLIS);
    let (mut found, mut scanned) = (Vec::new(), 0);
    let mut next = state.end;
    for row in journal.rows().range(state.cursor..state.end)? {
        let (position, row) = row?;
        if scanned == MAX_SCANNED || found.len() == MAX_MOVED {
            next = position.value();
            break;
        }
        scanned += 1;
        let (settled, wire) = row.value();
        let Some(restored) = (settled >= since).then(|| marked(wire)).flatten() else { continue };
        found.push((position.value(), restored));
    }
    state.cursor = next;
    state.moved += found.len() as u64;
    for (position, _) in &found {
        journal.remove(*position)?;
    }
    Ok(found.into_iter().map(|(_, wire)| wire).collect())
}

/// Returns the wire form of an event with the mark of a restore; `None` if it cannot be decoded.
pub(super) fn marked(wire: &[u8]) -> Option<Bytes> {
    let event = wire::decode(wire).ok()?;
    let again = event.again.or(Some(Redelivery::Restored));
    Some(wire::encode(&Event { again, ..event }))
}

/// Returns an event as it was before a restore marked it.
pub(super) fn without_mark(event: Event) -> Event {
    Event { again: event.again.filter(|again| *again != Redelivery::Restored), ..event }
}

/// Deletes the oldest events while they are too old or the journal is too large.
pub(super) fn trim(
    journal: &mut SizedTable<'_, JournalRow<'static>>,
    limits: &JournalLimits,
    now: Timestamp,
) -> Result<(), redb::Error> {
    for _ in 0..MAX_TRIMMED {
        let oldest = journal.rows().first()?.map(|(position, row)| (position.value(), row.value().0));
        let Some((position, settled)) = oldest else { break };
        let is_old = now.since(Timestamp::from_millis(settled)) > limits.retention;
        if !is_old && journal.size().bytes <= limits.max_bytes {
            break;
        }
        journal.remove(position)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redb::backends::InMemoryBackend;
    use redb::{Database, ReadableDatabase};

    use super::super::sized_table::TableSize;
    use super::super::tables::EVENTS;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Returns what is left of a journal of ten events of ten bytes, settled one per second from 0 on.
    fn trimmed(limits: JournalLimits, now: Timestamp) -> Vec<u64> {
        let file = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let txn = file.begin_write().unwrap();
        let mut journal = SizedTable::open(&txn, JOURNAL, TableSize::default()).unwrap();
        for second in 0..10 {
            journal.push((second * 1_000, b"0123456789")).unwrap();
        }
        trim(&mut journal, &limits, now).unwrap();
        let size = journal.size();
        drop(journal);
        txn.commit().unwrap();
        let table = file.begin_read().unwrap().open_table(JOURNAL).unwrap();
        let left: Vec<u64> = table.iter().unwrap().map(|row| row.unwrap().0.value()).collect();
        let rows = left.len() as u64;
        assert_eq!(size, TableSize { rows, bytes: rows * 10, next: 10 });
        let next = if left.is_empty() { 0 } else { 10 };
        assert_eq!(TableSize::of(&table).unwrap(), TableSize { next, ..size });
        left
    }

    #[test]
    fn the_oldest_events_are_deleted_beyond_the_limits() {
        let now = Timestamp::from_millis(9_000);
        let limits = |max_bytes, retention| JournalLimits { max_bytes, retention };
        assert_eq!(trimmed(limits(100, HOUR), now), (0..10).collect::<Vec<_>>());
        assert_eq!(trimmed(limits(35, HOUR), now), [7, 8, 9]);
        assert_eq!(trimmed(limits(100, Duration::from_secs(4)), now), (5..10).collect::<Vec<_>>());
        assert!(trimmed(limits(0, HOUR), now).is_empty());
    }

    #[test]
    fn a_page_merges_both_tables_in_order_and_skips_what_was_settled_before() {
        let file = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let txn = file.begin_write().unwrap();
        let mut journal = txn.open_table(JOURNAL).unwrap();
        let mut events = txn.open_table(EVENTS).unwrap();
        for position in [0_u64, 2, 3, 6] {
            let settled = MARGIN_MILLIS * i64::try_from(position).unwrap();
            journal.insert(position, (settled, &[u8::try_from(position).unwrap()][..])).unwrap();
        }
        for position in [1_u64, 4, 5] {
            events.insert(position, &[u8::try_from(position).unwrap()][..]).unwrap();
        }
        let (mut read, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page = page(&journal, &events, at, Timestamp::from_millis(3 * MARGIN_MILLIS), 2).unwrap();
            read.extend(page.events.iter().map(|wire| wire[0]));
            from = page.next;
        }
        assert_eq!(read, [1, 2, 3, 4, 5, 6]);
    }
}
