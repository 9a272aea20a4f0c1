//! While the scheme or key of `[keys]` is changed: what is kept under the other one is served to its end.
//!
//! # Why it may be
//!
//! A customer has two keys meanwhile, and each of them is under the whole protocol: every event names both and is
//! acknowledged when it was applied at both, processes of either scheme lease, fill and are judged by the fence of
//! their own. So what stands at the other key is at least as new as every event applied before, as what stands at K
//! is. It is looked at only where nothing stands at K, so that K is filled as the other entries end, and not all at
//! once. Nothing is ever written under the other key.
//!
//! A pointer is not followed: its customer is fetched anew.

use crate::store::{Content, Entry, Record};

use super::freshness::{self, Freshness};
use super::reader::{Reader, Step};
use super::{Answer, How, Outcome};

impl Reader<'_> {
    /// Returns the answer that is kept under the other scheme, if there is one; keeps a stale profile at hand.
    pub(super) async fn get_under_previous_key(&mut self) -> Result<Option<Answer>, Step> {
        // Of a customer that a pointer led to, only the digest under the present scheme is known.
        let Some(previous) = self.room.parts.previous.as_ref().filter(|_| self.at == self.asked) else {
            return Ok(None);
        };
        let identity = previous.identify(self.asked.tenant(), self.customer);
        Ok(match self.room.parts.store.get(&identity.key()).await? {
            Some(Entry::Tombstone(tombstone)) => {
                let how = How::Hit { remaining: None, refreshing: false };
                let since = tombstone.written_at;
                Some(Answer { outcome: Outcome::Deleted, how, unsettled: false, since })
            }
            Some(Entry::Record(record)) if record.identity == identity => self.consider_behind(record),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        })
    }

    fn consider_behind(&mut self, record: Record) -> Option<Answer> {
        match &record.content {
            Content::Found(_) | Content::Negative => {}
            Content::Pointer(_) | Content::Sealed(_) => return None,
        }
        match freshness::judge(&record, self.room.parts.clock.now()) {
            Freshness::Fresh { remaining } => {
                Answer::of(&record, How::Hit { remaining: Some(remaining), refreshing: false })
            }
            Freshness::Stale { since } => {
                self.stale = Some((record, since));
                None
            }
            Freshness::Expired => None,
        }
    }
}
