//! Lookups while the scheme or secret of `[keys]` is changed: entries under the customer's other key are served
//! until they expire.
//!
//! # Why this is correct
//!
//! During the change a customer has two keys, and the whole protocol holds at each of them: every event names both
//! keys and is acknowledged after it was applied at both; the processes of each scheme lease, fill and use the fence
//! at their own key. So the entry at the other key is also at least as new as every event applied before. It is read
//! only if there is no entry at the present key. So the present keys are filled one by one as the other entries
//! expire, and not all at once. Nothing is ever written at the other key.
//!
//! A pointer at the other key is not followed: its customer is fetched.

use crate::store::{Content, Entry, Record};

use super::freshness::Freshness;
use super::reader::{CacheReader, StepError};
use super::{AnswerSource, LookupAnswer};

impl CacheReader<'_> {
    /// Returns the answer that is stored under the other key, if there is one. Keeps a stale profile as a fallback.
    pub(super) async fn get_under_previous_key(&mut self) -> Result<Option<LookupAnswer>, StepError> {
        // If a pointer led here, only the digest of the customer under the present scheme is known.
        let previous = self.context.deps.previous.as_ref().filter(|_| self.current == self.requested);
        let Some(previous) = previous else { return Ok(None) };
        let identity = previous.identify(self.requested.tenant(), self.customer);
        Ok(match self.context.deps.store.get(&identity.key()).await? {
            Some(Entry::Tombstone(tombstone)) => Some(LookupAnswer::deleted(&tombstone)),
            Some(Entry::Record(record)) if record.identity == identity => self.use_previous(record),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        })
    }

    fn use_previous(&mut self, mut record: Record) -> Option<LookupAnswer> {
        match &record.content {
            Content::Found(_) | Content::Negative => {}
            Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => return None,
        }
        let now = self.context.deps.clock.now();
        if self.is_too_old(&record, now) {
            return None;
        }
        match self.context.judge(&mut record, self.config, now) {
            Freshness::Fresh { remaining } => {
                LookupAnswer::of(&record, AnswerSource::Hit { remaining: Some(remaining), refreshing: false })
            }
            Freshness::Stale { since } => {
                self.stale = Some((record, since));
                None
            }
            Freshness::Expired => None,
        }
    }
}
