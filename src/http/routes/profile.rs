//! `GET` and `POST /api/v1/profile`: one customer's profile, for Architect and agent desktops.
//!
//! The order of checks: authentication (401), rate limit (429), the request itself (400, 413, 415), authorization (403);
//! then the lookup. Fields are filtered after the lookup; the authorization is never cached.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tracing::Instrument;

use crate::audit::DenialReason;
use crate::domain::{DisclosedFields, ProfileBody};
use crate::http::auth::field_set::{FieldSet, NotAnObject};
use crate::lookup::{LookupAnswer, LookupOutcome};
use crate::metrics::LookupResult;
use crate::spans;
use crate::store::Found;

use crate::http::auth::callers::Caller;
use crate::http::request::body;
use crate::http::response::dialect::Dialect;
use crate::http::response::etag::{etag, if_none_match};
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::routes::lookup_api::{LookupApi, max_age};
use crate::http::routes::lookup_audit::LookupAudit;
use crate::http::routes::profile_query::ProfileQuery;
use crate::http::server::service::{DirectRoute, ResponseFuture};

/// `Content-Type`, `ETag`, `Cache-Status`, `Age`, `Cache-Control`, `X-Request-Id`, `X-Profile-Key`, two for the rate limit,
/// and four for browsers.
const HEADERS_OF_A_HIT: usize = 13;

/// The path of lookups.
const PATH: &str = "/api/v1/profile";

/// Returns the routes.
pub fn routes(api: Arc<LookupApi>) -> Router {
    Router::new().route(PATH, get(profile).post(post_profile)).with_state(api)
}

/// Returns one customer's profile.
///
/// Instead of the query, a JSON body may have the parameters, in the same form as for POST. Architect flows send it so.
#[utoipa::path(
    get, path = "/api/v1/profile", tag = "lookup",
    params(
        ("tenantId" = String, Query, description = "The tenant"),
        ("customerId" = Option<String>, Query, description = "The customer; exactly one of customerId, phone, email and externalId is given"),
        ("phone" = Option<String>, Query, description = "A phone number of the customer: E.164 with a percent-encoded +, or a tel URI; without + in the country of the tenant"),
        ("email" = Option<String>, Query, description = "An e-mail address of the customer"),
        ("externalId" = Option<String>, Query, description = "The id of the customer in another system"),
        ("externalSource" = Option<String>, Query, description = "The id of that system's external source at Genesys"),
        ("fields" = Option<String>, Query, description = "The fields to return; absent: all that the caller may read"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The profile as JSON, with the fields that the caller may read", content_type = "application/json"),
        (status = 304, description = "The profile still matches `If-None-Match`"),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant, field, or what the customer is looked up by not allowed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such customer", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 410, description = "The customer was deleted", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The caller's rate limit is reached; `Retry-After` has the time to wait", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "Internal error", body = ProblemBody, content_type = "application/problem+json"),
        (status = 502, description = "Genesys sent an unusable answer or refused our credentials", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Genesys or this service cannot answer now; ask Genesys directly. With `code` `audit_unavailable`: the audit cannot record the lookup", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn profile(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    answer(&api, request).await
}

impl DirectRoute for LookupApi {
    fn accepts(&self, request: &Request) -> bool {
        request.uri().path() == PATH && matches!(*request.method(), Method::GET | Method::POST)
    }

    fn answer(&self, request: Request) -> ResponseFuture<'_> {
        Box::pin(answer(self, request))
    }
}

async fn answer(api: &LookupApi, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (headers, query) = (&parts.headers, parts.uri.query());
    let answer =
        async |caller: &Caller, audit: &mut LookupAudit<'_>| api.profile(caller, headers, query, body, audit).await;
    api.audited(headers, query, &Dialect::Problem, answer).await
}

/// Returns one customer's profile, for clients that cannot send a body with GET.
#[utoipa::path(
    post, path = "/api/v1/profile", tag = "lookup",
    request_body(content = ref("#/components/schemas/ProfileRequest"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
)]
pub async fn post_profile(state: State<Arc<LookupApi>>, request: Request) -> Response {
    profile(state, request).await
}

impl LookupApi {
    async fn profile(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        query: Option<&str>,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        // Boxed, so that the future of a lookup without a body stays small.
        let body = if body.is_end_stream() {
            None
        } else {
            Some(Box::pin(body::read(headers, body, self.max_body, &self.bodies)).await?)
        };
        let bytes = body.as_ref().map(|body| &*body.bytes).unwrap_or_default();
        let query = ProfileQuery::parse(query, bytes, |tenant| self.region_for(caller, tenant))?;
        drop(body);
        let (tenant, customer) = (&query.tenant, &query.customer);
        let visible = match authorize(caller, &query) {
            Ok(visible) => visible,
            Err((reason, field)) => {
                audit.denied(reason, tenant, customer);
                return Err(forbidden(field));
            }
        };
        let span = spans::lookup(headers, tenant, &caller.name);
        let (requester, max_age, phases) = (caller.requester(), max_age(caller, headers), audit.looking_up());
        let looking_up = self.lookup.find(tenant, customer, &requester, max_age, phases);
        let answer = looking_up.instrument(span.clone()).await;
        let answer = answer.ok_or_else(|| forbidden("tenantId"))?;
        let result = answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result);
        self.trace(&span, tenant, customer, result);
        let response = match &answer {
            Ok(answer) => match response(headers, answer, visible) {
                Ok((mut response, shown)) => {
                    self.write_headers(response.headers_mut(), caller, answer, tenant, customer);
                    Ok((response, shown))
                }
                Err(error) => {
                    let key =
                        self.hasher.identify(tenant, customer).map(|identity| tracing::field::display(identity.key()));
                    tracing::error!(key, %error, "cannot filter the stored profile");
                    let detail = "the stored profile could not be read";
                    Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail))
                }
            },
            Err(failure) => Err(self.log_failure(failure, tenant, customer, caller)),
        };
        let (response, shown) = match response {
            Ok((response, shown)) => (Ok(response), shown),
            Err(problem) => (Err(problem), DisclosedFields::Nothing),
        };
        audit.allowed(result, shown, tenant, customer);
        response
    }
}

/// Returns the response for an answer, and the fields that it contains.
fn response(
    headers: &HeaderMap,
    answer: &LookupAnswer,
    visible: &FieldSet,
) -> Result<(Response, DisclosedFields), NotAnObject> {
    let problem = |status, code, detail: &str| Problem::new(status, code, detail).into_response();
    Ok(match &answer.outcome {
        LookupOutcome::Found(found) => found_response(headers, found, visible)?,
        LookupOutcome::Absent => {
            (problem(StatusCode::NOT_FOUND, "not_found", "there is no such customer"), DisclosedFields::Nothing)
        }
        LookupOutcome::Deleted => {
            (problem(StatusCode::GONE, "deleted", "the customer was deleted"), DisclosedFields::Nothing)
        }
    })
}

fn found_response(
    headers: &HeaderMap,
    found: &Found,
    visible: &FieldSet,
) -> Result<(Response, DisclosedFields), NotAnObject> {
    let (body, shown) = visible.filter(found.body.expose())?;
    let etag = etag(match visible {
        FieldSet::All => found.validator,
        FieldSet::Only(_) => ProfileBody::new(body.clone()).validator(),
    });
    if if_none_match(headers, &etag) {
        // The answer confirms the fields that the client has.
        return Ok(((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response(), shown));
    }
    let mut response = Response::new(Body::from(body));
    // The capacity fits all headers of a hit, so that the map does not grow.
    let mut headers = HeaderMap::with_capacity(HEADERS_OF_A_HIT);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, etag);
    *response.headers_mut() = headers;
    Ok((response, shown))
}

/// Returns the fields to return. If the caller may not read all requested fields, returns the reason and the field of the
/// request that is denied.
fn authorize<'a>(caller: &'a Caller, query: &'a ProfileQuery) -> Result<&'a FieldSet, (DenialReason, &'static str)> {
    if !caller.may_read(&query.tenant) {
        return Err((DenialReason::Tenant, "tenantId"));
    }
    let by = query.customer.by();
    if !caller.may_look_up_by(by) {
        return Err((DenialReason::LookupBy, by.as_str()));
    }
    match &query.fields {
        None | Some(FieldSet::All) => Ok(&caller.fields),
        Some(fields) if caller.fields.covers(fields) => Ok(fields),
        Some(_) => Err((DenialReason::Fields, "fields")),
    }
}

fn forbidden(field: &str) -> Problem {
    let detail = format!("{field}: not allowed for this caller");
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field(field)
}
