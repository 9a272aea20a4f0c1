//! The upstream port: Genesys, the source of every profile.
//!
//! A fetch answers what Genesys knows *now*; it never answers from a cache. Everything that keeps
//! Genesys safe from us (token and its privileges, in-flight bound, per-minute budget, breaker, retries)
//! lives behind this port, per tenant, and shows itself to callers only as an [`Error`] that says what to do.

mod breaker;
mod endpoints;
mod entitled;
mod error;
mod exchange;
mod expand;
mod genesys;
mod guard;
pub mod open;
pub mod privileges;
mod token;
mod tokens;
mod traced;

use std::fmt::Debug;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{CustomerId, Profile, TenantId};

pub use error::Error;
pub use expand::{Expand, InvalidExpand};

/// Fetches profiles.
#[async_trait]
pub trait Upstream: Debug + Send + Sync {
    /// Fetches one profile, answering by `deadline` and by `upstream.timeout`, whichever is sooner.
    ///
    /// An absence is an answer, not an error. Safe to repeat; the caller decides whether to, the
    /// port has already retried what is worth retrying.
    async fn fetch(&self, tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error>;

    /// Fetches one profile with more in it; otherwise as [`fetch`](Self::fetch). Its body is another one, so
    /// it must not be filled into the store.
    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error>;
}

/// What Genesys knows.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// A profile.
    Found(Profile),
    /// No such customer.
    Absent,
}
