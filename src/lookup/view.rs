//! The view: what one lookup does next, given the entry that it read.

use crate::domain::Timestamp;
use crate::store::{Base, Content, Entry, Record};

use super::fill::{FollowedPointer, PointerFill};
use super::freshness::Freshness;
use super::reader::{CacheReader, EntryView};
use super::{AnswerSource, LookupAnswer};

impl CacheReader<'_> {
    pub(super) fn view(&mut self, entry: Option<Entry>) -> EntryView {
        match entry {
            None => EntryView::RequestLease(Base::Absent),
            Some(Entry::Corrupt(bytes)) => EntryView::RequestLease(Base::Corrupt(bytes)),
            Some(Entry::Leased(leased)) => EntryView::Wait(leased.token),
            Some(Entry::Tombstone(tombstone)) => {
                let answer = LookupAnswer::deleted(&tombstone);
                self.verify(tombstone);
                EntryView::Serve(answer)
            }
            Some(Entry::Record(record)) => self.view_record(record),
        }
    }

    fn view_record(&mut self, mut record: Record) -> EntryView {
        let (base, dead) = (Base::Token(record.token), Base::Dead(record.token));
        if record.identity != self.current {
            // The digests collide, or the value was copied to this key: a miss.
            tracing::warn!(key = %self.key, "a stored record is about another customer and is not served");
            return EntryView::RequestLease(dead);
        }
        let now = self.context.deps.clock.now();
        let cleared = self.context.deps.clears.of(self.requested.tenant());
        let freshness = self.context.judge(&mut record, self.config, now);
        let is_answer = matches!(&record.content, Content::Found(_) | Content::Negative);
        if is_answer && matches!(freshness, Freshness::Fresh { .. }) && self.is_too_old(&record, now) {
            return EntryView::RequestLease(base);
        }
        let refreshing = match freshness {
            Freshness::Fresh { remaining } => self.refresh_if_due(&record, remaining, cleared),
            Freshness::Stale { .. } | Freshness::Expired => false,
        };
        match (freshness, &record.content) {
            // A record that the store cannot decrypt is a miss, even a fresh one. No customer has a pointer of an identifier.
            (Freshness::Expired, _) | (_, Content::Sealed(_) | Content::IdentifierPointer(_)) => {
                EntryView::RequestLease(dead)
            }
            (_, Content::Pointer(canonical)) if self.pointer.is_none() && *canonical != self.current => {
                let known = record.fetched_at.plus(record.fetch_cost);
                let pointer = FollowedPointer { token: record.token, known, fill: PointerFill::Stored };
                EntryView::FollowPointer(canonical.clone(), pointer)
            }
            // A pointer to a pointer, or to itself: a miss.
            (_, Content::Pointer(_)) => EntryView::RequestLease(base),
            // This negative answer is older than the pointer: Genesys did not show the merge yet. A miss.
            (_, Content::Negative) if self.pointer.is_some_and(|pointer| record.fetched_at < pointer.known) => {
                EntryView::RequestLease(base)
            }
            (Freshness::Fresh { remaining }, Content::Found(_) | Content::Negative) => {
                let how = if self.has_waited {
                    AnswerSource::Collapsed { over: self.over() }
                } else {
                    AnswerSource::Hit { remaining: Some(remaining), refreshing }
                };
                LookupAnswer::of(&record, how).map_or(EntryView::RequestLease(base), EntryView::Serve)
            }
            (Freshness::Stale { since }, Content::Found(_) | Content::Negative) => {
                self.stale = Some((record, since));
                EntryView::RequestLease(base)
            }
        }
    }

    /// Returns whether the caller demands a newer answer.
    pub(super) fn is_too_old(&mut self, record: &Record, now: Timestamp) -> bool {
        self.demand.refuses(record, self.demand.has_waited_at(&self.current), now)
    }
}
