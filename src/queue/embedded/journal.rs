//! The journal: what was settled is kept for a while, so that it can be handed out again.
//!
//! A settled event moves from `events` to `journal` in one transaction, under the position that it had, with the time
//! of its settlement; one that becomes a dead letter is kept too. The journal is bounded by age and by size; the oldest
//! go first. What an operator has handed out once more is kept, so that it can be restored, and not told of, since its
//! first delivery is; what was restored is not kept, since it stands there.
//!
//! It is read a page at a time, together with what is not settled yet, by position: an event that is settled
//! between two pages keeps its place, and is told once.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition};

use crate::domain::{Event, Redelivery, Timestamp};
use crate::queue::{Error, wire};

use super::commands::Commands;

/// A settled event: when that was, in milliseconds, and its wire form.
pub(super) type Kept<'a> = (i64, &'a [u8]);

pub(super) const JOURNAL: TableDefinition<'_, u64, Kept<'_>> = TableDefinition::new("journal");

/// How much earlier than a time what is asked for begins.
const MARGIN_MILLIS: i64 = 60_000;

/// How many rows are looked at in one go.
const PAGE: usize = 256;

/// How many events are forgotten with one batch at most: several times what a batch adds.
const FORGET: usize = 8_192;

/// How much the journal keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many bytes of events.
    pub(super) max_bytes: u64,
    /// For how long.
    pub(super) retention: Duration,
}

impl Limits {
    /// Tells whether there is a journal.
    pub(super) fn is_kept(&self) -> bool {
        self.max_bytes > 0 && !self.retention.is_zero()
    }
}

/// A part of the journal.
#[derive(Debug)]
pub(super) struct Page {
    /// Events as they stand there, oldest first.
    pub(super) events: Vec<Bytes>,
    /// Where the next page begins; `None` at the end.
    pub(super) next: Option<u64>,
}

/// Reads on at a position, among what is settled and what is not.
pub(super) fn page(
    journal: &impl ReadableTable<u64, Kept<'static>>,
    events: &impl ReadableTable<u64, &'static [u8]>,
    from: u64,
    since: Timestamp,
    limit: usize,
) -> Result<Page, redb::Error> {
    let mut rows = Vec::new();
    let since = since.as_millis().saturating_sub(MARGIN_MILLIS);
    for row in journal.range(from..)?.take(limit) {
        let (seq, kept) = row?;
        let (settled, wire) = kept.value();
        // Whatever was received later was settled later too, or nearly, if the clock was set back.
        rows.push((seq.value(), (settled >= since).then(|| Bytes::copy_from_slice(wire))));
    }
    for row in events.range(from..)?.take(limit) {
        let (seq, wire) = row?;
        rows.push((seq.value(), Some(Bytes::copy_from_slice(wire.value()))));
    }
    rows.sort_unstable_by_key(|(seq, _)| *seq);
    rows.truncate(limit);
    let next = rows.last().map(|(seq, _)| seq + 1);
    Ok(Page { events: rows.into_iter().filter_map(|(_, wire)| wire).collect(), next })
}

/// Returns copies of what was settled at a time, a minute before, or later, to be handed out again. What an operator
/// had handed out once more is itself handed out again: it leaves the journal, and comes back when it is settled.
/// Tells also how many bytes left.
pub(super) fn restored(
    journal: &mut Table<'_, u64, Kept<'static>>,
    since: Timestamp,
) -> Result<(Vec<Bytes>, u64), redb::Error> {
    let (mut copies, mut moved, mut freed) = (Vec::new(), Vec::new(), 0);
    let since = since.as_millis().saturating_sub(MARGIN_MILLIS);
    for row in journal.iter()? {
        let (seq, kept) = row?;
        let (settled, wire) = kept.value();
        let Some(event) = wire::decode(wire).ok().filter(|_| settled >= since) else { continue };
        if event.again.is_some() {
            moved.push(seq.value());
            freed += wire.len() as u64;
        }
        copies.push(wire::encode(&Event { again: event.again.or(Some(Redelivery::Restored)), ..event }));
    }
    for seq in moved {
        journal.remove(seq)?;
    }
    Ok((copies, freed))
}

/// Forgets the oldest events while they are too old or, with `bytes` in all, too many; returns how many bytes those
/// had.
pub(super) fn forget(
    journal: &mut Table<'_, u64, Kept<'static>>,
    bytes: u64,
    limits: &Limits,
    now: Timestamp,
) -> Result<u64, redb::Error> {
    let mut freed = 0;
    for _ in 0..FORGET {
        let Some((settled, length)) = journal.first()?.map(|(_, kept)| (kept.value().0, kept.value().1.len() as u64))
        else {
            break;
        };
        let is_old = now.since(Timestamp::from_millis(settled)) > limits.retention;
        if !is_old && bytes - freed <= limits.max_bytes {
            break;
        }
        journal.pop_first()?;
        freed += length;
    }
    Ok(freed)
}

/// A journal that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    commands: Commands,
    since: Timestamp,
    from: u64,
    /// Where it ends: what is published from now on is not told.
    end: u64,
}

impl Reading {
    pub(super) const fn new(commands: Commands, since: Timestamp, end: u64) -> Self {
        Self { commands, since, from: 0, end }
    }
}

#[async_trait]
impl crate::queue::Journal for Reading {
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.from >= self.end {
            return Ok(None);
        }
        let Page { events, next } = self.commands.journal(self.from, self.since, PAGE).await?;
        self.from = next.unwrap_or(self.end);
        // What cannot be decoded is among the dead letters by now, or will be.
        let events = events.iter().filter_map(|wire| wire::decode(wire).ok());
        Ok(Some(events.filter(|event| event.again.is_none()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;
    use redb::{Database, ReadableDatabase};

    use super::super::log::measure;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Makes a journal of ten events of ten bytes, one settled each second from 0 on; returns what is left of it.
    fn forgotten(limits: Limits, now: Timestamp) -> (u64, Vec<u64>) {
        let file = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let txn = file.begin_write().unwrap();
        let mut journal = txn.open_table(JOURNAL).unwrap();
        for seq in 0..10 {
            journal.insert(seq, (i64::try_from(seq).unwrap() * 1_000, &b"0123456789"[..])).unwrap();
        }
        let freed = forget(&mut journal, 100, &limits, now).unwrap();
        drop(journal);
        txn.commit().unwrap();
        let table = file.begin_read().unwrap().open_table(JOURNAL).unwrap();
        let (_, bytes, next) = measure(&table, |(_, wire)| wire.len()).unwrap();
        assert_eq!((bytes, next), (100 - freed, if freed == 100 { 0 } else { 10 }));
        (freed, table.iter().unwrap().map(|row| row.unwrap().0.value()).collect())
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many_or_they_are_too_old() {
        let now = Timestamp::from_millis(9_000);
        let limits = |max_bytes, retention| Limits { max_bytes, retention };
        assert_eq!(forgotten(limits(100, HOUR), now), (0, (0..10).collect()));
        assert_eq!(forgotten(limits(35, HOUR), now), (70, vec![7, 8, 9]));
        assert_eq!(forgotten(limits(100, Duration::from_secs(4)), now), (50, (5..10).collect()));
        assert_eq!(forgotten(limits(0, HOUR), now), (100, vec![]));
    }

    #[test]
    fn a_page_tells_both_tables_in_order_and_leaves_out_what_was_settled_before() {
        let file = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let txn = file.begin_write().unwrap();
        let mut journal = txn.open_table(JOURNAL).unwrap();
        let mut events = txn.open_table(super::super::tables::EVENTS).unwrap();
        for seq in [0_u64, 2, 3, 6] {
            let settled = MARGIN_MILLIS * i64::try_from(seq).unwrap();
            journal.insert(seq, (settled, &[u8::try_from(seq).unwrap()][..])).unwrap();
        }
        for seq in [1_u64, 4, 5] {
            events.insert(seq, &[u8::try_from(seq).unwrap()][..]).unwrap();
        }
        let (mut told, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page = page(&journal, &events, at, Timestamp::from_millis(3 * MARGIN_MILLIS), 2).unwrap();
            told.extend(page.events.iter().map(|wire| wire[0]));
            from = page.next;
        }
        assert_eq!(told, [1, 2, 3, 4, 5, 6]);
    }
}
