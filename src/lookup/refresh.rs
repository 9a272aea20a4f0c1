//! What a lookup starts for those who come later, and does not wait for itself.
//!
//! Each is begun by one lookup, at most once in an interval per process, and holds the lease of its key while
//! it runs, so that over all processes Genesys is asked once. A failure costs nobody anything: what stood
//! goes on standing.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::RefreshCause;
use crate::spans::{self, Cause};
use crate::store::{Base, Content, LeaseAnswer, Record, Token, Tombstone};

use super::freshness;
use super::reader::Reader;

/// The least time between two attempts of one process to refresh a record before its end.
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// The least age of a tombstone at which Genesys is asked whether the customer is there again, and the
/// least time between two such questions (rule 8).
pub(super) const VERIFY_EVERY: Duration = Duration::from_secs(60);

impl Reader<'_> {
    /// Fetches a record anew that is still fresh, if its end is near enough (see [`freshness::is_due`]);
    /// returns whether that is under way.
    ///
    /// An unsettled record is left to end (rule 7), and so is a negative one, which costs little.
    pub(super) fn refresh_if_due(&self, record: &Record, remaining: Duration) -> bool {
        let worth_it = match &record.content {
            Content::Found(_) | Content::Pointer(_) => record.settled,
            Content::Negative | Content::Sealed(_) => false,
        };
        if !worth_it || !freshness::is_due_by_chance(record, remaining) || self.room.parts.shutdown.is_requested() {
            return false;
        }
        if self.room.refreshing.entry(self.key.clone()).or_insert(()).is_fresh() {
            self.refresh(record.token);
        }
        true
    }

    fn refresh(&self, base: Token) {
        let (room, key, mission) = (Arc::clone(self.room), self.key.clone(), self.mission());
        let ttl = self.times.lease_ttl;
        let task = async move {
            let parts = &room.parts;
            match parts.store.lease(&key, &Base::Token(base), Token::draw(), ttl).await {
                Ok(LeaseAnswer::Granted(lease)) => {
                    parts.metrics.refreshes.with(RefreshCause::Early).increment(1);
                    // Whoever meets the record's end meanwhile takes a seat.
                    let (flight, _seat) = room.flights.start(&key, lease.witness());
                    mission.lead(lease, flight).await;
                }
                Ok(LeaseAnswer::Held { .. } | LeaseAnswer::Changed(_)) | Err(_) => {}
            }
        };
        self.room.parts.shutdown.spawn(spans::lead(&self.key, Cause::Refresh, task));
    }

    /// Asks Genesys whether a customer that was deleted a while ago is there again.
    pub(super) fn verify(&self, tombstone: Tombstone) {
        let parts = &self.room.parts;
        let too_young = parts.clock.now().since(tombstone.written_at) < VERIFY_EVERY;
        if too_young
            || parts.shutdown.is_requested()
            || !self.room.verified.entry(self.key.clone()).or_insert(()).is_fresh()
        {
            return;
        }
        let (room, key, mission) = (Arc::clone(self.room), self.key.clone(), self.mission());
        let task = async move {
            let parts = &room.parts;
            let base = Base::Token(tombstone.token);
            // The lock of a granted lease stands for the whole interval: one question in it.
            match parts.store.lease(&key, &base, Token::draw(), VERIFY_EVERY).await {
                Ok(LeaseAnswer::Granted(lease)) => {
                    parts.metrics.refreshes.with(RefreshCause::Tombstone).increment(1);
                    mission.verify(lease, tombstone).await;
                }
                Ok(LeaseAnswer::Held { .. } | LeaseAnswer::Changed(_)) | Err(_) => {}
            }
        };
        self.room.parts.shutdown.spawn(spans::lead(&self.key, Cause::Verify, task));
    }
}
