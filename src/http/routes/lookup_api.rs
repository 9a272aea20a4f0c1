//! What the routes of lookups share.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tracing::{Instrument, Span};

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::domain::{CustomerId, Identity, KeyHasher, TenantId};
use crate::lookup::prefetch::Prefetcher;
use crate::lookup::{Lookup, LookupAnswer, LookupError, Phases};
use crate::metrics::LookupResult;
use crate::spans;

use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::callers::Caller;
use crate::http::request::budget::ByteBudget;
use crate::http::request::cache_control;
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_audit::LookupAudit;

/// The maximum number of customers in one request.
pub(super) const MAX_BATCH: usize = 100;

/// The state of the routes of lookups.
#[derive(Debug)]
pub struct LookupApi {
    /// The lookup flow.
    pub lookup: Lookup,
    /// Fetches customers ahead of time.
    pub prefetcher: Arc<Prefetcher>,
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

    /// Returns the handle of the customer of an answer.
    pub(super) fn handle_of(
        &self,
        caller: &Caller,
        answer: &LookupAnswer,
        tenant: &TenantId,
        customer: &CustomerId,
    ) -> HeaderValue {
        let digest = match &answer.identity {
            Some(stored) => stored.digest(),
            None => self.hasher.identify(tenant, customer).digest(),
        };
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

    /// Looks up several customers for a caller, who may read the tenant; `None` if the tenant is not configured. Failures are
    /// logged in one line, with the first of them.
    pub(super) async fn look_up_many(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        tenant: &TenantId,
        customers: &[CustomerId],
        phases: &mut Phases,
    ) -> Option<Vec<Result<LookupAnswer, Problem>>> {
        let (span, requester) = (spans::lookup(headers, tenant, &caller.name), caller.requester());
        let answers = self.lookup.get_many(tenant, customers, &requester, max_age(caller, headers), phases);
        let answers = answers.instrument(span).await?;
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        if let Some((first, Err(failure))) = answers.iter().enumerate().find(|(_, answer)| answer.is_err()) {
            let problem = self.log_failure(failure, tenant, &customers[first], caller);
            if failed > 1 {
                tracing::warn!(failed, code = problem.code(), caller = %caller.name, "several lookups of a batch failed");
            }
        }
        Some(answers.into_iter().map(|answer| answer.map_err(|failure| Problem::of_failure(&failure))).collect())
    }
}

/// Returns the greatest age of an answer that a request demands, if its caller may.
pub(super) fn max_age(caller: &Caller, headers: &HeaderMap) -> Option<Duration> {
    if caller.may_refresh { cache_control::max_age(headers) } else { None }
}
