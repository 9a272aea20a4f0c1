//! Counts: how many reads there were of which contact, how many one client may make in a minute, and
//! how many events came how far.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::domain::{CustomerId, Timestamp};

use super::oauth::Role;

/// How many contacts are counted one by one; the total stays exact beyond that.
const MAX_COUNTED: usize = 100_000;
const MINUTE: Duration = Duration::from_secs(60);

/// The counts of profile reads since start, by the id that was asked for.
#[derive(Default)]
pub(super) struct Calls(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    total: u64,
    contacts: HashMap<CustomerId, u64>,
}

impl Calls {
    /// Counts one read.
    pub(super) fn count(&self, customer: &CustomerId) {
        let mut counts = self.0.lock();
        counts.total += 1;
        if let Some(count) = counts.contacts.get_mut(customer) {
            *count += 1;
        } else if counts.contacts.len() < MAX_COUNTED {
            counts.contacts.insert(customer.clone(), 1);
        }
    }
}

/// Answers `GET /sandbox/calls`.
pub(super) async fn show(State(genesys): State<std::sync::Arc<super::Genesys>>) -> Json<Value> {
    let counts = genesys.calls.0.lock();
    let contacts: serde_json::Map<_, _> =
        counts.contacts.iter().map(|(customer, count)| (customer.expose().to_owned(), Value::from(*count))).collect();
    Json(json!({ "contacts": contacts, "total": counts.total, "tokens": genesys.tokens.count() }))
}

/// Answers `GET /sandbox/events`.
pub(super) async fn events(State(genesys): State<std::sync::Arc<super::Genesys>>) -> Json<Value> {
    let tally = genesys.events.tally();
    let (announced, acknowledged, waiting) = (tally.announced, tally.acknowledged, tally.waiting);
    Json(json!({ "announced": announced, "acknowledged": acknowledged, "waiting": waiting }))
}

/// What each client has read in the present minute; a minute begins with the first read in it.
#[derive(Default)]
pub(super) struct RateLimit(Mutex<[Option<Minute>; Role::ALL.len()]>);

#[derive(Clone, Copy)]
struct Minute {
    began: Timestamp,
    reads: u32,
}

impl RateLimit {
    /// Takes one read of this client's `per_minute`; answers how long it has to wait if there is
    /// none left.
    pub(super) fn take(&self, role: Role, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        let mut minutes = self.0.lock();
        let minute = match &mut minutes[role as usize] {
            Some(minute) if now.since(minute.began) < MINUTE => minute,
            over => over.insert(Minute { began: now, reads: 0 }),
        };
        if minute.reads < per_minute {
            minute.reads += 1;
            Ok(())
        } else {
            Err(MINUTE.saturating_sub(now.since(minute.began)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_minute_refuses_until_it_is_over_and_for_its_client_only() {
        let (limit, start) = (RateLimit::default(), Timestamp::from_millis(1_000_000));
        assert_eq!(limit.take(Role::Sandbox, 2, start), Ok(()));
        assert_eq!(limit.take(Role::Sandbox, 2, start), Ok(()));
        let later = start.plus(Duration::from_secs(20));
        assert_eq!(limit.take(Role::Sandbox, 2, later), Err(Duration::from_secs(40)));
        assert_eq!(limit.take(Role::Editor, 2, later), Ok(()));
        assert_eq!(limit.take(Role::Sandbox, 2, start.plus(MINUTE)), Ok(()));
    }
}
