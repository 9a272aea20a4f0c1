//! `GET /api/v2/externalcontacts/contacts/{id}`: the route that an unmodified Genesys SDK or data action calls.
//!
//! Everything that an SDK reads is the same as at Genesys: the body is verbatim and always `application/json`, the status
//! is never 206 or 304, failures are Genesys' `ErrorBody`, and a deleted customer is not found. A filtered body would not
//! be verbatim, so a caller that may not read every field is refused.
//!
//! The tenant is the caller's only one, or that of `X-Tenant-Id`. The order of checks: authentication (401), rate limit
//! (429), the request itself (400), authorization (403); then the lookup. An answer with `expand` is fetched and not
//! cached, because no event would invalidate it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;
use tracing::Instrument;

use crate::audit::DenialReason;
use crate::domain::{CustomerId, CustomerQuery, LookupBy, TenantId};
use crate::http::auth::field_set::FieldSet;
use crate::spans;
use crate::upstream::Expand;

use crate::http::auth::callers::Caller;
use crate::http::response::dialect::{Dialect, ErrorBody};
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::{LookupApi, not_authorized, tenant_of};
use crate::http::routes::lookup_audit::LookupAudit;

/// The path of contacts at Genesys.
const CONTACTS: &str = "/api/v2/externalcontacts/contacts/";

/// A parsed request.
#[derive(Debug)]
struct ContactRequest {
    tenant: TenantId,
    customer: CustomerId,
    expand: Option<Expand>,
}

/// Returns the routes.
pub fn routes(api: Arc<LookupApi>) -> Router {
    // A plain path parameter does not match an id with an unescaped slash, which an SDK may send.
    let path = format!("{CONTACTS}{{*id}}");
    // A route for GET would also accept HEAD.
    Router::new().route(&path, any(contact)).with_state(api)
}

/// Returns one contact, as Genesys does.
#[utoipa::path(
    get, path = "/api/v2/externalcontacts/contacts/{id}", tag = "genesys",
    params(
        ("id" = String, Path, description = "The contact", format = "uuid", example = "00000000-0000-4000-8000-000000000001"),
        ("expand" = Option<String>, Query, description = "Names of the parts to expand, joined by commas; the answer is not cached", pattern = "^([A-Za-z]{1,64}(,[A-Za-z]{1,64}){0,15})?$"),
        ("X-Tenant-Id" = Option<String>, Header, description = "The tenant, for a caller with more than one"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The contact, verbatim", content_type = "application/json", body = serde_json::Value),
        (status = 400, description = "The id is not a UUID, no tenant is given, or `expand` is malformed", body = ErrorBody),
        (status = 401, description = "Missing or wrong key or token", body = ErrorBody),
        (status = 403, description = "The caller may not read this tenant or not all fields", body = ErrorBody),
        (status = 404, description = "The contact does not exist or was deleted", body = ErrorBody),
        (status = 429, description = "The caller's rate limit is reached; or, with `Retry-After`, that of Genesys", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 502, description = "Genesys sent an unusable answer or refused our credentials", body = ErrorBody),
        (status = 503, description = "Genesys or this service cannot answer now", body = ErrorBody),
    ),
)]
pub(in crate::http) async fn contact(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    let dialect = Dialect::of(&request);
    if request.method() != Method::GET {
        let mut response = dialect.render(Problem::method_not_allowed());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let (parts, _) = request.into_parts();
    let (headers, uri) = (&parts.headers, &parts.uri);
    let answer = async |caller: &Caller, audit: &mut LookupAudit<'_>| api.contact(caller, headers, uri, audit).await;
    api.audited(headers, uri.query(), &dialect, answer).await
}

impl LookupApi {
    async fn contact(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        uri: &http::Uri,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let contact = ContactRequest::parse(caller, headers, uri)?;
        if let Err(reason) = authorize(caller, &contact) {
            audit.denied(reason, &contact.tenant, &CustomerQuery::Id(contact.customer));
            return Err(not_authorized());
        }
        let ContactRequest { tenant, customer, expand } = &contact;
        let query = CustomerQuery::Id(customer.clone());
        let Some(expand) = expand else {
            return self.answer_verbatim(caller, headers, tenant, &query, audit).await;
        };
        let span = spans::lookup(headers, tenant, &caller.name);
        let requester = caller.requester();
        let expanded = self.lookup.get_expanded(tenant, customer, expand, &requester, audit.looking_up());
        let expanded = expanded.instrument(span.clone()).await;
        self.finish_verbatim(caller, headers, (tenant, &query), &span, expanded, audit)
    }
}

impl ContactRequest {
    fn parse(caller: &Caller, headers: &HeaderMap, uri: &http::Uri) -> Result<Self, Problem> {
        let below = uri.path().strip_prefix(CONTACTS).unwrap_or_default();
        let (id, rest) = below.split_once('/').unwrap_or((below, ""));
        let customer = percent_decode_str(id).decode_utf8().ok().and_then(|id| id.parse().ok());
        let customer = customer.filter(CustomerId::is_uuid);
        let customer = customer.ok_or_else(|| Problem::bad_field("contactId", "must be a UUID"))?;
        if !rest.is_empty() {
            // Genesys has routes below a contact; this service does not.
            return Err(Problem::no_such_route());
        }
        let expand =
            Expand::parse(uri.query().unwrap_or_default()).map_err(|error| Problem::bad_field("expand", error))?;
        Ok(Self { tenant: tenant_of(caller, headers)?, customer, expand })
    }
}

fn authorize(caller: &Caller, contact: &ContactRequest) -> Result<(), DenialReason> {
    match caller.fields {
        FieldSet::All if !caller.may_read(&contact.tenant) => Err(DenialReason::Tenant),
        FieldSet::All if !caller.may_look_up_by(LookupBy::CustomerId) => Err(DenialReason::LookupBy),
        FieldSet::All => Ok(()),
        FieldSet::Only(_) => Err(DenialReason::Fields),
    }
}
