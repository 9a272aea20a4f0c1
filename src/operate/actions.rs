//! What an operator's command does inside the service.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::SharedClock;
use crate::domain::{CustomerId, Digest, Event, EventId, KeyHasher, Kind, Shape, Stamps, TenantId};
use crate::queue::{self, DeadLetters, MAX_SEARCHED, Publisher};
use crate::store::fence::Newest;
use crate::store::{self, Content, Entry, Inspect, Inspection};

/// The commands, with what they work on.
#[derive(Debug)]
pub struct Actions {
    /// The configured tenants.
    pub tenants: HashSet<TenantId>,
    /// How customers become keys: the present scheme first, then what it replaces.
    pub hashers: Vec<KeyHasher>,
    /// The store.
    pub store: Arc<dyn Inspect>,
    /// Where events are published; `None` in a process without the roles that use the queue.
    pub publisher: Option<Arc<dyn Publisher>>,
    /// What could not be applied; `None` likewise.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
    /// The wall clock.
    pub clock: SharedClock,
}

/// A command could not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The tenant is not configured.
    #[error("tenantId: unknown tenant")]
    UnknownTenant,
    /// This process has no queue.
    #[error("this process only answers lookups and has no queue: ask one with the role ingest or consumer")]
    NoQueue,
    /// There is no such dead letter, or it is not among the oldest that are searched.
    #[error("id: no such dead letter among the oldest {MAX_SEARCHED}")]
    UnknownDeadLetter,
    /// A dead letter that holds no event cannot be put back.
    #[error("id: this dead letter holds no event that could be put back, only what is told of it")]
    NoEvent,
    /// The queue keeps no journal.
    #[error("this queue keeps no journal: see queue.embedded.journal_max_bytes and journal_retention")]
    NoJournal,
    /// One replay at a time.
    #[error("this process carries out another replay: wait for its end, or stop it")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] queue::Error),
}

impl Actions {
    /// Tells the state of a customer's key, and of its other one while `[keys]` is changed: never their contents.
    ///
    /// # Errors
    ///
    /// Unknown tenant, or the store failed.
    pub async fn inspect(&self, tenant: &TenantId, customer: &CustomerId) -> Result<Value, Error> {
        let mut state = self.inspect_under(self.hasher(tenant)?, tenant, customer).await?;
        if let Some(previous) = self.hashers.get(1) {
            state["previous"] = self.inspect_under(previous, tenant, customer).await?;
        }
        Ok(state)
    }

    async fn inspect_under(&self, by: &KeyHasher, tenant: &TenantId, customer: &CustomerId) -> Result<Value, Error> {
        let key = by.identify(tenant, customer).key();
        let found = self.store.inspect(&key).await?;
        Ok(self.describe(key.as_str(), &found))
    }

    /// Publishes an event about a customer, as if Genesys had sent it; with `force` it removes a
    /// tombstone too.
    ///
    /// # Errors
    ///
    /// Unknown tenant, or the event could not be made durable.
    pub async fn invalidate(&self, tenant: &TenantId, customer: &CustomerId, force: bool) -> Result<EventId, Error> {
        self.hasher(tenant)?;
        let mut keys: Vec<Digest> =
            self.hashers.iter().map(|hasher| hasher.identify(tenant, customer).digest()).collect();
        keys.dedup();
        let id = EventId::fresh();
        let mut event = [Event {
            identity: Digest::from_bytes(rand::random()),
            id: id.clone(),
            tenant: tenant.clone(),
            keys,
            kind: Kind::Updated,
            stamps: Stamps::default(),
            received_at: self.clock.now(),
            shape: Shape::Operator,
            traceparent: None,
            force,
            again: None,
        }];
        let publisher = self.publisher.as_ref().ok_or(Error::NoQueue)?;
        queue::traced::publish(publisher.as_ref(), &mut event).await?;
        tracing::info!(%tenant, event = %id, force, "an operator's invalidation was queued");
        Ok(id)
    }

    /// Returns the digest by which a customer is known; `None` where the tenant is not.
    #[must_use]
    pub fn digest(&self, tenant: &TenantId, customer: &CustomerId) -> Option<Digest> {
        self.hasher(tenant).ok().map(|hasher| hasher.identify(tenant, customer).digest())
    }

    /// Tells whether a tenant is configured.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }

    fn hasher(&self, tenant: &TenantId) -> Result<&KeyHasher, Error> {
        self.hashers.first().filter(|_| self.knows(tenant)).ok_or(Error::UnknownTenant)
    }

    fn describe(&self, key: &str, found: &Inspection) -> Value {
        let mut state = json!({ "key": key, "kind": kind(found.entry.as_ref()) });
        if let Some(remaining) = found.remaining {
            state["remaining_seconds"] = seconds(remaining);
        }
        match &found.entry {
            Some(Entry::Record(record)) => {
                let age = self.clock.now().since(record.fetched_at);
                state["age_seconds"] = seconds(age);
                state["fresh_for_seconds"] = seconds(record.ttl.saturating_sub(age));
                state["settled"] = record.settled.into();
                state["fetch_cost_seconds"] = seconds(record.fetch_cost);
            }
            Some(Entry::Tombstone(tombstone)) => {
                state["age_seconds"] = seconds(self.clock.now().since(tombstone.written_at));
                state["deleted_at_ms"] = tombstone.at.map(|at| at.as_millis()).into();
            }
            Some(Entry::Leased(_) | Entry::Corrupt(_)) | None => {}
        }
        if let Some(fence) = &found.fence {
            state["fence"] = json!({
                "modified_ms": fence.modified.map(|modified| modified.as_millis()),
                "at_ms": fence.at.map(|at| at.as_millis()),
                "newest": newest(fence.newest),
                "doubt": fence.doubt || fence.unstamped,
                "raised_seconds_ago": seconds(self.clock.now().since(fence.raised)),
            });
        }
        if let Some((_, remaining)) = found.lock {
            state["refresh"] = json!({ "remaining_seconds": seconds(remaining) });
        }
        state
    }
}

fn seconds(duration: Duration) -> Value {
    // Milliseconds are as fine as anything here is known.
    (u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) as f64 / 1000.0).into()
}

fn kind(entry: Option<&Entry>) -> &'static str {
    match entry {
        None => "absent",
        Some(Entry::Record(record)) => match record.content {
            Content::Found(_) => "profile",
            Content::Negative => "negative",
            Content::Pointer(_) => "pointer",
            Content::Sealed(_) => "sealed",
        },
        Some(Entry::Tombstone(_)) => "tombstone",
        Some(Entry::Leased(_)) => "lease",
        Some(Entry::Corrupt(_)) => "corrupt",
    }
}

fn newest(newest: Newest) -> &'static str {
    match newest {
        Newest::Update => "update",
        Newest::Creation => "creation",
        Newest::Deletion => "deletion",
        Newest::Contested => "contested",
    }
}
