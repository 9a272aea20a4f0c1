//! The freshness of a record: a pure function of the record and the time.

use std::time::Duration;

use rand::RngExt;

use crate::domain::Timestamp;
use crate::store::{Generations, Record};

/// The freshness of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Within its TTL: served.
    Fresh {
        /// The time until it is stale.
        remaining: Duration,
    },
    /// Past its TTL but within its grace: served only if no fresh answer is available in time.
    Stale {
        /// For how long it has been stale.
        since: Duration,
    },
    /// Past its grace: never served.
    Expired,
}

/// Returns the freshness of a record at the time `now`. One from before a hard clear of its tenant is expired.
#[must_use]
pub fn judge(record: &Record, cleared: Generations, now: Timestamp) -> Freshness {
    if record.generation < cleared.hard {
        return Freshness::Expired;
    }
    let age = now.since(record.fetched_at);
    if let Some(remaining) = record.ttl.checked_sub(age).filter(|remaining| !remaining.is_zero()) {
        Freshness::Fresh { remaining }
    } else if age < record.lifetime() {
        Freshness::Stale { since: age.saturating_sub(record.ttl) }
    } else {
        Freshness::Expired
    }
}

/// Returns whether a fresh record should be refreshed before it expires, so that no lookup waits when it expires.
/// Each lookup decides by itself; the probability grows as the expiry comes closer, and with the cost of the fetch.
///
/// `draw` is uniform in (0, 1]. This is `XFetch` with β = 1: Vattani, Chierichetti, Lowenstein, "Optimal
/// Probabilistic Cache Stampede Prevention" (VLDB 2015).
#[must_use]
pub fn is_due(fetch_cost: Duration, remaining: Duration, draw: f64) -> bool {
    fetch_cost.as_secs_f64() * -draw.ln() >= remaining.as_secs_f64()
}

/// Calls [`is_due`] with a random draw; skips the draw if its result is almost certainly `false`.
#[must_use]
pub fn is_due_by_chance(record: &Record, remaining: Duration) -> bool {
    // Otherwise the draw would have to be below e^-20, one in 500 million.
    record.fetch_cost.saturating_mul(20) > remaining
        && is_due(record.fetch_cost, remaining, 1.0 - rand::rng().random_range(0.0..1.0))
}

/// Shortens a TTL by a random share of at most `jitter`, so that entries that were filled together do not expire
/// together.
#[must_use]
pub fn jittered(ttl: Duration, jitter: f64) -> Duration {
    if jitter <= 0.0 {
        return ttl;
    }
    ttl.mul_f64(1.0 - rand::rng().random_range(0.0..=jitter.min(1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Identity;
    use crate::store::{Content, Token};

    fn record(ttl: u64, grace: u64) -> Record {
        Record {
            identity: Identity::new("t".parse().unwrap(), [0; 32]),
            token: Token::draw(),
            content: Content::Negative,
            fetched_at: Timestamp::from_millis(1_000),
            fetch_cost: Duration::ZERO,
            ttl: Duration::from_millis(ttl),
            grace: Duration::from_millis(grace),
            settled: true,
            generation: 7,
        }
    }

    #[test]
    fn a_record_is_fresh_then_stale_then_expired() {
        let record = record(300, 100);
        let at = |millis: i64| judge(&record, Generations::default(), Timestamp::from_millis(1_000 + millis));
        assert_eq!(at(0), Freshness::Fresh { remaining: Duration::from_millis(300) });
        assert_eq!(at(299), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(at(300), Freshness::Stale { since: Duration::ZERO });
        assert_eq!(at(399), Freshness::Stale { since: Duration::from_millis(99) });
        assert_eq!(at(400), Freshness::Expired);
    }

    #[test]
    fn a_record_from_the_future_has_its_whole_ttl() {
        let freshness = judge(&record(300, 0), Generations::default(), Timestamp::from_millis(0));
        assert_eq!(freshness, Freshness::Fresh { remaining: Duration::from_millis(300) });
    }

    #[test]
    fn only_a_record_from_before_a_hard_clear_is_expired() {
        let at = |soft, hard| judge(&record(300, 0), Generations { soft, hard }, Timestamp::from_millis(1_000));
        assert_eq!(at(8, 8), Freshness::Expired);
        for (soft, hard) in [(8, 7), (8, 0), (7, 7)] {
            assert_eq!(at(soft, hard), Freshness::Fresh { remaining: Duration::from_millis(300) });
        }
    }

    #[test]
    fn refresh_probability_grows_near_expiry_and_with_fetch_cost() {
        let millis = Duration::from_millis;
        // The share of draws that are due is e^(-remaining / cost).
        let half = 0.5_f64;
        assert!(is_due(millis(100), millis(69), half));
        assert!(!is_due(millis(100), millis(70), half));
        assert!(is_due(millis(200), millis(138), half));
        assert!(is_due(millis(100), Duration::ZERO, 1.0));
        assert!(!is_due(Duration::ZERO, millis(1), 1e-9));
    }

    #[test]
    fn the_draw_is_skipped_only_if_it_is_almost_certainly_false() {
        let mut record = record(300_000, 0);
        record.fetch_cost = Duration::from_millis(150);
        assert!(!is_due_by_chance(&record, Duration::from_secs(3)));
        assert!((0..10_000).any(|_| is_due_by_chance(&record, Duration::from_millis(300))));
        assert!(is_due_by_chance(&record, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn jitter_shortens_a_ttl_by_at_most_its_share(secs in 1u64..100_000, jitter in 0.0f64..0.5) {
            let ttl = Duration::from_secs(secs);
            let got = jittered(ttl, jitter);
            prop_assert!(got <= ttl);
            prop_assert!(got >= ttl.mul_f64(1.0 - jitter).saturating_sub(Duration::from_nanos(10)));
        }

        #[test]
        fn a_record_never_becomes_fresher(ttl in 0u64..1_000, grace in 0u64..1_000, a in 0i64..3_000, b in 0i64..3_000) {
            let (record, none) = (record(ttl, grace), Generations::default());
            let rank = |millis: i64| match judge(&record, none, Timestamp::from_millis(1_000 + millis)) {
                Freshness::Fresh { .. } => 0,
                Freshness::Stale { .. } => 1,
                Freshness::Expired => 2,
            };
            prop_assert!(rank(a.min(b)) <= rank(a.max(b)));
        }
    }
}
