//! Leases: the right to fill one key, once.

use std::fmt;
use std::time::Duration;

use crate::clock::SharedClock;
use crate::domain::{Key, Modified, Timestamp};

use super::fence::{Fence, Settlement};

/// Names one write at a key: a lease, or the record or tombstone that a fill or a burial wrote.
///
/// 128 random bits, drawn anew for each attempt and never reused, so that "K still holds what I saw"
/// is a comparison of tokens and never of contents (DESIGN section 2, rules 1 and 4).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

impl Token {
    /// Draws a new token.
    #[must_use]
    pub fn draw() -> Self {
        Self(rand::random())
    }

    /// Makes a token of its bytes, as they stand in a stored record.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a lease holder replaces when it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// K itself holds the lease; the fill replaces it.
    Key,
    /// K still holds the record (or tombstone) with this token, which goes on being served; the
    /// fill replaces exactly it. The lease stands at `lock:{K}`.
    Lock(Token),
}

/// The right to fill one key, once: granted by [`Store::lease`](super::Store::lease), consumed by
/// [`Store::fill`](super::Store::fill) or [`Store::release`](super::Store::release).
///
/// A lease that is dropped runs out by itself after its time; others wait for it until then, so
/// dropping one is a fault of this program and is logged.
#[must_use = "a lease that is neither filled nor released makes others wait until it runs out"]
#[derive(Debug)]
pub struct Lease {
    key: Key,
    token: Token,
    held: Held,
    fence: Option<Fence>,
    settled: bool,
}

impl Lease {
    /// Makes a lease; called by adapters only, when they have placed it.
    pub fn granted(key: Key, token: Token, held: Held, fence: Option<Fence>) -> Self {
        Self { key, token, held, fence, settled: false }
    }

    /// Returns the key that may be filled.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the token under which the lease was placed.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }

    /// Returns what the fill replaces.
    #[must_use]
    pub const fn held(&self) -> Held {
        self.held
    }

    /// Returns what stands at K while this lease is held: the witness that another lookup of this
    /// process must have seen there to wait for this one (rule 2).
    #[must_use]
    pub const fn witness(&self) -> Token {
        match self.held {
            Held::Key => self.token,
            Held::Lock(base) => base,
        }
    }

    /// Returns the fence as it stood when the lease was granted. It cannot rise without voiding the
    /// lease, so the fill is judged by it.
    #[must_use]
    pub const fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    /// Judges a fetched profile by the fence (rule 7).
    #[must_use]
    pub fn judge(&self, modified: Option<Modified>, settle_window: Duration, clock: &SharedClock) -> Settlement {
        let now: Timestamp = clock.now();
        self.fence.as_ref().map_or(Settlement::Settled, |fence| fence.judge(modified, settle_window, now))
    }

    /// Gives up the right to fill, but lets the lease stand until its time is over, so that nobody
    /// else is granted one before (a tombstone's verification is limited in this way).
    pub fn keep_until_it_runs_out(mut self) {
        self.settled = true;
    }

    /// Gives up the obligation; called by adapters only, when they consume the lease.
    pub fn consume(mut self) -> (Key, Token, Held) {
        self.settled = true;
        (self.key.clone(), self.token, self.held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.settled {
            tracing::warn!(key = %self.key, "a lease was dropped without fill or release; it runs out by itself");
        }
    }
}
