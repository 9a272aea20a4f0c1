//! `GET` and `POST /api/v1/profile`: one customer's profile, for Architect and agent desktops.
//!
//! The order of judgements: who calls (401), whether it calls too often (429), what is asked (400, 413, 415),
//! whether this caller may (403); only then the lookup. Fields are filtered after it; the decision is never cached.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tracing::{Instrument, Span};

use crate::audit::{Audit, Reason};
use crate::clock::SharedClock;
use crate::domain::{CustomerId, KeyHasher, Shown, TenantId};
use crate::http::auth::field_set::{FieldSet, NotAnObject};
use crate::lookup::{Answer, Failure, Lookup, Outcome};
use crate::metrics::LookupResult;
use crate::spans;
use crate::store::Found;

use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::callers::Caller;
use crate::http::request::{body, json, query};
use crate::http::response::cache_status;
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::routes::lookup_audit::LookupAudit;

/// Content type, `ETag`, Cache-Status, Age, Cache-Control, X-Request-Id, the two of the caller's rate, and the four for
/// browsers.
const HEADERS_OF_A_HIT: usize = 12;

/// Where lookups are asked for.
pub(in crate::http) const PATH: &str = "/api/v1/profile";

/// What the routes of lookups work with.
#[derive(Debug)]
pub struct Profiles {
    /// The flow.
    pub lookup: Lookup,
    /// Who may call.
    pub door: Arc<CallerAuth>,
    /// Where lookups are recorded.
    pub audit: Audit,
    /// How customers become keys, for logs and the audit.
    pub hasher: KeyHasher,
    /// The wall clock, for `Age`.
    pub clock: SharedClock,
    /// The largest request body, in bytes.
    pub max_body: usize,
}

/// A lookup, as a JSON body or as query parameters.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRequest {
    customer_id: Option<String>,
    tenant_id: Option<String>,
    /// The fields to answer with, separated by commas; absent: all that the caller may see.
    fields: Option<String>,
}

/// A lookup that has been understood.
#[derive(Debug)]
struct Asked {
    tenant: TenantId,
    customer: CustomerId,
    fields: Option<FieldSet>,
}

/// Makes the routes.
pub fn routes(profiles: Arc<Profiles>) -> Router {
    Router::new().route(PATH, get(profile).post(post_profile)).with_state(profiles)
}

/// Returns one customer's profile.
///
/// What is asked may stand in a JSON body in place of the query, as Architect flows send it, in the form that
/// POST takes.
#[utoipa::path(
    get, path = "/api/v1/profile", tag = "lookup",
    params(
        ("customerId" = String, Query, description = "The customer"),
        ("tenantId" = String, Query, description = "The tenant"),
        ("fields" = Option<String>, Query, description = "The fields to answer with; absent: all that the caller may see"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The profile's JSON, only the fields this caller may see", content_type = "application/json"),
        (status = 304, description = "The profile that `If-None-Match` names is still current"),
        (status = 400, description = "Malformed; `field` says where", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "No or wrong key", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant or field not allowed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such customer", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 410, description = "The customer was deleted", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Over the caller's rate; `Retry-After` says when to come again", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "Our fault", body = ProblemBody, content_type = "application/problem+json"),
        (status = 502, description = "Genesys answered with something unusable, or refused us", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Genesys or this service cannot answer now; ask Genesys directly. With `code` `audit_unavailable`: what cannot be recorded is not answered", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn profile(State(profiles): State<Arc<Profiles>>, request: Request) -> Response {
    answer(&profiles, request).await
}

/// Answers a request that stands on [`PATH`], by GET or POST.
pub(in crate::http) async fn answer(profiles: &Profiles, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut trail = LookupAudit::begin(profiles, &parts.headers);
    let (answer, allowance) = match trail.admit() {
        Err(problem) => (Err(problem), None),
        Ok(admitted) => {
            let caller = &admitted.caller;
            let answer = profiles.answer(caller, &parts.headers, parts.uri.query(), body, &mut trail).await;
            (answer, admitted.allowance)
        }
    };
    let mut response = trail.end(answer).await.unwrap_or_else(Problem::into_response);
    if let Some(allowance) = allowance {
        allowance.show(response.headers_mut());
    }
    response
}

/// Returns one customer's profile; for clients that cannot send a body with GET.
#[utoipa::path(
    post, path = "/api/v1/profile", tag = "lookup",
    request_body(content = ref("#/components/schemas/ProfileRequest"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
)]
pub async fn post_profile(state: State<Arc<Profiles>>, request: Request) -> Response {
    profile(state, request).await
}

impl Profiles {
    async fn answer(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        query: Option<&str>,
        body: Body,
        trail: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        // In a box, so that lookups without a body do not carry the room for reading one.
        let body = if body.is_end_stream() {
            Bytes::new()
        } else {
            Box::pin(body::read(headers, body, self.max_body)).await?
        };
        let asked = asked(query, &body)?;
        let (tenant, customer) = (&asked.tenant, &asked.customer);
        let visible = match authorize(caller, &asked) {
            Ok(visible) => visible,
            Err((reason, field)) => {
                trail.denied(reason, tenant, customer);
                return Err(forbidden(field));
            }
        };
        let span = spans::lookup(headers, tenant, &caller.name);
        let answer = self.lookup.get(tenant, customer).instrument(span.clone()).await;
        let answer = answer.ok_or_else(|| forbidden("tenantId"))?;
        let result = answer.as_ref().map_or(LookupResult::Error, Answer::result);
        self.trace(&span, tenant, customer, result);
        let told = match &answer {
            Ok(answer) => self.tell(headers, answer, visible).map_err(|error| {
                let key = self.hasher.identify(tenant, customer).key();
                tracing::error!(%key, %error, "a profile could not be filtered");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the stored profile could not be read")
            }),
            Err(failure) => Err(self.refuse(failure, tenant, customer, caller)),
        };
        let (response, shown) = match told {
            Ok((response, shown)) => (Ok(response), shown),
            Err(problem) => (Err(problem), Shown::Nothing),
        };
        trail.allowed(result, shown, tenant, customer);
        response
    }

    /// Makes the response to an answer, and says what of the profile is in it.
    fn tell(&self, headers: &HeaderMap, answer: &Answer, visible: &FieldSet) -> Result<(Response, Shown), NotAnObject> {
        let problem = |status, code, detail: &str| Problem::new(status, code, detail).into_response();
        let (mut response, shown) = match &answer.outcome {
            Outcome::Found(found) => found_response(headers, found, visible)?,
            Outcome::Absent => {
                (problem(StatusCode::NOT_FOUND, "not_found", "there is no such customer"), Shown::Nothing)
            }
            Outcome::Deleted => (problem(StatusCode::GONE, "deleted", "the customer was deleted"), Shown::Nothing),
        };
        cache_status::label(response.headers_mut(), answer, self.clock.now());
        Ok((response, shown))
    }

    /// Records how a lookup ended.
    pub(in crate::http) fn trace(&self, span: &Span, tenant: &TenantId, customer: &CustomerId, result: LookupResult) {
        spans::looked_up(span, result, || self.hasher.identify(tenant, customer).key());
    }

    /// Logs a failed lookup and says what the caller is told.
    pub(in crate::http) fn refuse(
        &self,
        failure: &Failure,
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

fn found_response(headers: &HeaderMap, found: &Found, visible: &FieldSet) -> Result<(Response, Shown), NotAnObject> {
    let etag = etag(found, visible);
    if names(headers, &etag) {
        return Ok(((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response(), Shown::Nothing));
    }
    let (body, shown) = visible.show(found.body.expose())?;
    let mut response = Response::new(Body::from(body));
    // Room for every header that a hit carries, so that the map is made once.
    let mut headers = HeaderMap::with_capacity(HEADERS_OF_A_HIT);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, etag);
    *response.headers_mut() = headers;
    Ok((response, shown))
}

/// Reads what is asked from the query and the body, which must agree where both tell.
fn asked<'q>(query: Option<&'q str>, body: &Bytes) -> Result<Asked, Problem> {
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
    Ok(Asked {
        tenant: tenant.parse().map_err(|error| Problem::bad_field("tenantId", error))?,
        customer: customer.parse().map_err(|error| Problem::bad_field("customerId", error))?,
        fields: match fields {
            None => None,
            Some(fields) => Some(
                FieldSet::parse(fields.split(',').map(str::trim))
                    .map_err(|error| Problem::bad_field("fields", error))?,
            ),
        },
    })
}

/// Returns the fields to answer with: those asked for, if the caller may see all of them; else what it may not have,
/// and which field of the request asks for that.
fn authorize<'a>(caller: &'a Caller, asked: &'a Asked) -> Result<&'a FieldSet, (Reason, &'static str)> {
    if !caller.may_read(&asked.tenant) {
        return Err((Reason::Tenant, "tenantId"));
    }
    match &asked.fields {
        None | Some(FieldSet::All) => Ok(&caller.fields),
        Some(fields) if caller.fields.covers(fields) => Ok(fields),
        Some(_) => Err((Reason::Fields, "fields")),
    }
}

fn forbidden(field: &str) -> Problem {
    let detail = format!("{field}: not allowed for this caller");
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field(field)
}

/// Makes a strong validator: of the stored body, and of the fields that are seen of it.
fn etag(found: &Found, visible: &FieldSet) -> HeaderValue {
    const DIGITS: usize = 32;
    let mut plain = [b'"'; DIGITS + 2];
    // Sixteen bytes always fit 32 digits, so the encoding cannot fail.
    let _ = hex::encode_to_slice(found.validator, &mut plain[1..=DIGITS]);
    let tag = match visible.fingerprint() {
        None => HeaderValue::from_bytes(&plain),
        Some(fingerprint) => {
            let mut text = plain[..=DIGITS].to_vec();
            text.push(b'-');
            text.extend_from_slice(fingerprint.as_bytes());
            text.push(b'"');
            HeaderValue::try_from(text)
        }
    };
    // Hex digits, a hyphen and quotes are a valid header value.
    tag.unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Tells whether `If-None-Match` names a validator (RFC 9110 section 13.1.2, weak comparison).
fn names(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let etag = etag.as_bytes();
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|candidate| candidate == b"*" || candidate.strip_prefix(b"W/").unwrap_or(candidate) == etag)
    })
}
