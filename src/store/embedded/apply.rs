//! Applies events to the embedded store.

use std::time::Duration;

use crate::domain::{Key, Timestamp};
use crate::store::fence::{KeyAction, raise, repeat};
use crate::store::{Applied, Change, Entry, Token, Tombstone};

use super::Embedded;
use super::expiring::{Expiring, live};

impl Embedded {
    /// Restores a tombstone that was evicted while the fence says "deleted".
    pub(super) fn restore_tombstone(&self, key: &Key, now: Timestamp) -> Option<Entry> {
        let fence = live(&self.fences, key, now).filter(|fence| fence.value.says_deleted())?;
        let tombstone = Tombstone { token: Token::draw(), at: fence.value.at, written_at: fence.value.raised };
        let remaining = fence.value.raised.plus(self.lifetimes.tombstone_ttl).since(now);
        if remaining.is_zero() {
            return None;
        }
        let entry = Entry::Tombstone(tombstone);
        self.write(key, entry.clone(), now, remaining);
        Some(entry)
    }

    /// See [`Store::apply`](crate::store::Store::apply).
    pub(super) fn apply_change(&self, key: &Key, change: &Change) -> Applied {
        let now = self.clock.now();
        let _guard = self.stripes.of(key).lock();
        let mark = (key.clone(), change.event);
        if live(&self.seen, &mark, now).is_some() {
            return Applied::Duplicate;
        }
        let known = live(&self.fences, key, now);
        let entry = live(&self.entries, key, now).map(|found| found.value);
        let tombstone = match &entry {
            Some(Entry::Tombstone(tombstone)) => Some(tombstone.at),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        };
        let of = change.of.map(|of| (key.clone(), of));
        let is_remembered = of.as_ref().is_some_and(|of| live(&self.seen, of, now).is_some());
        let fence = known.as_ref().map(|known| &known.value);
        let repeated = fence.filter(|_| is_remembered).and_then(|fence| repeat(fence, change));
        let raised = repeated.unwrap_or_else(|| raise(fence, tombstone, change, now));
        // The fence first, then the entry, then the mark. The lock of the stripe makes them one step.
        let life = known.map_or(Duration::ZERO, |known| known.remaining(now)).max(self.lifetimes.fence());
        self.fences.insert(key.clone(), Expiring::new(raised.fence, now, life));
        self.locks.invalidate(key);
        match raised.place {
            KeyAction::KeepTombstone if tombstone.is_some() => {}
            KeyAction::Clear | KeyAction::KeepTombstone => self.entries.invalidate(key),
            KeyAction::WriteTombstone(at) => {
                let tombstone = Tombstone { token: Token::draw(), at, written_at: now };
                self.write(key, Entry::Tombstone(tombstone), now, self.lifetimes.tombstone_ttl);
            }
        }
        // A replay that had the whole effect marks the event itself as applied, too.
        let of = of.filter(|_| raised.whole && (is_remembered || !change.force));
        for mark in of.into_iter().chain(raised.whole.then_some(mark)) {
            self.seen.insert(mark, Expiring::new((), now, self.lifetimes.dedup_window));
        }
        self.stripes.of(key).changed.notify_waiters();
        self.changes.publish(key.clone(), change.kind);
        if raised.outrun {
            return Applied::Outrun;
        }
        Applied::Applied { had_entry: matches!(entry, Some(Entry::Record(_) | Entry::Tombstone(_))) }
    }
}
