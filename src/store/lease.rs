//! Leases: the right to fill one key, once.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Key, Modified};

use super::entry::Record;
use super::error::Error;
use super::fence::{Fence, FenceVerdict};
use super::token::Token;

/// What a lease holder replaces when it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseTarget {
    /// The lease itself, which is the value of the key.
    Key,
    /// The record or tombstone with this token, which the key keeps until the fill. The lease is at `lock:{K}`.
    Lock(Token),
}

/// The right to fill one key, once: granted by [`Store::lease`](super::Store::lease), consumed by
/// [`Store::fill`](super::Store::fill) or [`Store::release`](super::Store::release).
///
/// A lease that is dropped expires after its lifetime. Other lookups wait for it until then, so a drop is an error of
/// this program and is logged.
#[must_use = "a lease that is neither filled nor released makes others wait until it expires"]
#[derive(Debug)]
pub struct Lease {
    key: Key,
    token: Token,
    target: LeaseTarget,
    /// How long ago the fence had been raised when the lease was granted, and the fence.
    fence: Option<(Duration, Fence)>,
    granted_at: Instant,
    is_consumed: bool,
}

impl Lease {
    /// Creates a lease; only adapters call it, after they have written the lease. `fence` has the time since it was raised.
    pub fn granted(key: Key, token: Token, target: LeaseTarget, fence: Option<(Duration, Fence)>) -> Self {
        Self { key, token, target, fence, granted_at: Instant::now(), is_consumed: false }
    }

    /// Returns the key that may be filled.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the token of the lease.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }

    /// Returns what the fill replaces.
    #[must_use]
    pub const fn target(&self) -> LeaseTarget {
        self.target
    }

    /// Returns the token that the key holds while this lease is valid. Another lookup of this process may wait for
    /// this one only if it saw that token: [`rules::witness`](crate::rules#witness).
    #[must_use]
    pub const fn witness(&self) -> Token {
        match self.target {
            LeaseTarget::Key => self.token,
            LeaseTarget::Lock(base) => base,
        }
    }

    /// Returns the fence at the time when the lease was granted. Raising the fence voids the lease, so it is the right
    /// one to judge the fill.
    #[must_use]
    pub fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref().map(|(_, fence)| fence)
    }

    /// Judges a fetched profile by the fence: [`rules::unsettled`](crate::rules#unsettled). A change of the wall clock
    /// since the lease was granted does not matter.
    #[must_use]
    pub fn judge(&self, modified: Option<Modified>, settle_window: Duration) -> FenceVerdict {
        let Some((age, fence)) = &self.fence else { return FenceVerdict::CaughtUp };
        fence.judge(modified, settle_window, *age + self.granted_at.elapsed())
    }

    /// Gives up the right to fill, but keeps the lease until it expires, so that no other lookup is granted one
    /// before. This limits how often a tombstone is verified.
    pub fn keep_until_it_expires(mut self) {
        self.is_consumed = true;
    }

    /// Consumes the lease for a fill; only adapters call it.
    ///
    /// # Errors
    ///
    /// The record has another key or token than the lease.
    pub fn consume_for(self, record: &Record) -> Result<(Key, Token, LeaseTarget), Error> {
        let (key, token, target) = self.consume();
        if record.identity.key() != key || record.token != token {
            let reason = "the record of a fill has another key or token than its lease".to_owned();
            return Err(Error::Rejected { reason });
        }
        Ok((key, token, target))
    }

    /// Consumes the lease; only adapters call it.
    pub fn consume(mut self) -> (Key, Token, LeaseTarget) {
        self.is_consumed = true;
        (self.key.clone(), self.token, self.target)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_consumed {
            tracing::warn!(key = %self.key, "a lease was dropped without fill or release; it expires by itself");
        }
    }
}
