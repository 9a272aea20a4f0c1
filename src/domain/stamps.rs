//! The two timestamps that Genesys gives an event.
//!
//! `modified` is the `modifyDate` of the body: the version of the profile, which decides whether a fill is settled.
//! `at` is the time of the event itself: it orders the events of a customer, for tombstones. They come from different
//! clocks. So they are different types, which cannot be compared with each other
//! ([`rules::two-stamps`](crate::rules#two-stamps)). Our own clock orders no events; it only bounds what ingest takes for
//! a time at all ([`Stamps::not_after`], [`EventTime::is_before`]).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// When Genesys last modified a profile, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Modified(i64);

/// When an event happened, with the precision of its source.
///
/// It has no total order: see [`EventTime::compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventTime {
    millis: i64,
    precision: Precision,
}

/// The precision of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Precision {
    /// Whole seconds, as EventBridge's envelope `time`.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds; a finer time is truncated to milliseconds.
    #[serde(rename = "ms")]
    Millis,
}

/// The stamps of one event; either may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamps {
    /// The `modifyDate` of the body.
    pub modified: Option<Modified>,
    /// The time of the event.
    pub at: Option<EventTime>,
}

impl Stamps {
    /// Removes times after `limit`, because no later event could outlive them; returns whether there was one. An event
    /// whose own time is removed happened when the profile was modified.
    #[must_use]
    pub fn not_after(self, limit: Timestamp) -> (Self, bool) {
        let modified = self.modified.filter(|modified| modified.0 <= limit.as_millis());
        let at = self.at.filter(|at| at.millis <= limit.as_millis()).or(modified.map(EventTime::from_modified));
        let bounded = Self { modified, at };
        (bounded, bounded != self)
    }
}

/// The text is not an RFC 3339 date-time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 date-time such as 2025-03-04T05:06:07.089Z")]
pub struct InvalidTime;

impl Modified {
    /// Creates a stamp from milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

impl FromStr for Modified {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|(millis, _)| Self(millis))
    }
}

impl EventTime {
    /// Creates a stamp from milliseconds since the Unix epoch.
    #[must_use]
    pub const fn new(millis: i64, precision: Precision) -> Self {
        Self { millis, precision }
    }

    /// Creates a stamp from a `modifyDate`, for events that have no other time.
    #[must_use]
    pub const fn from_modified(modified: Modified) -> Self {
        Self::new(modified.0, Precision::Millis)
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.millis
    }

    /// Returns the precision of the time.
    #[must_use]
    pub const fn precision(self) -> Precision {
        self.precision
    }

    /// Returns the same time with a precision of seconds if its milliseconds are zero.
    ///
    /// The audit events of Genesys write `.000` although they know only the second.
    #[must_use]
    pub const fn whole_seconds_if_zero_millis(self) -> Self {
        if self.millis.rem_euclid(1000) == 0 { Self::new(self.millis, Precision::Seconds) } else { self }
    }

    /// Returns whether the event happened before a point in time, by our clock.
    #[must_use]
    pub const fn is_before(self, limit: Timestamp) -> bool {
        self.millis < limit.as_millis()
    }

    /// Compares two times at the coarser of their precisions.
    ///
    /// `Equal` means that the order is unknown, so this is not transitive and not an `Ord`.
    #[must_use]
    pub fn compare(self, other: Self) -> Ordering {
        let unit = match self.precision.min(other.precision) {
            Precision::Seconds => 1000,
            Precision::Millis => 1,
        };
        self.millis.div_euclid(unit).cmp(&other.millis.div_euclid(unit))
    }
}

impl FromStr for EventTime {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|(millis, precision)| Self { millis, precision })
    }
}

/// The most digits of a fraction that the parser reads; more are cut off.
const FRACTION_DIGITS: usize = 9;

/// Returns milliseconds since the Unix epoch, and the precision of the text.
///
/// RFC 3339 section 5.6 allows fractions of any length, and all years up to 9999 at any offset.
fn parse(text: &str) -> Result<(i64, Precision), InvalidTime> {
    let (text, precision) = match text.find(['.', ',']) {
        Some(point) => {
            let (whole, fraction) = text.split_at(point + 1);
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let text = format!("{whole}{}{}", &fraction[..digits.min(FRACTION_DIGITS)], &fraction[digits..]);
            (Cow::Owned(text), Precision::Millis)
        }
        None => (Cow::Borrowed(text), Precision::Seconds),
    };
    let pieces = Pieces::parse(text.as_bytes()).map_err(|_| InvalidTime)?;
    let (Some(time), Some(offset)) = (pieces.time(), pieces.offset()) else { return Err(InvalidTime) };
    let seconds = offset.to_numeric_offset().seconds();
    let since_epoch = pieces.date().to_datetime(time).duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
    let local = since_epoch.as_nanos();
    // Rounding down keeps the order of times before the epoch.
    let millis = (local - i128::from(seconds) * 1_000_000_000).div_euclid(1_000_000);
    i64::try_from(millis).map(|millis| (millis, precision)).map_err(|_| InvalidTime)
}

impl From<Modified> for Timestamp {
    fn from(modified: Modified) -> Self {
        Self::from_millis(modified.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> EventTime {
        text.parse().unwrap()
    }

    #[test]
    fn times_are_compared_at_the_coarser_precision() {
        let second = at("2025-03-04T05:06:07Z");
        assert_eq!(second.precision(), Precision::Seconds);
        assert_eq!(second.compare(at("2025-03-04T05:06:07.999Z")), Ordering::Equal);
        assert_eq!(second.compare(at("2025-03-04T05:06:08.000Z")), Ordering::Less);
        assert_eq!(at("2025-03-04T05:06:07.435Z").compare(at("2025-03-04T05:06:07.436Z")), Ordering::Less);
    }

    #[test]
    fn finer_fractions_are_truncated_to_milliseconds() {
        assert_eq!(at("2025-03-04T05:06:07.0899999Z").as_millis(), 1_741_064_767_089);
        assert_eq!(at("2025-03-04T05:06:07.0899999999Z").as_millis(), 1_741_064_767_089);
        assert_eq!(at(&format!("2025-03-04T07:06:07.{}+02:00", "0".repeat(1_000))).as_millis(), 1_741_064_767_000);
    }

    #[test]
    fn the_last_moments_of_year_9999_are_times() {
        let last = 253_402_300_799_999;
        assert_eq!(at("9999-12-31T23:59:59.999Z").as_millis(), last);
        assert_eq!(at("9999-12-31T23:59:59.999-23:59").as_millis(), last + (23 * 60 + 59) * 60_000);
        assert_eq!(at("0001-01-01T00:00:00+01:00").as_millis(), -62_135_596_800_000 - 3_600_000);
    }

    #[test]
    fn times_after_the_limit_are_removed() {
        let [then, later] = [1_000, 2_000].map(Modified::from_millis);
        let limit = Timestamp::from_millis(1_500);
        let of = |modified, at: Option<Modified>| Stamps { modified, at: at.map(EventTime::from_modified) };
        assert_eq!(of(Some(then), Some(then)).not_after(limit), (of(Some(then), Some(then)), false));
        assert_eq!(of(Some(then), Some(later)).not_after(limit), (of(Some(then), Some(then)), true));
        assert_eq!(of(Some(later), Some(then)).not_after(limit), (of(None, Some(then)), true));
        assert_eq!(of(None, Some(later)).not_after(limit), (Stamps::default(), true));
    }

    #[test]
    fn a_date_without_a_time_is_refused() {
        for text in ["", "2025-03-04", "2025-03-04T05:06:07", "yesterday", "1741064767089"] {
            assert_eq!(text.parse::<EventTime>(), Err(InvalidTime), "{text}");
        }
    }

    proptest! {
        #[test]
        fn format_and_parse_are_inverses(millis in 0i64..4_102_444_800_000) {
            let text = Timestamp::from_millis(millis).to_string();
            prop_assert_eq!(text.parse::<Modified>().unwrap(), Modified::from_millis(millis));
            prop_assert_eq!(at(&text).precision(), Precision::Millis);
        }

        #[test]
        fn comparison_is_antisymmetric(a in -10_000i64..10_000, b in -10_000i64..10_000, fine in any::<bool>()) {
            let precision = if fine { Precision::Millis } else { Precision::Seconds };
            let (a, b) = (EventTime::new(a, precision), EventTime::new(b, Precision::Millis));
            prop_assert_eq!(a.compare(b), b.compare(a).reverse());
        }
    }
}
