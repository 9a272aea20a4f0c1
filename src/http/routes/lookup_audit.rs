//! What a lookup leaves in the audit: gathered on its way through the door, handed in once, before its answer leaves.
//!
//! A malformed request asks for nobody and leaves nothing. A tenant is named only if it is a configured one: what else
//! stands in its place may be anything. Where only denied lookups are recorded, nothing is gathered for the others.

use std::sync::Arc;

use axum::response::Response;
use http::HeaderMap;

use crate::audit::{self, Decision, Reason, Record};
use crate::domain::{CustomerId, Digest, Shown, TenantId};
use crate::metrics::LookupResult;

use crate::http::auth::authenticate::{Admitted, TurnedAway};
use crate::http::response::problem::Problem;
use crate::http::routes::profile::Profiles;
use crate::http::server::service::REQUEST_ID;

/// What is known of a lookup so far.
#[derive(Debug)]
pub(in crate::http) struct LookupAudit<'a> {
    profiles: &'a Profiles,
    headers: &'a HeaderMap,
    caller: Option<Arc<str>>,
    tenant: Option<TenantId>,
    key: Option<Digest>,
    decision: Option<Decision>,
}

impl<'a> LookupAudit<'a> {
    /// Begins the trail of a request with these headers.
    pub(in crate::http) const fn begin(profiles: &'a Profiles, headers: &'a HeaderMap) -> Self {
        Self { profiles, headers, caller: None, tenant: None, key: None, decision: None }
    }

    /// Lets the request in, or notes why not.
    ///
    /// # Errors
    ///
    /// As [`CallerAuth::admit`](crate::http::auth::authenticate::CallerAuth::admit).
    pub(in crate::http) fn admit(&mut self) -> Result<Admitted, Problem> {
        match self.profiles.door.admit(self.headers) {
            Ok(admitted) => {
                self.caller = Some(Arc::clone(&admitted.caller.name));
                Ok(admitted)
            }
            Err(TurnedAway { problem, caller }) => {
                let reason = if caller.is_some() { Reason::Rate } else { Reason::Unauthorized };
                (self.caller, self.decision) = (caller, Some(Decision::Denied(reason)));
                Err(problem)
            }
        }
    }

    /// Notes that the caller may not look this customer up.
    pub(in crate::http) fn denied(&mut self, reason: Reason, tenant: &TenantId, customer: &CustomerId) {
        self.about(tenant, customer);
        self.decision = Some(Decision::Denied(reason));
    }

    /// Notes how the lookup of a customer ended, and what of the profile is handed out.
    pub(in crate::http) fn allowed(
        &mut self,
        result: LookupResult,
        shown: Shown,
        tenant: &TenantId,
        customer: &CustomerId,
    ) {
        if self.profiles.audit.records_all_lookups() {
            self.about(tenant, customer);
            self.decision = Some(Decision::Allowed { result, shown });
        }
    }

    fn about(&mut self, tenant: &TenantId, customer: &CustomerId) {
        self.tenant = self.profiles.lookup.knows(tenant).then(|| tenant.clone());
        self.key = Some(self.profiles.hasher.identify(tenant, customer).digest());
    }

    /// Hands in what was gathered, and returns the answer that may leave.
    pub(in crate::http) async fn end(self, answer: Result<Response, Problem>) -> Result<Response, Problem> {
        let Some(decision) = self.decision else { return answer };
        let must_be_written = matches!(decision, Decision::Allowed { .. }) && self.profiles.audit.is_strict();
        let request = self.headers.get(REQUEST_ID).cloned();
        let Self { caller, tenant, key, .. } = self;
        let record = Record::Lookup(audit::Lookup { request, caller, tenant, key, decision });
        if must_be_written {
            self.profiles.audit.settle(record).await.map_err(|_| Problem::unrecorded())?;
        } else {
            self.profiles.audit.record(record);
        }
        answer
    }
}
