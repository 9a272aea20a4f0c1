//! Operators' commands, as the service carries them out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::SharedClock;
use crate::domain::{CustomerId, Digest, Event, EventId, KeyHasher, Kind, Shape, Stamps, TenantId};
use crate::queue::outbox::Outbox;
use crate::queue::{self, DeadLetters, MAX_SEARCHED, Publisher};
use crate::store::fence::Newest;
use crate::store::{self, ClearMode, Content, Entry, Inspect, Inspection};
use crate::upstream;

/// The commands and the components that they use.
#[derive(Debug)]
pub struct Actions {
    /// The configured tenants.
    pub tenants: HashSet<TenantId>,
    /// The key schemes: the current one first, then the previous one during a change.
    pub hashers: Vec<KeyHasher>,
    /// The store.
    pub store: Arc<dyn Inspect>,
    /// Publishes events; `None` in a process without a role that uses the queue.
    pub publisher: Option<Arc<dyn Publisher>>,
    /// The outbox, if this process has one.
    pub outbox: Option<Arc<Outbox>>,
    /// The dead letters; `None` in a process without a role that uses the queue.
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
    #[error(
        "this process only answers lookups and has no queue: send the command to a process with the role ingest or consumer"
    )]
    NoQueue,
    /// The dead letter does not exist, or is not among the oldest ones, which are searched.
    #[error("id: no such dead letter among the oldest {MAX_SEARCHED}")]
    UnknownDeadLetter,
    /// A dead letter that holds no event cannot be put back.
    #[error("id: this dead letter holds no event that could be put back, only its length and hash")]
    NoEvent,
    /// The queue keeps no journal.
    #[error("this queue keeps no journal: see queue.embedded.journal_max_bytes and journal_retention")]
    NoJournal,
    /// This process has no outbox.
    #[error("this process has no outbox: it needs queue.outbox.enabled and the role ingest")]
    NoOutbox,
    /// Another replay is in progress.
    #[error("this process runs another replay: wait for its end, or stop it")]
    Busy,
    /// No tenant that is to be replayed has a Genesys in this process.
    #[error(
        "this process knows no Genesys of the tenant: send the command to a process with the role ingest or consumer, and [tenant.upstream]"
    )]
    NoGenesys,
    /// Genesys does not answer about its audits.
    #[error("tenant {tenant}: {}", explained(.error))]
    Genesys {
        /// The tenant.
        tenant: TenantId,
        /// Why there is no answer.
        error: upstream::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] queue::Error),
}

/// Returns why Genesys does not answer about its audits, and what to do.
fn explained(error: &upstream::Error) -> String {
    match error {
        upstream::Error::Denied { status: 403 } => {
            "genesys refuses its audits: the role of the OAuth client needs the permission audits:audit:view".to_owned()
        }
        upstream::Error::Privileges { reason } => format!("{error}: {reason}"),
        upstream::Error::Unusable { .. } => {
            format!("{error}; `profile-edge doctor` says whether the audits cover external contacts")
        }
        upstream::Error::Denied { .. }
        | upstream::Error::Throttled { .. }
        | upstream::Error::BudgetSpent { .. }
        | upstream::Error::BreakerOpen { .. }
        | upstream::Error::Failed { .. }
        | upstream::Error::Unreachable(_)
        | upstream::Error::Timeout(_) => error.to_string(),
    }
}

impl Actions {
    /// Returns the state of a customer's entry, never its contents; during a change of `[keys]`, also the state of the entry
    /// under the previous key.
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

    /// Publishes an event about a customer, as if Genesys had sent it; with `force` it also removes a tombstone.
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
            identifiers: Vec::new(),
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
        tracing::info!(%tenant, event = %id, force, "published an operator's invalidation");
        Ok(id)
    }

    /// Marks all records of a tenant as due for refresh, or as missing; every process obeys within a second.
    ///
    /// # Errors
    ///
    /// Unknown tenant, or the store failed.
    pub async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.hasher(tenant)?;
        self.store.clear(tenant, mode).await?;
        tracing::info!(%tenant, ?mode, "cleared the records of a tenant");
        Ok(())
    }

    /// Returns the digest of a customer; `None` if the tenant is not configured.
    #[must_use]
    pub fn digest(&self, tenant: &TenantId, customer: &CustomerId) -> Option<Digest> {
        self.hasher(tenant).ok().map(|hasher| hasher.identify(tenant, customer).digest())
    }

    /// Returns whether a tenant is configured.
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
    // Nothing here is known more precisely than to the millisecond.
    (u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) as f64 / 1000.0).into()
}

fn kind(entry: Option<&Entry>) -> &'static str {
    match entry {
        None => "absent",
        Some(Entry::Record(record)) => match record.content {
            Content::Found(_) => "profile",
            Content::Negative => "negative",
            Content::Pointer(_) | Content::IdentifierPointer(_) => "pointer",
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
