//! `GET` and `POST /api/v1/profile`: one customer's profile, for Architect and agent desktops.
//!
//! The order of checks: authentication (401), rate limit (429), the request itself (400, 413, 415), authorization (403);
//! then the lookup. Fields are filtered after the lookup; the authorization is never cached.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use tracing::Instrument;

use crate::audit::DenialReason;
use crate::domain::{CustomerId, DisclosedFields, ProfileBody, TenantId};
use crate::http::auth::field_set::{FieldSet, NotAnObject};
use crate::lookup::{LookupAnswer, LookupOutcome};
use crate::metrics::LookupResult;
use crate::spans;
use crate::store::Found;

use crate::http::auth::callers::Caller;
use crate::http::auth::profile_handles::PROFILE_KEY;
use crate::http::request::{body, json, query};
use crate::http::response::cache_status;
use crate::http::response::dialect::Dialect;
use crate::http::response::etag::{etag, if_none_match};
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::routes::lookup_api::LookupApi;
use crate::http::routes::lookup_audit::LookupAudit;
use crate::http::server::service::{DirectRoute, ResponseFuture};

/// `Content-Type`, `ETag`, `Cache-Status`, `Age`, `Cache-Control`, `X-Request-Id`, `X-Profile-Key`, two for the rate limit,
/// and four for browsers.
const HEADERS_OF_A_HIT: usize = 13;

/// The maximum number of fields that a request may name: its audit record shows them.
const MAX_FIELDS: usize = 64;

/// The path of lookups.
const PATH: &str = "/api/v1/profile";

/// The JSON body of a lookup.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRequest {
    customer_id: Option<String>,
    tenant_id: Option<String>,
    /// The fields to return, separated by commas; absent: all that the caller may read.
    fields: Option<String>,
}

/// A parsed lookup.
#[derive(Debug)]
struct ProfileQuery {
    tenant: TenantId,
    customer: CustomerId,
    fields: Option<FieldSet>,
}

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
        ("customerId" = String, Query, description = "The customer"),
        ("tenantId" = String, Query, description = "The tenant"),
        ("fields" = Option<String>, Query, description = "The fields to return; absent: all that the caller may read"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The profile as JSON, with the fields that the caller may read", content_type = "application/json"),
        (status = 304, description = "The profile still matches `If-None-Match`"),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant or field not allowed", body = ProblemBody, content_type = "application/problem+json"),
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
    let mut audit = api.begin_audit(&parts.headers);
    let answer = match audit.admit(&api.auth) {
        Ok(caller) => api.profile(&caller, &parts.headers, parts.uri.query(), body, &mut audit).await,
        Err(problem) => Err(problem),
    };
    audit.end(answer, &Dialect::Problem).await
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
        let query = ProfileQuery::parse(query, body.as_ref().map(|body| &*body.bytes).unwrap_or_default())?;
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
        let (requester, phases) = (caller.requester(), audit.looking_up());
        let looking_up = self.lookup.get_with_phases(tenant, customer, &requester, phases);
        let answer = looking_up.instrument(span.clone()).await;
        let answer = answer.ok_or_else(|| forbidden("tenantId"))?;
        let result = answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result);
        self.trace(&span, tenant, customer, result);
        let response = match &answer {
            Ok(answer) => self.response(headers, answer, visible).map_err(|error| {
                let key = self.hasher.identify(tenant, customer).key();
                tracing::error!(%key, %error, "cannot filter the stored profile");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the stored profile could not be read")
            }),
            Err(failure) => Err(self.log_failure(failure, tenant, customer, caller)),
        };
        let (response, shown) = match response {
            Ok((mut response, shown)) => {
                response.headers_mut().insert(PROFILE_KEY, self.handle(caller, &answer, tenant, customer));
                (Ok(response), shown)
            }
            Err(problem) => (Err(problem), DisclosedFields::Nothing),
        };
        audit.allowed(result, shown, tenant, customer);
        response
    }

    /// Returns the response for an answer, and the fields that it contains.
    fn response(
        &self,
        headers: &HeaderMap,
        answer: &LookupAnswer,
        visible: &FieldSet,
    ) -> Result<(Response, DisclosedFields), NotAnObject> {
        let problem = |status, code, detail: &str| Problem::new(status, code, detail).into_response();
        let (mut response, shown) = match &answer.outcome {
            LookupOutcome::Found(found) => found_response(headers, found, visible)?,
            LookupOutcome::Absent => {
                (problem(StatusCode::NOT_FOUND, "not_found", "there is no such customer"), DisclosedFields::Nothing)
            }
            LookupOutcome::Deleted => {
                (problem(StatusCode::GONE, "deleted", "the customer was deleted"), DisclosedFields::Nothing)
            }
        };
        cache_status::write_headers(response.headers_mut(), answer, self.clock.now());
        Ok((response, shown))
    }
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

impl ProfileQuery {
    /// Parses the query and the body. A parameter that is in both must have the same value.
    fn parse<'q>(query: Option<&'q str>, body: &[u8]) -> Result<Self, Problem> {
        let [customer, tenant, fields] = query::parse(query.unwrap_or_default(), ["customerId", "tenantId", "fields"])?;
        let body: ProfileRequest = if body.is_empty() { ProfileRequest::default() } else { json::parse(body)? };
        let either = |name: &'static str, query: Option<Cow<'q, str>>, body: Option<String>| match (query, body) {
            (Some(one), Some(other)) if one != other => Err(Problem::bad_field(name, "query and body disagree")),
            (one, other) => Ok(one.or(other.map(Cow::Owned))),
        };
        let tenant = either("tenantId", tenant, body.tenant_id)?;
        let customer = either("customerId", customer, body.customer_id)?;
        let fields = either("fields", fields, body.fields)?;
        let missing = |name| Problem::bad_field(name, "is missing");
        let tenant = tenant.ok_or_else(|| missing("tenantId"))?;
        let customer = customer.ok_or_else(|| missing("customerId"))?;
        Ok(Self {
            tenant: tenant.parse().map_err(|error| Problem::bad_field("tenantId", error))?,
            customer: customer.parse().map_err(|error| Problem::bad_field("customerId", error))?,
            fields: fields.map(|fields| requested(&fields)).transpose()?,
        })
    }
}

/// Parses the fields of a request.
fn requested(fields: &str) -> Result<FieldSet, Problem> {
    if fields.split(',').nth(MAX_FIELDS).is_some() {
        return Err(Problem::bad_field("fields", format!("must name at most {MAX_FIELDS} fields")));
    }
    FieldSet::parse(fields.split(',').map(str::trim)).map_err(|error| Problem::bad_field("fields", error))
}

/// Returns the fields to return. If the caller may not read all requested fields, returns the reason and the field of the
/// request that is denied.
fn authorize<'a>(caller: &'a Caller, query: &'a ProfileQuery) -> Result<&'a FieldSet, (DenialReason, &'static str)> {
    if !caller.may_read(&query.tenant) {
        return Err((DenialReason::Tenant, "tenantId"));
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
