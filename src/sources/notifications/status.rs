//! What operators see of the notifications of a tenant: the lanes whose events are missed, since when, and why.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::Gauge;
use parking_lot::Mutex;

use crate::domain::Timestamp;

/// The state of all lanes of one tenant.
#[derive(Debug)]
pub(super) struct Status {
    troubles: Mutex<BTreeMap<usize, Trouble>>,
    up: Gauge,
    watched: Gauge,
    gap: Gauge,
}

#[derive(Debug)]
struct Trouble {
    since: Timestamp,
    reason: String,
}

impl Status {
    /// Creates the state without a trouble.
    pub(super) fn new(up: Gauge, watched: Gauge, gap: Gauge) -> Self {
        up.set(1.0);
        watched.set(0.0);
        gap.set(0.0);
        Self { troubles: Mutex::default(), up, watched, gap }
    }

    /// Stores that a lane misses events, at least from now on; returns whether the reason is new.
    pub(super) fn fails(&self, lane: usize, reason: &str, now: Timestamp) -> bool {
        let mut troubles = self.troubles.lock();
        let trouble = troubles.entry(lane).or_insert_with(|| Trouble { since: now, reason: String::new() });
        let is_new = trouble.reason != reason;
        reason.clone_into(&mut trouble.reason);
        is_new
    }

    /// Stores that a lane receives all events; returns since when it had not.
    pub(super) fn works(&self, lane: usize) -> Option<Timestamp> {
        self.troubles.lock().remove(&lane).map(|trouble| trouble.since)
    }

    /// Shows the number of watched contacts and the age of the oldest gap; returns the oldest trouble.
    pub(super) fn refresh(&self, watched: usize, gap: Duration) -> Option<String> {
        self.gap.set(gap.as_secs_f64());
        let troubles = self.troubles.lock();
        self.watched.set(watched as f64);
        self.up.set(f64::from(u8::from(troubles.is_empty())));
        let Trouble { since, reason } = troubles.values().min_by_key(|trouble| trouble.since)?;
        Some(format!("changes are not received since {since}: {reason}; {watched} customers are watched"))
    }
}
