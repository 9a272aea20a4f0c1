//! The upstream port: Genesys, the source of every profile.
//!
//! A fetch returns what Genesys knows *now*, never a cached answer. Everything that protects Genesys from overload
//! and misuse is behind this port, for each tenant: the token and its privileges, the limit of requests in flight, the
//! budget per minute, the circuit breaker and the retries. Callers see only an [`Error`], by which they decide.

mod admission;
pub mod agents;
mod answer;
pub mod audit_reader;
pub mod audits;
mod breaker;
mod breaker_gauge;
mod budget;
mod bulk;
mod endpoints;
mod error;
mod exchange;
mod expand;
mod genesys;
mod guard;
mod http_client;
pub mod notifications;
pub mod open;
mod privilege_gate;
pub mod privileges;
mod search;
pub mod survey;
pub mod tenants;
mod times;
mod token;
mod tokens;
mod traced;
mod transport;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, Profile, TenantId};

pub use error::Error;
pub use expand::{Expand, InvalidExpand};
pub use search::{InvalidSearch, Search, SearchQuery};
pub use times::FetchTimes;
pub use transport::{TransportFailure, TransportPhase};

/// The answers for several customers, in the order of the request.
pub type FetchedMany = Vec<Result<Fetched, Error>>;

/// Fetches profiles.
#[async_trait]
pub trait Upstream: Debug + Send + Sync {
    /// Fetches one profile for a requester, whose share of the budget is spent. Returns at `deadline` or after `upstream.timeout`, whichever is sooner.
    ///
    /// An absent customer is an answer, not an error. A fetch can be repeated safely; what is worth a retry has
    /// already been retried.
    async fn fetch(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error>;

    /// Fetches one profile with expanded fields, and is otherwise like [`fetch`](Self::fetch). The body differs from
    /// that of `fetch`, so it must not be filled into the store.
    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error>;

    /// Fetches the profiles of at most 100 customers with one request, which spends the budget of one; otherwise like
    /// [`fetch`](Self::fetch). Each customer has an answer of its own, in the order of `customers`.
    ///
    /// Where the configured path of a profile is not that of Genesys, each customer is fetched alone, because Genesys' bulk
    /// request may return other bodies.
    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error>;

    /// Asks for contacts by something else than their id, and is otherwise like [`fetch`](Self::fetch). Only the answer to
    /// [`Search::Identifier`] is a profile.
    ///
    /// Where the configured path of a profile is not that of Genesys, the customer of an identifier is then fetched, with a
    /// request of its own, so that the body is that of [`fetch`](Self::fetch).
    async fn search(
        &self,
        tenant: &TenantId,
        search: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error>;
}

/// Who needs a fetch. The budget of a tenant is shared between its requesters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Requester {
    /// A lookup of this caller, by its configured name.
    Caller(Arc<str>),
    /// A lookup of this caller that goes past the store, which does not answer.
    Bypass(Arc<str>),
    /// A prefetch for this caller, which no lookup waits for.
    Prefetch(Arc<str>),
    /// A refresh, or a prefetch for a conversation, which no lookup waits for.
    Background,
}

impl Requester {
    /// Returns this requester for a fetch past the store.
    #[must_use]
    pub fn past_the_store(&self) -> Self {
        match self {
            Self::Caller(caller) | Self::Bypass(caller) => Self::Bypass(Arc::clone(caller)),
            Self::Prefetch(_) | Self::Background => self.clone(),
        }
    }
}

/// The answer of Genesys.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// A profile.
    Found(Profile),
    /// Genesys knows no such customer.
    Absent,
}
