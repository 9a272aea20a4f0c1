//! Counts: reads of each contact, reads of each client in a minute, and events by state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::domain::{CustomerId, Timestamp};

use super::SandboxState;
use super::events::EventCounts;
use super::oauth::ClientKind;

/// The limit of separately counted contacts; the total includes all.
const MAX_COUNTED: usize = 100_000;
const MINUTE: Duration = Duration::from_secs(60);

/// The counts of profile reads since start, by requested id. The total counts requests, so a bulk request is one.
#[derive(Default)]
pub(super) struct Calls(Mutex<CallCounts>);

#[derive(Default)]
struct CallCounts {
    total: u64,
    bulk: u64,
    searches: u64,
    contacts: HashMap<CustomerId, u64>,
}

impl Calls {
    /// Counts one search.
    pub(super) fn count_search(&self) {
        let mut counts = self.0.lock();
        counts.total += 1;
        counts.searches += 1;
    }

    /// Counts one read.
    pub(super) fn count(&self, customer: &CustomerId) {
        let mut counts = self.0.lock();
        counts.total += 1;
        counts.count(customer);
    }

    /// Counts one read of many contacts: one call.
    pub(super) fn count_bulk(&self, customers: &[CustomerId]) {
        let mut counts = self.0.lock();
        counts.total += 1;
        counts.bulk += 1;
        customers.iter().for_each(|customer| counts.count(customer));
    }
}

impl CallCounts {
    fn count(&mut self, customer: &CustomerId) {
        if let Some(count) = self.contacts.get_mut(customer) {
            *count += 1;
        } else if self.contacts.len() < MAX_COUNTED {
            self.contacts.insert(customer.clone(), 1);
        }
    }
}

/// Answers `GET /sandbox/calls`.
pub(super) async fn show(State(sandbox): State<Arc<SandboxState>>) -> Json<Value> {
    let counts = sandbox.calls.0.lock();
    let contacts: serde_json::Map<_, _> =
        counts.contacts.iter().map(|(customer, count)| (customer.expose().to_owned(), Value::from(*count))).collect();
    Json(json!({
        "contacts": contacts,
        "total": counts.total,
        "bulk": counts.bulk,
        "searches": counts.searches,
        "tokens": sandbox.tokens.count(),
        "audits": sandbox.audits.queries(),
    }))
}

/// Answers `GET /sandbox/events`.
pub(super) async fn events(State(sandbox): State<Arc<SandboxState>>) -> Json<Value> {
    let EventCounts { announced, acknowledged, waiting } = sandbox.events.counts();
    Json(json!({ "announced": announced, "acknowledged": acknowledged, "waiting": waiting }))
}

/// The reads of each client in the current minute; a minute starts with its first read.
#[derive(Default)]
pub(super) struct RateLimit(Mutex<[Option<MinuteWindow>; ClientKind::ALL.len()]>);

#[derive(Clone, Copy)]
struct MinuteWindow {
    began: Timestamp,
    reads: u32,
}

impl RateLimit {
    /// Counts one read of a client, or returns how long the client must wait if `per_minute` is reached.
    pub(super) fn take(&self, client: ClientKind, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        let mut minutes = self.0.lock();
        let minute = match &mut minutes[client as usize] {
            Some(minute) if now.since(minute.began) < MINUTE => minute,
            over => over.insert(MinuteWindow { began: now, reads: 0 }),
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
    fn the_rate_limit_is_per_client_and_per_minute() {
        let (limit, start) = (RateLimit::default(), Timestamp::from_millis(1_000_000));
        assert_eq!(limit.take(ClientKind::Sandbox, 2, start), Ok(()));
        assert_eq!(limit.take(ClientKind::Sandbox, 2, start), Ok(()));
        let later = start.plus(Duration::from_secs(20));
        assert_eq!(limit.take(ClientKind::Sandbox, 2, later), Err(Duration::from_secs(40)));
        assert_eq!(limit.take(ClientKind::Editor, 2, later), Ok(()));
        assert_eq!(limit.take(ClientKind::Sandbox, 2, start.plus(MINUTE)), Ok(()));
    }
}
