//! The limits of the times of events.

use std::time::Duration;

use serde::Deserialize;

use crate::domain::{Kind, Timestamp};
use crate::metrics::IngestDoubt;

use super::authenticate::Proof;
use super::shapes::Announcement;

/// The maximum of the default of `ingest.max_age`.
const LONGEST_DEFAULT_AGE: Duration = Duration::from_secs(24 * 3600);

/// `[ingest]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How far in the future the time of an event may be; later, it counts as no time.
    #[serde(with = "humantime_serde")]
    pub max_future: Duration,
    /// How old a deletion may be that is signed without a timestamp; absent: see [`Config::limits`].
    #[serde(default, with = "humantime_serde")]
    pub max_age: Option<Duration>,
}

/// The limits of the times of events.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    max_future: Duration,
    max_age: Duration,
}

impl Config {
    /// Returns the limits. Without `max_age` it is the shorter of the dedup window and 24 hours, so that a deletion
    /// that is sent again is remembered or too old.
    #[must_use]
    pub fn limits(&self, dedup_window: Duration) -> TimeLimits {
        let max_age = self.max_age.unwrap_or_else(|| dedup_window.min(LONGEST_DEFAULT_AGE));
        TimeLimits { max_future: self.max_future, max_age }
    }
}

impl TimeLimits {
    /// Removes from an event what could do lasting harm: a time that no later event can outlive, and the right of an
    /// old deletion to write a tombstone if anybody could have sent it again. The event still evicts. Returns what was
    /// not believed.
    pub(super) fn limit(
        self,
        announcement: &mut Announcement,
        proof: &Proof<'_>,
        now: Timestamp,
    ) -> impl Iterator<Item = IngestDoubt> + use<> {
        let (stamps, is_future) = announcement.stamps.not_after(now.plus(self.max_future));
        announcement.stamps = stamps;
        let oldest = now.minus(self.max_age);
        let is_old = proof.is_repeatable()
            && announcement.kind == Kind::Deleted
            && announcement.stamps.at.is_none_or(|at| at.is_before(oldest));
        if is_old {
            announcement.kind = Kind::Updated;
        }
        let found = [
            (announcement.is_partial, IngestDoubt::UnreadableField),
            (is_future, IngestDoubt::FutureTime),
            (is_old, IngestDoubt::OldDeletion),
        ];
        found.into_iter().filter_map(|(is_found, doubt)| is_found.then_some(doubt))
    }
}
