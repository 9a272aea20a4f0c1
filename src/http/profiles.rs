//! `GET` and `POST /api/v1/profile`: one customer's profile, for Architect and agent desktops.
//!
//! The order of judgements: who calls (401), what is asked (400, 413, 415), whether this caller may
//! (403); only then the lookup. Fields are filtered after it; the decision is never cached.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::clock::SharedClock;
use crate::domain::{CustomerId, Key, KeyHasher, TenantId, Timestamp};
use crate::lookup::visibility::FieldSet;
use crate::lookup::{Answer, Failure, How, Lookup, Outcome, Over, StaleReason};
use crate::metrics::{Door, Metrics};
use crate::store::Found;
use crate::upstream;

use super::callers::{Caller, Callers};
use super::error::{Problem, ProblemBody};
use super::{body, json, query};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Content type, `ETag`, Cache-Status, Age, Cache-Control, X-Request-Id, and those that the server adds.
const HEADERS_OF_A_HIT: usize = 10;

/// What the route works with.
#[derive(Debug)]
pub struct Profiles {
    /// The flow.
    pub lookup: Lookup,
    /// Who may call.
    pub callers: Callers,
    /// How customers become keys, for logs.
    pub hasher: KeyHasher,
    /// The wall clock, for `Age`.
    pub clock: SharedClock,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// The largest request body, in bytes.
    pub max_body: usize,
}

/// A lookup, as a JSON body or as query parameters.
#[derive(Clone, Default, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ProfileRequest {
    /// The customer: 1–256 bytes of UTF-8, no control characters, none of `/ \ ? # %`, not `.` or `..`.
    pub customer_id: Option<String>,
    /// The tenant: 1–64 characters of `[A-Za-z0-9._-]`.
    pub tenant_id: Option<String>,
    /// The fields to answer with, separated by commas; dots lead into objects. Absent: all that the
    /// caller may see.
    pub fields: Option<String>,
}

impl fmt::Debug for ProfileRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProfileRequest([redacted])")
    }
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
    Router::new().route("/api/v1/profile", get(profile).post(post_profile)).with_state(profiles)
}

/// Returns one customer's profile.
#[utoipa::path(
    get, path = "/api/v1/profile", tag = "lookup", params(ProfileRequest),
    request_body(content = Option<ProfileRequest>, description = "Instead of the query, or agreeing with it."),
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
        (status = 500, description = "Our fault", body = ProblemBody, content_type = "application/problem+json"),
        (status = 502, description = "Genesys answered with something unusable, or refused us", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Genesys or this service cannot answer now; ask Genesys directly", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn profile(State(profiles): State<Arc<Profiles>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match profiles.answer(&parts.headers, parts.uri.query(), body).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

/// Returns one customer's profile; for clients that cannot send a body with GET.
#[utoipa::path(
    post, path = "/api/v1/profile", tag = "lookup", params(ProfileRequest),
    request_body(content = Option<ProfileRequest>, description = "Instead of the query, or agreeing with it."),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "As for GET", content_type = "application/json"),
        (status = "default", description = "As for GET", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn post_profile(state: State<Arc<Profiles>>, request: Request) -> Response {
    profile(state, request).await
}

impl Profiles {
    async fn answer(&self, headers: &HeaderMap, query: Option<&str>, body: Body) -> Result<Response, Problem> {
        let caller = self.callers.authenticate(headers).inspect_err(|_| {
            self.metrics.auth_failures.with(Door::Lookup).increment(1);
        })?;
        let body = body::read(headers, body, self.max_body).await?;
        let asked = asked(query, &body)?;
        let visible = authorize(caller, &asked)?;
        let answer = self.lookup.get(&asked.tenant, &asked.customer).await.ok_or_else(|| forbidden("tenantId"))?;
        match answer {
            Ok(answer) => self.respond(headers, &answer, visible),
            Err(failure) => {
                let key = self.hasher.identify(&asked.tenant, &asked.customer).key();
                Err(refuse(&failure, &key, caller))
            }
        }
    }

    fn respond(&self, headers: &HeaderMap, answer: &Answer, visible: &FieldSet) -> Result<Response, Problem> {
        let mut response = match &answer.outcome {
            Outcome::Found(found) => found_response(headers, found, visible)?,
            Outcome::Absent => {
                Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such customer").into_response()
            }
            Outcome::Deleted => Problem::new(StatusCode::GONE, "deleted", "the customer was deleted").into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_STATUS, cache_status(answer));
        headers.insert(header::AGE, HeaderValue::from(age(self.clock.now(), answer.since)));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        Ok(response)
    }
}

fn found_response(headers: &HeaderMap, found: &Found, visible: &FieldSet) -> Result<Response, Problem> {
    let etag = etag(found, visible);
    if names(headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let body: Bytes = visible.filter(found.body.expose()).map_err(|error| {
        tracing::error!(%error, "a profile could not be filtered");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the stored profile could not be read")
    })?;
    let mut response = Response::new(Body::from(body));
    // Room for every header that a hit carries, so that the map is made once.
    let mut headers = HeaderMap::with_capacity(HEADERS_OF_A_HIT);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, etag);
    *response.headers_mut() = headers;
    Ok(response)
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

/// Returns the fields to answer with: those asked for, if the caller may see all of them.
fn authorize<'a>(caller: &'a Caller, asked: &'a Asked) -> Result<&'a FieldSet, Problem> {
    if !caller.may_read(&asked.tenant) {
        return Err(forbidden("tenantId"));
    }
    match &asked.fields {
        None | Some(FieldSet::All) => Ok(&caller.fields),
        Some(fields) if caller.fields.covers(fields) => Ok(fields),
        Some(_) => Err(forbidden("fields")),
    }
}

fn forbidden(field: &str) -> Problem {
    let detail = format!("{field}: not allowed for this caller");
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field(field)
}

/// Logs a failed lookup and says what the caller is told: the table of INTERFACE.md.
fn refuse(failure: &Failure, key: &Key, caller: &Caller) -> Problem {
    let (status, code) = match failure {
        Failure::Upstream(upstream::Error::Unusable { .. }) | Failure::MergeLoop => {
            (StatusCode::BAD_GATEWAY, "upstream_unusable")
        }
        Failure::Upstream(upstream::Error::Denied { .. }) => (StatusCode::BAD_GATEWAY, "upstream_denied"),
        Failure::Upstream(upstream::Error::Privileges { .. }) => (StatusCode::BAD_GATEWAY, "privileges"),
        Failure::Upstream(upstream::Error::Throttled { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_throttled"),
        Failure::Upstream(upstream::Error::BudgetSpent { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "budget_spent"),
        Failure::Upstream(upstream::Error::BreakerOpen { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "breaker_open"),
        Failure::Upstream(upstream::Error::Failed { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_failed"),
        Failure::Upstream(upstream::Error::Unreachable) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unreachable"),
        Failure::Upstream(upstream::Error::Timeout) => (StatusCode::SERVICE_UNAVAILABLE, "upstream_timeout"),
        Failure::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
        Failure::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    tracing::warn!(%key, caller = %caller.name, code, error = %failure, "lookup failed");
    let problem = Problem::new(status, code, failure.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(failure.retry_after()) } else { problem }
}

/// Tells how the answer was come by (RFC 9211).
fn cache_status(answer: &Answer) -> HeaderValue {
    let mut text = String::with_capacity(64);
    text.push_str("profile-edge");
    // Writing to a String cannot fail.
    let _ = match answer.how {
        How::Hit { remaining: Some(remaining) } => write!(text, "; hit; ttl={}", remaining.as_secs()),
        How::Hit { remaining: None } => write!(text, "; hit"),
        How::Stale { since, .. } => write!(text, "; hit; ttl=-{}", since.as_secs()),
        How::Fetched { over, stored } => write!(text, "; fwd={}{}", fwd(over), if stored { "; stored" } else { "" }),
        How::Collapsed { over } => write!(text, "; fwd={}; collapsed", fwd(over)),
        How::Bypass => write!(text, "; fwd=bypass"),
    };
    if let Some(detail) = detail(answer) {
        let _ = write!(text, "; detail={detail}");
    }
    // Every part is a constant or a number, so it is a valid header value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("profile-edge"))
}

fn detail(answer: &Answer) -> Option<&'static str> {
    match (&answer.outcome, answer.how) {
        (_, How::Bypass) => Some("store-unavailable"),
        (_, How::Stale { why: StaleReason::Error, .. }) => Some("stale-if-error"),
        (_, How::Stale { why: StaleReason::SoftTimeout, .. }) => Some("soft-timeout"),
        (Outcome::Deleted, _) => Some("tombstone"),
        (Outcome::Absent, _) if answer.unsettled => Some("negative-unsettled"),
        (Outcome::Absent, _) => Some("negative"),
        (Outcome::Found(_), _) => answer.unsettled.then_some("unsettled"),
    }
}

fn fwd(over: Over) -> &'static str {
    match over {
        Over::Miss => "miss",
        Over::Stale => "stale",
    }
}

fn age(now: Timestamp, since: Timestamp) -> u64 {
    now.since(since).as_secs()
}

/// Makes a strong validator: of the stored body, and of the fields that are seen of it.
fn etag(found: &Found, visible: &FieldSet) -> HeaderValue {
    let mut text = String::with_capacity(48);
    text.push('"');
    text.push_str(&hex::encode(found.validator));
    if let Some(fingerprint) = visible.fingerprint() {
        text.push('-');
        text.push_str(&fingerprint);
    }
    text.push('"');
    // Hex digits, a hyphen and quotes are a valid header value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
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
