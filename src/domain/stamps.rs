//! The two stamps that Genesys gives an event.
//!
//! `modified` is the body's `modifyDate`: it says how new a profile is and judges fills. `at` is the
//! time of the event itself: it orders events among each other, for tombstones. They come from
//! different clocks, so they are different types and there is no way to compare one with the other,
//! nor either with our own clock (DESIGN section 2, rule 5).

use std::cmp::Ordering;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// When Genesys last modified a profile, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Modified(i64);

/// When an event happened, with the precision in which it was told.
///
/// It has no total order: see [`At::compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    millis: i64,
    precision: Precision,
}

/// How finely a time was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Precision {
    /// Whole seconds, as EventBridge's envelope `time`.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds; anything finer is cut to this.
    #[serde(rename = "ms")]
    Millis,
}

/// The stamps of one event; either may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamps {
    /// The body's `modifyDate`.
    pub modified: Option<Modified>,
    /// The time of the event.
    pub at: Option<At>,
}

/// The text is not an RFC 3339 date-time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 date-time such as 2025-03-04T05:06:07.089Z")]
pub struct InvalidTime;

impl Modified {
    /// Makes a stamp of milliseconds since the Unix epoch.
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

impl At {
    /// Makes a stamp of milliseconds since the Unix epoch, told in the given precision.
    #[must_use]
    pub const fn new(millis: i64, precision: Precision) -> Self {
        Self { millis, precision }
    }

    /// Makes a stamp in milliseconds of a profile's `modifyDate`, for events that tell no other time.
    #[must_use]
    pub const fn from_modified(modified: Modified) -> Self {
        Self::new(modified.0, Precision::Millis)
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.millis
    }

    /// Returns the precision in which the time was told.
    #[must_use]
    pub const fn precision(self) -> Precision {
        self.precision
    }

    /// Returns the same time told in whole seconds if its milliseconds are zero.
    ///
    /// Genesys' audit events write `.000` for times that they know to the second.
    #[must_use]
    pub const fn whole_seconds_if_zero_millis(self) -> Self {
        if self.millis.rem_euclid(1000) == 0 { Self::new(self.millis, Precision::Seconds) } else { self }
    }

    /// Compares two times at the coarser of their precisions.
    ///
    /// `Equal` means that the order cannot be told, so this is not transitive and not an `Ord`.
    #[must_use]
    pub fn compare(self, other: Self) -> Ordering {
        let unit = match self.precision.min(other.precision) {
            Precision::Seconds => 1000,
            Precision::Millis => 1,
        };
        self.millis.div_euclid(unit).cmp(&other.millis.div_euclid(unit))
    }
}

impl FromStr for At {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|(millis, precision)| Self { millis, precision })
    }
}

/// Returns milliseconds since the Unix epoch, and how finely the text tells the time.
fn parse(text: &str) -> Result<(i64, Precision), InvalidTime> {
    let time: jiff::Timestamp = text.parse().map_err(|_| InvalidTime)?;
    let precision = if text.contains(['.', ',']) { Precision::Millis } else { Precision::Seconds };
    // Towards the past, so that a time before the epoch keeps its order when it is cut.
    let millis = time.as_nanosecond().div_euclid(1_000_000);
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

    fn at(text: &str) -> At {
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
    fn finer_fractions_are_cut_to_milliseconds() {
        assert_eq!(at("2025-03-04T05:06:07.0899999Z").as_millis(), 1_741_064_767_089);
    }

    #[test]
    fn a_date_without_a_time_is_refused() {
        for text in ["", "2025-03-04", "2025-03-04T05:06:07", "yesterday", "1741064767089"] {
            assert_eq!(text.parse::<At>(), Err(InvalidTime), "{text}");
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
            let (a, b) = (At::new(a, precision), At::new(b, Precision::Millis));
            prop_assert_eq!(a.compare(b), b.compare(a).reverse());
        }
    }
}
