//! The upstream port: Genesys, the source of every profile.
//!
//! A fetch returns what Genesys knows *now*, never a cached answer. Everything that protects Genesys from overload
//! and misuse is behind this port, for each tenant: the token and its privileges, the limit of requests in flight, the
//! budget per minute, the circuit breaker and the retries. Callers see only an [`Error`], by which they decide.

mod breaker;
mod breaker_gauge;
mod endpoints;
mod error;
mod exchange;
mod expand;
mod genesys;
mod guard;
pub mod open;
mod privilege_gate;
pub mod privileges;
mod token;
mod tokens;
mod traced;
mod transport;

use std::fmt::Debug;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, Profile, TenantId};

pub use error::Error;
pub use expand::{Expand, InvalidExpand};
pub use transport::{TransportFailure, TransportPhase};

/// Fetches profiles.
#[async_trait]
pub trait Upstream: Debug + Send + Sync {
    /// Fetches one profile. Returns at `deadline` or after `upstream.timeout`, whichever is sooner.
    ///
    /// An absent customer is an answer, not an error. A fetch can be repeated safely; what is worth a retry has
    /// already been retried.
    async fn fetch(&self, tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error>;

    /// Fetches one profile with expanded fields, and is otherwise like [`fetch`](Self::fetch). The body differs from
    /// that of `fetch`, so it must not be filled into the store.
    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error>;
}

/// The answer of Genesys.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// A profile.
    Found(Profile),
    /// Genesys knows no such customer.
    Absent,
}
