//! What the routes of lookups share.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tracing::Span;

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::domain::{CustomerId, Identity, KeyHasher, TenantId};
use crate::lookup::{Lookup, LookupAnswer, LookupError};
use crate::metrics::LookupResult;
use crate::spans;

use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::callers::Caller;
use crate::http::request::budget::ByteBudget;
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_audit::LookupAudit;

/// The state of the routes of lookups.
#[derive(Debug)]
pub struct LookupApi {
    /// The lookup flow.
    pub lookup: Lookup,
    /// The authentication of callers.
    pub auth: Arc<CallerAuth>,
    /// The audit of lookups.
    pub audit: Audit,
    /// Computes the keys of customers, for logs and the audit.
    pub hasher: KeyHasher,
    /// The wall clock, for `Age`.
    pub clock: SharedClock,
    /// The maximum size of a request body, in bytes.
    pub max_body: usize,
    /// The memory of request bodies.
    pub bodies: ByteBudget,
    /// From which duration on a lookup is logged with its phases; zero: never.
    pub slow: Duration,
}

impl LookupApi {
    /// Starts the audit record of a request with these headers.
    pub(super) fn begin_audit<'a>(&'a self, headers: &'a HeaderMap) -> LookupAudit<'a> {
        LookupAudit::begin(&self.audit, &self.hasher, &self.lookup, headers, self.slow)
    }

    /// Returns the handle by which a caller recognises the customer of an answer in the change feed.
    pub(super) fn handle(
        &self,
        caller: &Caller,
        answer: &Result<LookupAnswer, LookupError>,
        tenant: &TenantId,
        customer: &CustomerId,
    ) -> HeaderValue {
        let stored = answer.as_ref().ok().and_then(|answer| answer.identity.as_ref());
        let digest = stored.map_or_else(|| self.hasher.identify(tenant, customer).digest(), Identity::digest);
        self.auth.handles().header(&caller.name, tenant, digest)
    }

    /// Adds the result of a lookup to its span.
    pub(super) fn trace(&self, span: &Span, tenant: &TenantId, customer: &CustomerId, result: LookupResult) {
        spans::looked_up(span, result, || self.hasher.identify(tenant, customer).key());
    }

    /// Logs a failed lookup and returns its answer.
    pub(super) fn log_failure(
        &self,
        failure: &LookupError,
        tenant: &TenantId,
        customer: &CustomerId,
        caller: &Caller,
    ) -> Problem {
        let problem = Problem::of_failure(failure);
        let key = self.hasher.identify(tenant, customer).key();
        // Host, phase and cause of a failed request to Genesys.
        let cause = std::error::Error::source(failure).map(tracing::field::display);
        tracing::warn!(%key, caller = %caller.name, code = problem.code(), error = %failure, cause, "lookup failed");
        problem
    }
}
