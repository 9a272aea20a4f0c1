//! `POST /api/v1/profiles` and `/api/v1/profiles/prefetch`: many customers of one tenant with one request.
//!
//! The order of checks is that of a single lookup; each customer counts against the caller's rate limit and leaves an audit
//! record of its own. A prefetch discloses nothing, so it leaves a record only if it is denied.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::DenialReason;
use crate::domain::{CustomerQuery, DisclosedFields};
use crate::http::auth::field_set::FieldSet;
use crate::lookup::{LookupAnswer, LookupOutcome};

use crate::http::auth::callers::Caller;
use crate::http::request::body;
use crate::http::response::batch_body::{BatchText, ProfileText};
use crate::http::response::cache_status::cache_status;
use crate::http::response::dialect::Dialect;
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::routes::batch_query::BatchQuery;
use crate::http::routes::lookup_api::LookupApi;
use crate::http::routes::lookup_audit::LookupAudit;

/// The answer to a prefetch.
#[derive(Debug, Serialize, ToSchema)]
pub struct PrefetchBody {
    /// Always `queued`.
    pub status: &'static str,
    /// How many customers were queued; the others found a full queue.
    pub queued: usize,
}

/// Returns the routes.
pub fn routes(api: Arc<LookupApi>) -> Router {
    Router::new()
        .route("/api/v1/profiles", post(profiles))
        .route("/api/v1/profiles/prefetch", post(prefetch))
        .with_state(api)
}

/// Returns the profiles of up to 100 customers: one result for each, in order, with the status and the failure that a single
/// lookup would have. Customers that must be fetched share one request to Genesys.
#[utoipa::path(
    post, path = "/api/v1/profiles", tag = "lookup",
    request_body(content = ref("#/components/schemas/BatchRequest"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "One result for each customer, in order", body = ref("#/components/schemas/BatchAnswer"), content_type = "application/json"),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant, field, or what a customer is looked up by not allowed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The caller's rate limit is reached, or is smaller than the batch: each customer counts", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Too many bytes of requests in progress, or of answers that were not read; retry", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn profiles(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let answer = async |caller: &Caller, audit: &mut LookupAudit<'_>| api.profiles(caller, headers, body, audit).await;
    api.audited(headers, parts.uri.query(), &Dialect::Problem, answer).await
}

/// Fetches up to 100 customers that the cache does not hold, in the background, while no lookup needs the budget.
#[utoipa::path(
    post, path = "/api/v1/profiles/prefetch", tag = "lookup",
    request_body(content = ref("#/components/schemas/BatchRequest"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 202, description = "The customers are queued, as far as the queue has room", body = PrefetchBody),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant, field, or what a customer is looked up by not allowed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The caller's rate limit is reached, or is smaller than the batch: each customer counts", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn prefetch(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let answer = async |caller: &Caller, audit: &mut LookupAudit<'_>| api.prefetch(caller, headers, body, audit).await;
    api.audited(headers, parts.uri.query(), &Dialect::Problem, answer).await
}

impl LookupApi {
    async fn profiles(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let BatchQuery { tenant, customers, fields } = self.authorized(caller, headers, body, audit).await?;
        let many = self.look_up_many(caller, headers, &tenant, customers, audit.looking_up()).await;
        let many = many.ok_or_else(|| forbidden("tenantId"))?;
        let visible = fields.as_ref().filter(|fields| **fields != FieldSet::All).unwrap_or(&caller.fields);
        let results = many.distinct.iter().map(|(customer, answer)| match answer {
            Ok(answer) => {
                let handle = self.handle(caller, answer, &tenant, customer);
                self.result(answer, handle.as_ref(), visible)
            }
            Err(problem) => (failed(problem, None, None), DisclosedFields::Nothing),
        });
        let (results, shown): (Vec<ProfileText>, Vec<DisclosedFields>) = results.unzip();
        let mut text = BatchText::default();
        text.text.extend_from_slice(b"{\"results\":[");
        for (index, number) in many.order.iter().enumerate() {
            if index > 0 {
                text.text.push(b',');
            }
            text.add(&results[*number]);
        }
        text.text.extend_from_slice(b"]}");
        let share = self.reserve(caller, &mut text)?;
        audit.allowed_each(&tenant, many.recorded(&shown));
        Ok(text.into_response(share))
    }

    async fn prefetch(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let BatchQuery { tenant, customers, .. } = self.authorized(caller, headers, body, audit).await?;
        let queued = self.prefetcher.prefetch(&tenant, &caller.name, customers);
        Ok((StatusCode::ACCEPTED, Json(PrefetchBody { status: "queued", queued })).into_response())
    }

    /// Reads a request, counts its customers against the caller's rate limit, and checks what the caller may read.
    async fn authorized(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<BatchQuery, Problem> {
        let body = body::read(headers, body, self.max_body, &self.bodies).await?;
        let query = BatchQuery::parse(&body.bytes, |tenant| self.region_for(caller, tenant))?;
        drop(body);
        audit.admit_more(&self.auth, caller, query.customers.len() - 1)?;
        let denied = if !caller.may_read(&query.tenant) || !self.lookup.knows(&query.tenant) {
            Some((DenialReason::Tenant, "tenantId"))
        } else if let Some(by) = query.customers.iter().map(CustomerQuery::by).find(|by| !caller.may_look_up_by(*by)) {
            Some((DenialReason::LookupBy, by.as_str()))
        } else if query.fields.as_ref().is_some_and(|fields| *fields != FieldSet::All && !caller.fields.covers(fields))
        {
            Some((DenialReason::Fields, "fields"))
        } else {
            None
        };
        match denied {
            None => Ok(query),
            Some((reason, field)) => {
                audit.denied_each(reason, &query.tenant, &query.customers);
                Err(forbidden(field))
            }
        }
    }

    /// Returns the result of one lookup, and the fields that it contains.
    fn result(
        &self,
        answer: &LookupAnswer,
        handle: Option<&HeaderValue>,
        visible: &FieldSet,
    ) -> (ProfileText, DisclosedFields) {
        let cache_status = cache_status(answer);
        let (cache_status, handle) = (cache_status.to_str().ok(), handle.and_then(|handle| handle.to_str().ok()));
        let problem = |status, code, detail: &str| Problem::new(status, code, detail);
        let problem = match &answer.outcome {
            LookupOutcome::Found(found) => match visible.filter(found.body.expose()) {
                Ok((profile, shown)) => {
                    let age = self.clock.now().since(answer.since).as_secs();
                    let (cache_status, handle) = (cache_status.unwrap_or_default(), handle.unwrap_or_default());
                    // Neither has a character that JSON escapes.
                    let before = format!(
                        "{{\"status\":200,\"cacheStatus\":\"{cache_status}\",\"profileKey\":\"{handle}\",\"age\":{age},\"profile\":",
                    );
                    return (ProfileText { before: before.into(), profile, after: b"}" }, shown);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot filter a stored profile of a batch");
                    problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the stored profile could not be read")
                }
            },
            LookupOutcome::Absent => problem(StatusCode::NOT_FOUND, "not_found", "there is no such customer"),
            LookupOutcome::Deleted => problem(StatusCode::GONE, "deleted", "the customer was deleted"),
        };
        (failed(&problem, cache_status, handle), DisclosedFields::Nothing)
    }
}

/// Returns the result of a lookup that has no profile.
fn failed(problem: &Problem, cache_status: Option<&str>, profile_key: Option<&str>) -> ProfileText {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct FailedResult<'a> {
        status: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_status: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        profile_key: Option<&'a str>,
        code: &'a str,
        detail: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    }
    let (status, code, detail) = (problem.status().as_u16(), problem.code(), problem.detail());
    let retry_after = problem.retry_after_seconds();
    let failed = FailedResult { status, cache_status, profile_key, code, detail, retry_after };
    // Strings and numbers always serialize.
    ProfileText { before: serde_json::to_vec(&failed).unwrap_or_default(), ..ProfileText::default() }
}

fn forbidden(field: &str) -> Problem {
    let detail = format!("{field}: not allowed for this caller");
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field(field)
}
