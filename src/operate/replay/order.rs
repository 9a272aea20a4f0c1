//! What is to be replayed, as an operator says it.

use crate::domain::{Event, TenantId, Timestamp};

/// How many events a second are replayed unless something else is asked for.
pub const DEFAULT_RATE: u32 = 1_000;

/// The most that may be asked for.
pub const MAX_RATE: u32 = 100_000;

/// What is to be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// From which time of receipt on.
    pub since: Timestamp,
    /// Up to which, that one left out.
    pub until: Timestamp,
    /// Of which tenant; `None`: of all.
    pub tenant: Option<TenantId>,
    /// How many events a second at most, from 1 to [`MAX_RATE`].
    pub rate: u32,
    /// Only say what it would be.
    pub dry_run: bool,
}

/// What is wrong with an order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {expected}")]
pub struct Mistake {
    /// Where.
    pub field: &'static str,
    /// What was expected.
    pub expected: String,
}

impl Order {
    /// Makes an order of what somebody wrote: times are a duration before `now`, as `2h`, or RFC 3339.
    ///
    /// # Errors
    ///
    /// What is wrong, by the name of its field.
    pub fn parse(
        since: &str,
        until: Option<&str>,
        tenant: Option<TenantId>,
        rate: Option<u32>,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<Self, Mistake> {
        let mistake = |field, expected: &str| Mistake { field, expected: expected.to_owned() };
        let order = Self {
            since: moment("since", since, now)?,
            until: until.map_or(Ok(now), |until| moment("until", until, now))?,
            tenant,
            rate: rate.unwrap_or(DEFAULT_RATE),
            dry_run,
        };
        if order.since >= now {
            return Err(mistake("since", "expected a time that has passed"));
        }
        if order.until <= order.since {
            return Err(mistake("until", "expected a time after since"));
        }
        if !(1..=MAX_RATE).contains(&order.rate) {
            return Err(mistake("rate", &format!("expected a number of events a second from 1 to {MAX_RATE}")));
        }
        Ok(order)
    }

    /// Tells whether an event is meant.
    pub(super) fn wants(&self, event: &Event) -> bool {
        (self.since..self.until).contains(&event.received_at)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant)
    }

    /// Returns the part of the time that lies before a moment.
    pub(super) fn fraction(&self, reached: Timestamp) -> f64 {
        let whole = self.until.since(self.since).as_secs_f64();
        (reached.since(self.since).as_secs_f64() / whole).clamp(0.0, 1.0)
    }
}

fn moment(field: &'static str, text: &str, now: Timestamp) -> Result<Timestamp, Mistake> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| i64::try_from(ago.as_millis()).ok());
    let ago = ago.map(|ago| now.as_millis().saturating_sub(ago));
    let time = ago.or_else(|| Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()));
    time.map(Timestamp::from_millis).ok_or_else(|| Mistake {
        field,
        expected: "expected how long ago, such as \"2h\", or a time as in RFC 3339, such as \"2026-03-04T05:12:47Z\""
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_500);

    fn parsed(since: &str, until: Option<&str>) -> Result<(i64, i64), Mistake> {
        let order = Order::parse(since, until, None, None, false, NOW)?;
        Ok((order.since.as_millis(), order.until.as_millis()))
    }

    #[test]
    fn times_are_how_long_ago_or_as_in_rfc_3339() {
        let now = NOW.as_millis();
        assert_eq!(parsed("2h", None), Ok((now - 7_200_000, now)));
        assert_eq!(parsed("1day 30m", Some("10s")), Ok((now - 88_200_000, now - 10_000)));
        let time = Ok((1_741_064_400_000, 1_741_064_460_000));
        assert_eq!(parsed("2025-03-04T05:00:00Z", Some("2025-03-04T06:01:00.000+01:00")), time);
    }

    #[test]
    fn a_mistake_names_its_field() {
        for (since, until, field) in [
            ("yesterday", None, "since"),
            ("", None, "since"),
            ("2025-03-04", None, "since"),
            ("0s", None, "since"),
            ("2099-01-01T00:00:00Z", None, "since"),
            ("2h", Some("3h"), "until"),
            ("2h", Some("soon"), "until"),
        ] {
            assert_eq!(parsed(since, until).unwrap_err().field, field, "{since} {until:?}");
        }
        for rate in [0, MAX_RATE + 1] {
            assert_eq!(Order::parse("2h", None, None, Some(rate), false, NOW).unwrap_err().field, "rate");
        }
    }
}
