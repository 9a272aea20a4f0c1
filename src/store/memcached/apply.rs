//! Applies events: raise the fence, void the lease of a refresh, delete K or write a tombstone there, mark the event. In this
//! order, each step after the server has confirmed the one before.
//!
//! # Between the steps
//!
//! Others may act between any two steps, and the process may stop there; then the event is delivered once more.
//!
//! - *Two events of one customer.* Each raises the fence by compare-and-swap, so the fences have one order. A deletion of K by
//!   the earlier one may come late, and delete the tombstone of the later one: `lease` writes it again, because the fence says
//!   "deleted".
//! - *A tombstone of an event that was overtaken* would hide a customer that exists. So a tombstone is only written in place of a
//!   version at K that was read before the fence: an event that raises the fence afterwards changes that version. Where K has
//!   changed meanwhile, its version is read again (where there is nothing, that of a lease that is written first), and then the
//!   fence is asked again whether there is to be a tombstone. A command that arrives late, from a process that stopped waiting for
//!   its answer, finds its version changed for the same reason.
//! - *A tombstone that stays* is written again, with another token, so that a lookup that verifies it is refused.

use crate::domain::{Digest, EventTime, Key, Kind, Timestamp};
use crate::store::fence::{KeyAction, Raised, raise, repeat};
use crate::store::{Applied, Change, Entry, Error, record};

use super::Memcached;
use super::changes;
use super::connection::{Session, unexpected};
use super::protocol::{Answer, Condition, Requests, Stored};
use super::values::{Held, KeyNames, StoredFence, fence, is_marked, mark, server_lifetime};

/// An event at one key.
struct Step<'a> {
    key: &'a Key,
    names: KeyNames<'a>,
    change: &'a Change,
}

/// What was read before an event is applied.
struct Before {
    is_remembered: bool,
    /// What a write of the mark requires.
    unmarked: Condition,
    known: Held<StoredFence>,
    entry: Held<Entry>,
    /// The text of an accepted tombstone with its MAC.
    sealed: Option<String>,
}

impl Memcached {
    /// See [`Store::apply`](crate::store::Store::apply).
    pub(super) async fn apply_change(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        let session = self.node(key).events.session()?;
        let step = Step { key, names: KeyNames::of(key), change };
        loop {
            if let Some(applied) = self.try_apply(&session, &step).await? {
                return Ok(applied);
            }
            session.try_again()?;
        }
    }

    /// Returns `None` if the fence changed in between, or was lost.
    async fn try_apply(&self, session: &Session<'_>, step: &Step<'_>) -> Result<Option<Applied>, Error> {
        let (change, now) = (step.change, self.clock.now());
        let Some(before) = self.before(session, step, now).await? else { return Ok(Some(Applied::Duplicate)) };
        let (raised, was_raised) = self.decide(&before, change, now);
        let item = self.raised_fence(step, &before, &raised, now);
        if !was_raised && !self.write_fence(session, &step.names, &item, before.known.unchanged, now).await? {
            return Ok(None);
        }
        let requests = match raised.place {
            KeyAction::Clear => Requests::default().delete(&step.names.lock).delete(step.names.key),
            KeyAction::KeepTombstone => {
                self.keep_tombstone(session, (step.key, &step.names), now).await?;
                Requests::default()
            }
            KeyAction::WriteTombstone(_) => {
                // Without a write that compares the fence, K was read after it.
                let replaced = before.entry.version().filter(|_| !was_raised);
                if !self.bury(session, &step.names, item, replaced, now).await? {
                    return Ok(None);
                }
                Requests::default()
            }
        };
        if !self.announce_and_mark(session, step, requests, &before, &raised, now).await? {
            return Ok(Some(Applied::Duplicate));
        }
        let had_entry = matches!(before.entry.value, Some(Entry::Record(_) | Entry::Tombstone(_)));
        Ok(Some(if raised.outrun { Applied::Outrun } else { Applied::Applied { had_entry } }))
    }

    /// Writes the fence in place of what was read; returns `false` if it changed.
    async fn write_fence(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        item: &StoredFence,
        unchanged: Condition,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let lifetime = Some(server_lifetime(item.until.since(now)));
        let requests = Requests::default().set(&names.fence, item.encode().as_bytes(), lifetime, unchanged);
        let [written] = session.run(requests).await?;
        if let Answer::Failed(_) = written {
            // The fence cannot be raised, so the event is not applied. But the server still deletes, and the entry and its
            // leases are outdated: without them nothing old is served.
            session.run::<2>(Requests::default().delete(&names.lock).delete(names.key)).await?;
        }
        Ok(written.done()?.is_some())
    }

    /// Reads what the decision needs; `None` if the event was applied before.
    async fn before(&self, session: &Session<'_>, step: &Step<'_>, now: Timestamp) -> Result<Option<Before>, Error> {
        let (names, change) = (&step.names, step.change);
        let of = change.of.unwrap_or(change.event);
        let requests = Requests::default().get(&names.seen(change.event)).get(&names.seen(of));
        let [seen, seen_of, at_fence, at_key] = session.run(requests.get(&names.fence).get(names.key)).await?;
        let seen = seen.value()?;
        if is_marked(seen.as_ref(), self.proof(step.key, change.event).as_deref(), now) {
            return Ok(None);
        }
        let unmarked = seen.map_or(Condition::Absent, |seen| Condition::Unchanged(seen.version));
        let is_remembered =
            change.of.is_some() && is_marked(seen_of.value()?.as_ref(), self.proof(step.key, of).as_deref(), now);
        let at_key = at_key.value()?;
        let entry = self.entry(step.key, at_key.as_ref(), now);
        let sealed = at_key.as_ref().filter(|_| matches!(entry.value, Some(Entry::Tombstone(_)))).and_then(sealed_text);
        Ok(Some(Before { is_remembered, unmarked, known: fence(at_fence.value()?.as_ref(), now), entry, sealed }))
    }

    /// Decides what the event does, and whether it raised the fence before: in an attempt that stopped, or in another process.
    /// Then the fence stays.
    fn decide(&self, before: &Before, change: &Change, now: Timestamp) -> (Raised, bool) {
        let known = before.known.value.as_ref();
        let is_recent = |known: &StoredFence| now.since(known.fence.raised) < self.lifetimes.dedup_window;
        let is_ours = known.is_some_and(|known| known.last == Some(change.event) && is_recent(known));
        let repeated = known.filter(|_| before.is_remembered || is_ours).and_then(|known| repeat(&known.fence, change));
        let was_raised = is_ours && repeated.is_some();
        let tombstone: Option<Option<EventTime>> = match &before.entry.value {
            Some(Entry::Tombstone(tombstone)) => Some(tombstone.at),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        };
        let known = known.map(|known| &known.fence);
        (repeated.unwrap_or_else(|| raise(known, tombstone, change, now)), was_raised)
    }

    /// Returns the fence as it is stored after the event.
    fn raised_fence(&self, step: &Step<'_>, before: &Before, raised: &Raised, now: Timestamp) -> StoredFence {
        let (change, known) = (step.change, before.known.value.as_ref());
        let end = now.plus(self.lifetimes.fence());
        let was = match known {
            Some(known) => known.sealed.clone().filter(|_| known.fence.says_deleted()),
            None => before.sealed.clone(),
        };
        let is_newest = raised.fence.at == change.stamps.at;
        let sealed = if change.kind == Kind::Deleted && (was.is_none() || is_newest) {
            let mac = self.macs.as_ref().and_then(|macs| macs.of_tombstone(step.key, change.stamps.at, now));
            mac.map(|mac| record::tombstone_text(change.stamps.at, now, mac)).or(was)
        } else {
            was
        };
        StoredFence {
            until: known.map_or(end, |known| known.until.max(end)),
            last: raised.whole.then_some(change.event),
            sealed: sealed.filter(|_| raised.fence.says_deleted()),
            fence: raised.fence.clone(),
        }
    }

    /// Sends the last requests of the effect, announces the change, and marks the event as applied. Returns `false` if another
    /// process has marked it meanwhile.
    async fn announce_and_mark(
        &self,
        session: &Session<'_>,
        step: &Step<'_>,
        requests: Requests,
        before: &Before,
        raised: &Raised,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let change = step.change;
        let mut answers = session.run_all(changes::take_number(requests, now)).await?;
        let number = answers.pop().ok_or_else(unexpected)?.value()?.ok_or_else(unexpected)?;
        for deleted in answers {
            deleted.done()?;
        }
        let requests = changes::announce(&number, step.key, change.kind)?;
        if !raised.whole {
            let [announced] = session.run(requests).await?;
            announced.done()?;
            return Ok(true);
        }
        let mark = |requests: Requests, event, condition| {
            let proof = self.proof(step.key, event).unwrap_or_else(|| "1".to_owned());
            let value = mark(now.plus(self.lifetimes.dedup_window), &proof);
            let lifetime = Some(server_lifetime(self.lifetimes.dedup_window));
            requests.set(&step.names.seen(event), value.as_bytes(), lifetime, condition)
        };
        // A replay that had the whole effect marks the event itself as applied, too.
        let of = change.of.filter(|of| *of != change.event && (before.is_remembered || !change.force));
        let requests = of.into_iter().fold(requests, |requests, of| mark(requests, of, Condition::Any));
        let mut answers = session.run_all(mark(requests, change.event, before.unmarked)).await?;
        let marked = answers.pop().ok_or_else(unexpected)?.done()?;
        for written in answers {
            written.done()?;
        }
        Ok(marked.is_some())
    }

    /// Returns what a mark must contain; `None` without sealing.
    fn proof(&self, key: &Key, event: Digest) -> Option<String> {
        self.macs.as_ref().and_then(|macs| macs.of_mark(key, event)).map(hex::encode)
    }
}

/// Returns the text of a tombstone that has a MAC.
fn sealed_text(stored: &Stored) -> Option<String> {
    record::mac_of(&stored.value)?;
    record::text_of_tombstone(&stored.value).map(str::to_owned)
}
