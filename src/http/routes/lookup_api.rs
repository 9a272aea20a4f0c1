//! What the routes of lookups share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tracing::{Instrument, Span};

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::domain::{CustomerQuery, DisclosedFields, Identity, PhoneRegion, QueryHasher, TenantId};
use crate::lookup::prefetch::Prefetcher;
use crate::lookup::{Lookup, LookupAnswer, LookupError, LookupOutcome};
use crate::metrics::LookupResult;
use crate::shares::FairShares;
use crate::spans;

use crate::http::auth::authenticate::{Admitted, CallerAuth};
use crate::http::auth::callers::Caller;
use crate::http::auth::profile_handles::PROFILE_KEY;
use crate::http::request::budget::ByteBudget;
use crate::http::request::cache_control;
use crate::http::response::cache_status;
use crate::http::response::dialect::Dialect;
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_audit::LookupAudit;

/// The maximum number of customers in one request.
pub(super) const MAX_BATCH: usize = 100;

const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");

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
    /// Computes the keys of customers and identifiers, for logs and the audit.
    pub hasher: QueryHasher,
    /// The wall clock, for `Age`.
    pub clock: SharedClock,
    /// The maximum size of a request body, in bytes.
    pub max_body: usize,
    /// The memory of request bodies.
    pub bodies: ByteBudget,
    /// The memory of answers to batches, in bytes, shared by callers.
    pub answers: Arc<FairShares>,
    /// From which duration on a lookup is logged with its phases; zero: never.
    pub slow: Duration,
}

impl LookupApi {
    /// Starts the audit record of a request with these headers.
    pub(super) fn begin_audit<'a>(&'a self, headers: &'a HeaderMap) -> LookupAudit<'a> {
        LookupAudit::begin(&self.audit, &self.hasher, &self.lookup, headers, self.slow)
    }

    /// Handles a request with these headers and this query: admits its caller, lets `answer` answer, and writes the audit record.
    pub(super) async fn audited<'a>(
        &'a self,
        headers: &'a HeaderMap,
        query: Option<&str>,
        dialect: &Dialect,
        answer: impl AsyncFnOnce(&Caller, &mut LookupAudit<'a>) -> Result<Response, Problem>,
    ) -> Response {
        let mut audit = self.begin_audit(headers);
        let answer = match audit.admit(&self.auth, query).await {
            Ok(Admitted { caller, .. }) => answer(&caller, &mut audit).await,
            Err(problem) => Err(problem),
        };
        audit.end(answer, dialect).await
    }

    /// Returns the handle by which a caller recognises the customer of an answer in the change feed; `None` for an identifier
    /// that nobody has.
    pub(super) fn handle(
        &self,
        caller: &Caller,
        answer: &LookupAnswer,
        tenant: &TenantId,
        query: &CustomerQuery,
    ) -> Option<HeaderValue> {
        let digest = match (&answer.identity, query) {
            (Some(stored), _) => stored.digest(),
            (None, CustomerQuery::Id(_)) => self.hasher.identify(tenant, query).as_ref().map(Identity::digest)?,
            (None, CustomerQuery::Identifier(_)) => return None,
        };
        Some(self.auth.handles().header(&caller.name, tenant, digest))
    }

    /// Adds the result of a lookup to its span.
    pub(super) fn trace(&self, span: &Span, tenant: &TenantId, customer: &CustomerQuery, result: LookupResult) {
        spans::looked_up(span, result, || self.hasher.identify(tenant, customer).map(|identity| identity.key()));
    }

    /// Returns the country of phone numbers without a country code, to a caller that may read the tenant: others must not
    /// learn which tenants exist.
    pub(super) fn region_for(&self, caller: &Caller, tenant: &TenantId) -> Option<PhoneRegion> {
        self.lookup.phone_region(tenant).filter(|_| caller.may_read(tenant))
    }

    /// Looks up a customer for a caller that may do so, and answers as Genesys does.
    pub(super) async fn answer_verbatim(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        tenant: &TenantId,
        query: &CustomerQuery,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let span = spans::lookup(headers, tenant, &caller.name);
        let (requester, max_age, phases) = (caller.requester(), max_age(caller, headers), audit.looking_up());
        let looking_up = self.lookup.find(tenant, query, &requester, max_age, phases);
        let answer = looking_up.instrument(span.clone()).await;
        self.finish_verbatim(caller, headers, (tenant, query), &span, answer, audit)
    }

    /// Records the answer to a lookup, and renders it as Genesys does.
    pub(super) fn finish_verbatim(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        (tenant, query): (&TenantId, &CustomerQuery),
        span: &Span,
        answer: Option<Result<LookupAnswer, LookupError>>,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let answer = answer.ok_or_else(not_authorized)?;
        let result = answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result);
        self.trace(span, tenant, query, result);
        audit.allowed(result, shown(&answer), tenant, query);
        let answer = answer.map_err(|failure| self.log_failure(&failure, tenant, query, caller))?;
        let mut response = verbatim(&answer, headers);
        self.write_headers(response.headers_mut(), caller, &answer, tenant, query);
        Ok(response)
    }

    /// Adds what an answer says about itself: where it came from, and the handle of its customer in the change feed.
    pub(super) fn write_headers(
        &self,
        headers: &mut HeaderMap,
        caller: &Caller,
        answer: &LookupAnswer,
        tenant: &TenantId,
        query: &CustomerQuery,
    ) {
        cache_status::write_headers(headers, answer, self.clock.now());
        if let Some(handle) = self.handle(caller, answer, tenant, query) {
            headers.insert(PROFILE_KEY, handle);
        }
    }

    /// Logs a failed search and returns its answer.
    pub(super) fn log_failed_search(&self, failure: &LookupError, tenant: &TenantId, caller: &Caller) -> Problem {
        let problem = Problem::of_failure(failure);
        let cause = std::error::Error::source(failure).map(tracing::field::display);
        tracing::warn!(%tenant, caller = %caller.name, code = problem.code(), error = %failure, cause, "search failed");
        problem
    }

    /// Logs a failed lookup and returns its answer.
    pub(super) fn log_failure(
        &self,
        failure: &LookupError,
        tenant: &TenantId,
        customer: &CustomerQuery,
        caller: &Caller,
    ) -> Problem {
        let problem = Problem::of_failure(failure);
        let key = self.hasher.identify(tenant, customer).map(|identity| tracing::field::display(identity.key()));
        // Host, phase and cause of a failed request to Genesys.
        let cause = std::error::Error::source(failure).map(tracing::field::display);
        tracing::warn!(key, caller = %caller.name, code = problem.code(), error = %failure, cause, "lookup failed");
        problem
    }
}

/// Returns the greatest age of an answer that a request demands, if its caller may.
pub(super) fn max_age(caller: &Caller, headers: &HeaderMap) -> Option<Duration> {
    if caller.may_refresh { cache_control::max_age(headers) } else { None }
}

/// Renders an answer as Genesys does.
pub(super) fn verbatim(answer: &LookupAnswer, headers: &HeaderMap) -> Response {
    match &answer.outcome {
        LookupOutcome::Found(found) => {
            let mut response = Response::new(Body::from(found.body.expose().clone()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        LookupOutcome::Absent | LookupOutcome::Deleted => {
            Dialect::of_headers(headers).render(Problem::new(StatusCode::NOT_FOUND, "not_found", ""))
        }
    }
}

/// Returns what a caller with all fields sees of an answer.
pub(super) fn shown<E>(answer: &Result<LookupAnswer, E>) -> DisclosedFields {
    match answer {
        Ok(LookupAnswer { outcome: LookupOutcome::Found(_), .. }) => DisclosedFields::All,
        Ok(_) | Err(_) => DisclosedFields::Nothing,
    }
}

/// The refusal on Genesys' routes. The text is the same for the tenant, the fields and the right to look up, so that a caller
/// cannot tell which one is denied.
pub(super) fn not_authorized() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "You are not authorized to perform the requested action.")
}

/// Returns the tenant of a request on Genesys' routes: the caller's only one, or that of `X-Tenant-Id`.
pub(super) fn tenant_of(caller: &Caller, headers: &HeaderMap) -> Result<TenantId, Problem> {
    let mut named = headers.get_all(TENANT_ID).iter();
    match (named.next(), named.next()) {
        (None, _) => caller.only_tenant().cloned().ok_or_else(|| Problem::bad_field("X-Tenant-Id", "is missing")),
        (Some(name), None) => {
            let name = name.to_str().ok().and_then(|name| name.parse().ok());
            name.ok_or_else(|| Problem::bad_field("X-Tenant-Id", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -"))
        }
        (Some(_), Some(_)) => Err(Problem::bad_field("X-Tenant-Id", "is given more than once")),
    }
}
