//! The audit record of a lookup: collected while the request is handled, and written once, before the response is sent.
//!
//! A malformed request gets no record. A record names a tenant only if it is configured, because any other value is
//! unchecked input. If the audit records only denied lookups, nothing is collected for the others.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use futures_util::future::join_all;
use http::HeaderMap;

use crate::audit::{self, Audit, AuditRecord, Decision, DenialReason};
use crate::domain::{CustomerQuery, Digest, DisclosedFields, LookupBy, QueryHasher, TenantId};
use crate::lookup::{Lookup, Phases};
use crate::metrics::LookupResult;

use crate::http::auth::authenticate::{Admitted, CallerAuth, RefusedCaller};
use crate::http::auth::callers::Caller;
use crate::http::response::dialect::Dialect;
use crate::http::response::headers::REQUEST_ID;
use crate::http::response::problem::Problem;
use crate::http::response::rate_limit_headers::Allowance;
use crate::http::routes::lookup_timing::LookupTiming;

/// What is known of a lookup so far.
#[derive(Debug)]
pub(in crate::http) struct LookupAudit<'a> {
    audit: &'a Audit,
    hasher: &'a QueryHasher,
    lookup: &'a Lookup,
    headers: &'a HeaderMap,
    caller: Option<Arc<Caller>>,
    allowance: Option<Allowance>,
    tenant: Option<TenantId>,
    customer: NamedCustomer,
    decision: Option<Decision>,
    /// The decisions about the customers of a batch.
    each: Vec<(NamedCustomer, Decision)>,
    timing: LookupTiming,
}

/// How a record names a customer.
#[derive(Clone, Copy, Debug, Default)]
struct NamedCustomer {
    key: Option<Digest>,
    /// What the customer was looked up by, if not by its id.
    by: Option<LookupBy>,
}

impl<'a> LookupAudit<'a> {
    /// Starts the record of a request with these headers. `lookup` knows the configured tenants.
    pub(in crate::http) fn begin(
        audit: &'a Audit,
        hasher: &'a QueryHasher,
        lookup: &'a Lookup,
        headers: &'a HeaderMap,
        slow: Duration,
    ) -> Self {
        let (timing, each) = (LookupTiming::start(slow), Vec::new());
        let (caller, allowance, tenant, customer, decision) = (None, None, None, NamedCustomer::default(), None);
        Self { audit, hasher, lookup, headers, caller, allowance, tenant, customer, decision, each, timing }
    }

    /// Notes that the lookup itself begins, and returns where its phases are noted.
    pub(in crate::http) fn looking_up(&mut self) -> &mut Phases {
        self.timing.looking_up()
    }

    /// Authenticates the request and notes the caller, or why it is refused.
    ///
    /// # Errors
    ///
    /// As [`CallerAuth::admit`].
    pub(in crate::http) async fn admit(&mut self, auth: &CallerAuth, query: Option<&str>) -> Result<Admitted, Problem> {
        match auth.admit(self.headers, query).await {
            Ok(admitted) => {
                (self.caller, self.allowance) = (Some(Arc::clone(&admitted.caller)), admitted.allowance);
                self.timing.admitted(admitted.caller.timing);
                Ok(admitted)
            }
            Err(RefusedCaller { problem, caller, reason }) => {
                (self.caller, self.decision) = (caller, Some(Decision::Denied(reason)));
                Err(problem)
            }
        }
    }

    /// Notes that the caller may not look this customer up.
    pub(in crate::http) fn denied(&mut self, reason: DenialReason, tenant: &TenantId, customer: &CustomerQuery) {
        self.set_customer(tenant, customer);
        self.decision = Some(Decision::Denied(reason));
    }

    /// Notes the result of a lookup, and the fields that the answer contains.
    pub(in crate::http) fn allowed(
        &mut self,
        result: LookupResult,
        shown: DisclosedFields,
        tenant: &TenantId,
        customer: &CustomerQuery,
    ) {
        if self.audit.records_all_lookups() {
            self.set_customer(tenant, customer);
            self.decision = Some(Decision::Allowed { result, shown });
        }
    }

    /// Counts further lookups of an admitted request against its caller's rate limit.
    ///
    /// # Errors
    ///
    /// 429 when the rate limit is reached.
    pub(in crate::http) fn admit_more(
        &mut self,
        auth: &CallerAuth,
        caller: &Caller,
        lookups: usize,
    ) -> Result<(), Problem> {
        let Some(lookups) = u32::try_from(lookups).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        match auth.count_further(caller, lookups) {
            Ok(allowance) => {
                self.allowance = allowance;
                Ok(())
            }
            Err(problem) => {
                self.decision = Some(Decision::Denied(DenialReason::Rate));
                Err(problem)
            }
        }
    }

    /// Notes that the caller may not look up these customers.
    pub(in crate::http) fn denied_each(
        &mut self,
        reason: DenialReason,
        tenant: &TenantId,
        customers: &[CustomerQuery],
    ) {
        self.note_each(tenant, customers.iter().map(|customer| (customer, Decision::Denied(reason))));
    }

    /// Notes the results of the lookups of a batch, and the fields that each answer contains.
    pub(in crate::http) fn allowed_each<'c>(
        &mut self,
        tenant: &TenantId,
        results: impl Iterator<Item = (&'c CustomerQuery, LookupResult, DisclosedFields)>,
    ) {
        if self.audit.records_all_lookups() {
            self.note_each(
                tenant,
                results.map(|(customer, result, shown)| (customer, Decision::Allowed { result, shown })),
            );
        }
    }

    /// Notes that the caller may not do what names no customer of a tenant: a search, or a stream of changes.
    pub(in crate::http) fn denied_tenant(&mut self, reason: DenialReason, tenant: &TenantId) {
        self.set_tenant(tenant);
        self.decision = Some(Decision::Denied(reason));
    }

    /// Notes the result of a search, which names no customer.
    pub(in crate::http) fn searched(&mut self, result: LookupResult, shown: DisclosedFields, tenant: &TenantId) {
        if self.audit.records_all_lookups() {
            self.set_tenant(tenant);
            self.decision = Some(Decision::Allowed { result, shown });
        }
    }

    fn note_each<'c>(&mut self, tenant: &TenantId, decisions: impl Iterator<Item = (&'c CustomerQuery, Decision)>) {
        self.set_tenant(tenant);
        let decided: Vec<_> = decisions.map(|(customer, decision)| (self.named(tenant, customer), decision)).collect();
        self.each.extend(decided);
    }

    fn set_customer(&mut self, tenant: &TenantId, customer: &CustomerQuery) {
        self.set_tenant(tenant);
        self.customer = self.named(tenant, customer);
    }

    fn named(&self, tenant: &TenantId, customer: &CustomerQuery) -> NamedCustomer {
        NamedCustomer {
            key: self.hasher.identify(tenant, customer).map(|identity| identity.digest()),
            by: Some(customer.by()).filter(|by| *by != LookupBy::CustomerId),
        }
    }

    fn set_tenant(&mut self, tenant: &TenantId) {
        self.tenant = self.lookup.knows(tenant).then(|| tenant.clone());
    }

    /// Writes the records and returns the response: a 503 if a record is required and cannot be written.
    pub(in crate::http) async fn end(self, mut answer: Result<Response, Problem>, dialect: &Dialect) -> Response {
        let Self { audit, headers, caller, allowance, tenant, customer, decision, each, timing, .. } = self;
        let (request, elapsed) = (headers.get(REQUEST_ID), timing.end());
        elapsed.log_if_slow(request, caller.as_ref().map(|caller| &*caller.name));
        let record = |NamedCustomer { key, by }, decision| {
            let (request, tenant, duration_ms) = (request.cloned(), tenant.clone(), elapsed.total_ms());
            let who = caller.as_ref();
            AuditRecord::Lookup(audit::LookupRecord {
                request,
                caller: who.map(|caller| Arc::clone(&caller.name)),
                scope: who.and_then(|caller| caller.scope.clone()),
                agent: who.and_then(|caller| caller.agent.clone()),
                tenant,
                key,
                by,
                decision,
                duration_ms,
            })
        };
        let mut required = Vec::new();
        for (customer, decision) in decision.map(|decision| (customer, decision)).into_iter().chain(each) {
            let must_be_written = matches!(decision, Decision::Allowed { .. }) && audit.is_strict();
            let record = record(customer, decision);
            if must_be_written {
                required.push(audit.record_and_wait(record));
            } else {
                audit.record(record);
            }
        }
        if !required.is_empty() && join_all(required).await.iter().any(Result::is_err) {
            answer = Err(Problem::unrecorded());
        }
        let mut response = answer.unwrap_or_else(|problem| dialect.render(problem));
        elapsed.write_header(response.headers_mut());
        if let Some(allowance) = allowance {
            allowance.write_headers(response.headers_mut());
        }
        response
    }
}
