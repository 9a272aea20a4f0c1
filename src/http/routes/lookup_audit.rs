//! The audit record of a lookup: collected while the request is handled, and written once, before the response is sent.
//!
//! A malformed request gets no record. A record names a tenant only if it is configured, because any other value is
//! unchecked input. If the audit records only denied lookups, nothing is collected for the others.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
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
    caller: Option<Arc<str>>,
    allowance: Option<Allowance>,
    tenant: Option<TenantId>,
    key: Option<Digest>,
    by: Option<LookupBy>,
    decision: Option<Decision>,
    timing: LookupTiming,
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
        let (caller, allowance, tenant, key, by, decision) = (None, None, None, None, None, None);
        let timing = LookupTiming::start(slow);
        Self { audit, hasher, lookup, headers, caller, allowance, tenant, key, by, decision, timing }
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
    pub(in crate::http) fn admit(&mut self, auth: &CallerAuth) -> Result<Arc<Caller>, Problem> {
        match auth.admit(self.headers) {
            Ok(Admitted { caller, allowance }) => {
                (self.caller, self.allowance) = (Some(Arc::clone(&caller.name)), allowance);
                self.timing.admitted(caller.timing);
                Ok(caller)
            }
            Err(RefusedCaller { problem, caller }) => {
                let reason = if caller.is_some() { DenialReason::Rate } else { DenialReason::Unauthorized };
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

    /// Notes that the caller may not search for customers.
    pub(in crate::http) fn denied_search(&mut self, reason: DenialReason, tenant: &TenantId) {
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

    fn set_customer(&mut self, tenant: &TenantId, customer: &CustomerQuery) {
        self.set_tenant(tenant);
        self.key = self.hasher.identify(tenant, customer).map(|identity| identity.digest());
        self.by = Some(customer.by()).filter(|by| *by != LookupBy::CustomerId);
    }

    fn set_tenant(&mut self, tenant: &TenantId) {
        self.tenant = self.lookup.knows(tenant).then(|| tenant.clone());
    }

    /// Writes the record and returns the response: a 503 if the record is required and cannot be written.
    pub(in crate::http) async fn end(self, mut answer: Result<Response, Problem>, dialect: &Dialect) -> Response {
        let Self { audit, headers, caller, allowance, tenant, key, by, decision, timing, .. } = self;
        let (request, elapsed) = (headers.get(REQUEST_ID), timing.end());
        elapsed.log_if_slow(request, caller.as_deref());
        if let Some(decision) = decision {
            let must_be_written = matches!(decision, Decision::Allowed { .. }) && audit.is_strict();
            let (request, duration_ms) = (request.cloned(), elapsed.total_ms());
            let record = audit::LookupRecord { request, caller, tenant, key, by, decision, duration_ms };
            let record = AuditRecord::Lookup(record);
            if !must_be_written {
                audit.record(record);
            } else if audit.record_and_wait(record).await.is_err() {
                answer = Err(Problem::unrecorded());
            }
        }
        let mut response = answer.unwrap_or_else(|problem| dialect.render(problem));
        elapsed.write_header(response.headers_mut());
        if let Some(allowance) = allowance {
            allowance.write_headers(response.headers_mut());
        }
        response
    }
}
