//! `POST /api/v2/externalcontacts/bulk/contacts`: many contacts in the form of Genesys, for unmodified SDKs.
//!
//! As the route of one contact: contacts are verbatim, so only a caller that may read every field is answered; a failure of
//! the whole request is Genesys' `ErrorBody`, and one contact fails in its own result.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::audit::DenialReason;
use crate::domain::{CustomerId, CustomerQuery, LookupBy};
use crate::http::auth::field_set::FieldSet;
use crate::lookup::{LookupAnswer, LookupOutcome};

use crate::http::auth::callers::Caller;
use crate::http::request::{body, json};
use crate::http::response::batch_body::{BatchText, ProfileText};
use crate::http::response::dialect::{Dialect, ErrorBody};
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::{LookupApi, MAX_BATCH, not_authorized, shown, tenant_of};
use crate::http::routes::lookup_audit::LookupAudit;
use crate::http::routes::many_answers::ManyAnswers;

/// Genesys' `BulkIdsRequest`.
#[derive(Deserialize)]
struct BulkIdsRequest {
    entities: Vec<BulkEntity>,
}

#[derive(Deserialize)]
struct BulkEntity {
    id: String,
}

/// Returns the routes.
pub fn routes(api: Arc<LookupApi>) -> Router {
    Router::new().route("/api/v2/externalcontacts/bulk/contacts", post(bulk_contacts)).with_state(api)
}

/// Returns many contacts, as Genesys does.
#[utoipa::path(
    post, path = "/api/v2/externalcontacts/bulk/contacts", tag = "genesys",
    params(("X-Tenant-Id" = Option<String>, Header, description = "The tenant, for a caller with more than one")),
    request_body(content = ref("#/components/schemas/BulkIdsRequest"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "One result for each id, in order", content_type = "application/json", body = serde_json::Value),
        (status = 400, description = "An id is not a UUID, there are too many, or no tenant is given", body = ErrorBody),
        (status = 401, description = "Missing or wrong key or token", body = ErrorBody),
        (status = 403, description = "The caller may not read this tenant or not all fields", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
        (status = 429, description = "The caller's rate limit is reached: each id counts", body = ErrorBody),
        (status = 503, description = "Too many bytes of requests in progress, or of answers that were not read; retry", body = ErrorBody),
    ),
)]
pub(in crate::http) async fn bulk_contacts(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    let dialect = Dialect::of(&request);
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let answer =
        async |caller: &Caller, audit: &mut LookupAudit<'_>| api.bulk_contacts(caller, headers, body, audit).await;
    api.audited(headers, parts.uri.query(), &dialect, answer).await
}

impl LookupApi {
    async fn bulk_contacts(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let body = body::read(headers, body, self.max_body, &self.bodies).await?;
        let request: BulkIdsRequest = json::parse(&body.bytes)?;
        drop(body);
        let customers = request.customers()?;
        let tenant = tenant_of(caller, headers)?;
        audit.admit_more(&self.auth, caller, customers.len() - 1)?;
        let queries: Vec<_> = customers.iter().cloned().map(CustomerQuery::Id).collect();
        let reason = match caller.fields {
            FieldSet::All if !caller.may_read(&tenant) => Some(DenialReason::Tenant),
            FieldSet::All if !caller.may_look_up_by(LookupBy::CustomerId) => Some(DenialReason::LookupBy),
            FieldSet::All => None,
            FieldSet::Only(_) => Some(DenialReason::Fields),
        };
        if let Some(reason) = reason {
            audit.denied_each(reason, &tenant, &queries);
            return Err(not_authorized());
        }
        let many = self.look_up_many(caller, headers, &tenant, queries, audit.looking_up()).await;
        let many = many.ok_or_else(not_authorized)?;
        let mut text = write_answers(&customers, &many, headers);
        let share = self.reserve(caller, &mut text)?;
        let shown: Vec<_> = many.distinct.iter().map(|(_, answer)| shown(answer)).collect();
        audit.allowed_each(&tenant, many.recorded(&shown));
        Ok(text.into_response(share))
    }
}

impl BulkIdsRequest {
    fn customers(&self) -> Result<Vec<CustomerId>, Problem> {
        if !(1..=MAX_BATCH).contains(&self.entities.len()) {
            return Err(Problem::bad_field("entities", format!("must have 1 to {MAX_BATCH} elements")));
        }
        let parse = |(index, entity): (usize, &BulkEntity)| {
            let customer = entity.id.parse().ok().filter(CustomerId::is_uuid);
            customer.ok_or_else(|| Problem::bad_field(format!("entities[{index}].id"), "must be a UUID"))
        };
        self.entities.iter().enumerate().map(parse).collect()
    }
}

/// Writes Genesys' `BulkFetchContactsResponse`.
fn write_answers(customers: &[CustomerId], many: &ManyAnswers, headers: &HeaderMap) -> BatchText {
    let dialect = Dialect::of_headers(headers);
    let (mut text, mut failed) = (BatchText::default(), Vec::new());
    text.text.extend_from_slice(b"{\"results\":[");
    for (index, (customer, number)) in customers.iter().zip(&many.order).enumerate() {
        let separator = if index > 0 { "," } else { "" };
        // A UUID has no character that JSON escapes.
        let mut before = format!("{separator}{{\"id\":\"{}\",", customer.expose());
        let problem = match &many.distinct[*number].1 {
            Ok(LookupAnswer { outcome: LookupOutcome::Found(found), .. }) => {
                before.push_str("\"success\":true,\"status\":200,\"entity\":");
                let profile = found.body.expose().clone();
                text.add(&ProfileText { before: before.into(), profile, after: b"}" });
                continue;
            }
            Ok(_) => Problem::new(StatusCode::NOT_FOUND, "not_found", ""),
            Err(problem) => problem.clone(),
        };
        failed.push(index);
        let error = dialect.error_body(problem);
        let is_retryable = error.status == 429 || error.status == 503;
        let entity = json!({ "id": customer.expose() });
        let error = json!({
            "message": error.message, "code": error.code, "status": error.status, "retryable": is_retryable,
            "entity": entity, "details": [],
        });
        let status = &error["status"];
        text.text.extend_from_slice(before.as_bytes());
        text.text.extend_from_slice(format!("\"success\":false,\"status\":{status},\"error\":{error}}}").as_bytes());
    }
    let end = format!("],\"errorCount\":{},\"errorIndexes\":{}}}", failed.len(), json!(failed));
    text.text.extend_from_slice(end.as_bytes());
    text
}
