//! `GET /api/v2/externalcontacts/contacts/{id}`: what an unmodified Genesys SDK or data action asks for.
//!
//! Nothing here may look different from Genesys where an SDK looks: the body is verbatim and always
//! `application/json`, the status is never 206 or 304, failures are Genesys' `ErrorBody`, and a deleted
//! customer is one that is not found. A caller that may not see every field has no body that would be
//! verbatim, so it is turned away.
//!
//! The tenant is the caller's only one, or else that of `X-Tenant-Id`. The order of judgements: who calls
//! (401), whether it calls too often (429), what is asked (400), whether this caller may (403); only then the
//! lookup. With `expand` the answer is another body, which no event would evict: it is fetched, not cached.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use tracing::Instrument;

use crate::audit::Reason;
use crate::domain::{CustomerId, Shown, TenantId};
use crate::http::auth::field_set::FieldSet;
use crate::lookup::{Answer, Outcome};
use crate::metrics::LookupResult;
use crate::spans;
use crate::upstream::Expand;

use crate::http::auth::callers::Caller;
use crate::http::response::cache_status;
use crate::http::response::problem::{Dialect, ErrorBody, Problem};
use crate::http::routes::lookup_audit::LookupAudit;
use crate::http::routes::profile::Profiles;

const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");

/// Where contacts are at Genesys.
const CONTACTS: &str = "/api/v2/externalcontacts/contacts/";

/// What is asked for.
#[derive(Debug)]
struct Asked {
    tenant: TenantId,
    customer: CustomerId,
    expand: Option<Expand>,
}

/// Makes the routes.
pub fn routes(profiles: Arc<Profiles>) -> Router {
    // A path parameter would not match an id with a slash, which an SDK may send unescaped.
    let path = format!("{CONTACTS}{{*id}}");
    // A route for GET would take HEAD too.
    Router::new().route(&path, any(contact)).with_state(profiles)
}

/// Returns one contact, as Genesys does.
#[utoipa::path(
    get, path = "/api/v2/externalcontacts/contacts/{id}", tag = "genesys",
    params(
        ("id" = String, Path, description = "The contact", format = "uuid", example = "00000000-0000-4000-8000-000000000001"),
        ("expand" = Option<String>, Query, description = "Names of what is to be expanded, joined by commas; answered past the cache", pattern = "^([A-Za-z]{1,64}(,[A-Za-z]{1,64}){0,15})?$"),
        ("X-Tenant-Id" = Option<String>, Header, description = "The tenant, for a caller with more than one"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The contact, verbatim", content_type = "application/json", body = serde_json::Value),
        (status = 400, description = "No UUID, no tenant, or a malformed `expand`", body = ErrorBody),
        (status = 401, description = "No or wrong key or token", body = ErrorBody),
        (status = 403, description = "Tenant not allowed, or not all fields are", body = ErrorBody),
        (status = 404, description = "No such contact, or no longer", body = ErrorBody),
        (status = 429, description = "Over the caller's rate; or, with `Retry-After`, Genesys limits ours", body = ErrorBody),
        (status = 500, description = "Our fault", body = ErrorBody),
        (status = 502, description = "Genesys answered with something unusable, or refused us", body = ErrorBody),
        (status = 503, description = "Genesys or this service cannot answer now", body = ErrorBody),
    ),
)]
pub(in crate::http) async fn contact(State(profiles): State<Arc<Profiles>>, request: Request) -> Response {
    let dialect = Dialect::of(&request);
    if request.method() != Method::GET {
        let mut response = Problem::method_not_allowed().told_in(&dialect);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let headers = request.headers();
    let mut trail = LookupAudit::begin(&profiles, headers);
    let (answer, allowance) = match trail.admit() {
        Err(problem) => (Err(problem), None),
        Ok(admitted) => {
            let answer = profiles.contact(&admitted.caller, headers, request.uri(), &mut trail).await;
            (answer, admitted.allowance)
        }
    };
    let mut response = trail.end(answer).await.unwrap_or_else(|problem| problem.told_in(&dialect));
    if let Some(allowance) = allowance {
        allowance.show(response.headers_mut());
    }
    response
}

impl Profiles {
    async fn contact(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        uri: &http::Uri,
        trail: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let asked = Asked::read(caller, headers, uri)?;
        if let Err(reason) = authorize(caller, &asked) {
            trail.denied(reason, &asked.tenant, &asked.customer);
            return Err(forbidden());
        }
        let Asked { tenant, customer, expand } = &asked;
        let span = spans::lookup(headers, tenant, &caller.name);
        let answer = match expand {
            None => self.lookup.get(tenant, customer).instrument(span.clone()).await,
            Some(expand) => self.lookup.get_expanded(tenant, customer, expand).instrument(span.clone()).await,
        };
        let answer = answer.ok_or_else(forbidden)?;
        let result = answer.as_ref().map_or(LookupResult::Error, Answer::result);
        self.trace(&span, tenant, customer, result);
        let found = matches!(&answer, Ok(answer) if matches!(answer.outcome, Outcome::Found(_)));
        trail.allowed(result, if found { Shown::All } else { Shown::Nothing }, tenant, customer);
        let answer = answer.map_err(|failure| self.refuse(&failure, tenant, customer, caller))?;
        let mut response = match &answer.outcome {
            Outcome::Found(found) => {
                let mut response = Response::new(Body::from(found.body.expose().clone()));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Outcome::Absent | Outcome::Deleted => {
                Problem::new(StatusCode::NOT_FOUND, "not_found", "").told_in(&Dialect::of_headers(headers))
            }
        };
        cache_status::label(response.headers_mut(), &answer, self.clock.now());
        Ok(response)
    }
}

impl Asked {
    fn read(caller: &Caller, headers: &HeaderMap, uri: &http::Uri) -> Result<Self, Problem> {
        let below = uri.path().strip_prefix(CONTACTS).unwrap_or_default();
        let (id, rest) = below.split_once('/').unwrap_or((below, ""));
        let customer = percent_decode_str(id).decode_utf8().ok().and_then(|id| id.parse().ok());
        let customer = customer.filter(CustomerId::is_uuid);
        let customer = customer.ok_or_else(|| Problem::bad_field("contactId", "must be a UUID"))?;
        if !rest.is_empty() {
            // A part of a contact, which Genesys has and we have not.
            return Err(Problem::no_such_route());
        }
        let expand =
            Expand::parse(uri.query().unwrap_or_default()).map_err(|error| Problem::bad_field("expand", error))?;
        Ok(Self { tenant: tenant(caller, headers)?, customer, expand })
    }
}

fn tenant(caller: &Caller, headers: &HeaderMap) -> Result<TenantId, Problem> {
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

fn authorize(caller: &Caller, asked: &Asked) -> Result<(), Reason> {
    match caller.fields {
        FieldSet::All if caller.may_read(&asked.tenant) => Ok(()),
        FieldSet::All => Err(Reason::Tenant),
        FieldSet::Only(_) => Err(Reason::Fields),
    }
}

/// The same words whether it is the tenant or the fields: neither is told apart by who may not have it.
fn forbidden() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "You are not authorized to perform the requested action.")
}
