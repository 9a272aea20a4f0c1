//! The request of a replay.

use std::time::Duration;

use crate::domain::{Event, TenantId, Timestamp};
use crate::upstream::audits;

/// The default rate, in events per second.
pub const DEFAULT_RATE: u32 = 1_000;

/// The highest rate, in events per second.
pub const MAX_RATE: u32 = 100_000;

/// The rate of a replay that nobody asked for, in events per second: so low that new events do not wait behind it.
const UNASKED_RATE: u32 = 200;

/// Which events are replayed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRequest {
    /// The earliest time of receipt; see `source` for events that came to the journal late.
    pub since: Timestamp,
    /// The end of the period, exclusive.
    pub until: Timestamp,
    /// Where the events are read.
    pub origin: Origin,
    /// The tenant; `None` for all tenants.
    pub tenant: Option<TenantId>,
    /// The maximum number of events per second, from 1 to [`MAX_RATE`].
    pub rate: u32,
    /// Whether to report only what would be replayed.
    pub dry_run: bool,
}

/// Where the events of a replay are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The journal of the queue; times are those of receipt.
    #[default]
    Journal,
    /// The audits of Genesys, of the last 14 days; times are those of the changes.
    Genesys,
}

/// A field of a request is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {expected}")]
pub struct InvalidRequest {
    /// The field.
    pub field: &'static str,
    /// What is expected.
    pub expected: String,
}

impl ReplayRequest {
    /// Parses a request; a time is a duration before `now`, such as `2h`, or an RFC 3339 time.
    ///
    /// # Errors
    ///
    /// A field is invalid.
    pub fn parse(
        origin: Origin,
        since: &str,
        until: Option<&str>,
        tenant: Option<TenantId>,
        rate: Option<u32>,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<Self, InvalidRequest> {
        let invalid = |field, expected: &str| InvalidRequest { field, expected: expected.to_owned() };
        let request = Self {
            since: moment("since", since, now)?,
            until: until.map_or(Ok(now), |until| moment("until", until, now))?,
            origin,
            tenant,
            rate: rate.unwrap_or(DEFAULT_RATE),
            dry_run,
        };
        if request.since >= now {
            return Err(invalid("since", "expected a time in the past"));
        }
        if origin == Origin::Genesys && request.since < now.minus(audits::KEPT) {
            let expected = "expected a time in the last 14 days: Genesys answers no questions about older changes";
            return Err(invalid("since", expected));
        }
        if request.until <= request.since {
            return Err(invalid("until", "expected a time after since"));
        }
        if !(1..=MAX_RATE).contains(&request.rate) {
            return Err(invalid("rate", &format!("expected a number of events a second from 1 to {MAX_RATE}")));
        }
        Ok(request)
    }

    /// Returns the request for the changes of a tenant since a time, from Genesys; what it does not know any more is left out.
    #[must_use]
    pub fn of_changes(tenant: TenantId, since: Timestamp, now: Timestamp) -> Self {
        // A minute less, so that the oldest part is still known when it is asked for.
        let known_since = now.minus(audits::KEPT).plus(Duration::from_secs(60));
        let (origin, tenant) = (Origin::Genesys, Some(tenant));
        Self { since: since.max(known_since), until: now, origin, tenant, rate: UNASKED_RATE, dry_run: false }
    }

    /// Returns whether the request selects an event of its period.
    pub(super) fn selects(&self, event: &Event) -> bool {
        event.received_at < self.until && self.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant)
    }

    /// Returns the share of the period that is before a time, from 0 to 1.
    pub(super) fn fraction(&self, reached: Timestamp) -> f64 {
        let whole = self.until.since(self.since).as_secs_f64();
        (reached.since(self.since).as_secs_f64() / whole).clamp(0.0, 1.0)
    }
}

fn moment(field: &'static str, text: &str, now: Timestamp) -> Result<Timestamp, InvalidRequest> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| i64::try_from(ago.as_millis()).ok());
    let ago = ago.map(|ago| now.as_millis().saturating_sub(ago));
    let time = ago.or_else(|| Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()));
    time.map(Timestamp::from_millis).ok_or_else(|| InvalidRequest {
        field,
        expected: "expected how long ago, such as \"2h\", or a time as in RFC 3339, such as \"2026-03-04T05:12:47Z\""
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_500);

    fn parsed(since: &str, until: Option<&str>) -> Result<(i64, i64), InvalidRequest> {
        let request = ReplayRequest::parse(Origin::Journal, since, until, None, None, false, NOW)?;
        Ok((request.since.as_millis(), request.until.as_millis()))
    }

    #[test]
    fn times_are_durations_ago_or_rfc_3339() {
        let now = NOW.as_millis();
        assert_eq!(parsed("2h", None), Ok((now - 7_200_000, now)));
        assert_eq!(parsed("1day 30m", Some("10s")), Ok((now - 88_200_000, now - 10_000)));
        let time = Ok((1_741_064_400_000, 1_741_064_460_000));
        assert_eq!(parsed("2025-03-04T05:00:00Z", Some("2025-03-04T06:01:00.000+01:00")), time);
    }

    #[test]
    fn genesys_is_asked_about_the_last_14_days_only() {
        let parsed = |since| ReplayRequest::parse(Origin::Genesys, since, None, None, None, false, NOW);
        assert_eq!(parsed("14days").unwrap().origin, Origin::Genesys);
        assert_eq!(parsed("14days 1s").unwrap_err().field, "since");
    }

    #[test]
    fn an_invalid_request_names_the_field() {
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
            assert_eq!(
                ReplayRequest::parse(Origin::Journal, "2h", None, None, Some(rate), false, NOW).unwrap_err().field,
                "rate"
            );
        }
    }
}
