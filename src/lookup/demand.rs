//! How old an answer may be, where the caller demands that.

use std::time::Duration;

use crate::domain::{Digest, Identity, Timestamp};
use crate::store::{Record, Token};

/// The demand of one lookup, and the record that did not meet it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    max_age: Option<Duration>,
    refused: Option<Token>,
    /// The entry at which the lookup has waited for another one.
    waited_at: Option<Digest>,
}

impl Demand {
    /// Creates the demand for an answer that was fetched at most `max_age` ago; `None`: for any.
    pub(super) const fn new(max_age: Option<Duration>) -> Self {
        Self { max_age, refused: None, waited_at: None }
    }

    /// Notes that the lookup waits for another one at this entry.
    pub(super) fn waits_at(&mut self, entry: &Identity) {
        self.waited_at = Some(entry.digest());
    }

    /// Returns whether the lookup has waited at this entry: what is there now was fetched meanwhile, and nothing else was.
    pub(super) fn has_waited_at(&self, entry: &Identity) -> bool {
        self.waited_at == Some(entry.digest())
    }

    /// Returns whether a record is too old, and remembers it then. What another lookup has fetched while this one waited for
    /// it is recent enough.
    pub(super) fn refuses(&mut self, record: &Record, has_waited: bool, now: Timestamp) -> bool {
        let was_fetched_meanwhile = has_waited && self.refused != Some(record.token);
        let age = now.since(record.fetched_at);
        let is_too_old =
            !was_fetched_meanwhile && self.max_age.is_some_and(|max_age| age > max_age || max_age.is_zero());
        if is_too_old {
            self.refused = Some(record.token);
        }
        is_too_old
    }

    /// Returns whether a record was too old.
    pub(super) const fn has_refused(&self) -> bool {
        self.refused.is_some()
    }
}
