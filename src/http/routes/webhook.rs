//! The webhooks: where Genesys, and whatever passes its events on, posts them.
//!
//! Answers in this order of precedence: 404 unknown tenant; 413, 415; 401; 400; 403; 503 with Retry-After;
//! 202. `202` means durable.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::{Audit, DeniedWebhook, Reason, Record};
use crate::domain::TenantId;
use crate::ingest::malformed::Malformed;
use crate::ingest::{Accepted, Disposition, Expected, Ingest, Refusal, shapes};

use crate::http::request::body;
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::server::service::REQUEST_ID;

/// What the routes work with.
#[derive(Debug)]
pub(in crate::http) struct Webhooks {
    ingest: Arc<Ingest>,
    audit: Audit,
    max_body: usize,
}

/// The answer to an accepted request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedBody {
    /// `queued`, or `ignored` when nothing in the request is of interest.
    pub status: &'static str,
    /// The event's id, when it is queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Why it is of no interest, when it is ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The answer to each event of an array, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub events: Option<Vec<AcceptedBody>>,
}

/// Makes the routes; `max_body` is the largest body, in bytes.
pub fn routes(ingest: Arc<Ingest>, audit: Audit, max_body: usize) -> Router {
    Router::new()
        .route("/webhook/customer-updated", post(customer_updated))
        .route("/webhooks/{tenant_id}", post(tenant_webhook))
        .with_state(Arc::new(Webhooks { ingest, audit, max_body }))
}

/// Takes an event in the flat form.
#[utoipa::path(
    post, path = "/webhook/customer-updated", tag = "events",
    request_body(content = ref("#/components/schemas/FlatEventOfTenant"), content_type = "application/json"),
    security(("sourceKey" = []), ("sourceBasic" = []), ("sourceBearer" = []), ("hubSignature" = []), ("standardWebhooks" = [])),
    responses(
        (status = 202, description = "Durable, or of no interest", body = AcceptedBody),
        (status = 400, description = "Malformed; `field` says where", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "No or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "Unknown tenant", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Could not be made durable; come again", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn customer_updated(State(webhooks): State<Arc<Webhooks>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let body = body::read(&parts.headers, body, webhooks.max_body).await?;
        let tenant = shapes::read_tenant(&body).map_err(malformed)?;
        webhooks.take(&tenant, Expected::Flat, &parts.headers, &body).await
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

/// Takes events of one tenant in any shape.
#[utoipa::path(
    post, path = "/webhooks/{tenant_id}", tag = "events",
    params(("tenant_id" = String, Path, description = "The tenant")),
    request_body(content = ref("#/components/schemas/PostedEvents"), content_type = "application/json"),
    security(("sourceKey" = []), ("sourceBasic" = []), ("sourceBearer" = []), ("hubSignature" = []), ("standardWebhooks" = [])),
    responses(
        (status = 202, description = "Durable, or of no interest", body = AcceptedBody),
        (status = 400, description = "Malformed; `field` says where", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "No or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "An event of another tenant", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "Unknown tenant", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Could not be made durable; come again", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn tenant_webhook(
    State(webhooks): State<Arc<Webhooks>>,
    Path(tenant): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let known = tenant.parse().ok().filter(|tenant: &TenantId| webhooks.ingest.knows(tenant));
        let Some(tenant) = known else {
            body::drain(body).await;
            webhooks.denied(None, &parts.headers, Reason::UnknownTenant);
            return Err(unknown_tenant());
        };
        let body = body::read(&parts.headers, body, webhooks.max_body).await?;
        webhooks.take(&tenant, Expected::Any, &parts.headers, &body).await
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

impl Webhooks {
    async fn take(
        &self,
        tenant: &TenantId,
        expected: Expected,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response, Problem> {
        let accepted = self.ingest.accept(tenant, expected, headers, body).await.map_err(|refusal| {
            let denied = match &refusal {
                Refusal::UnknownTenant => Some((None, Reason::UnknownTenant)),
                Refusal::Unauthorized => Some((Some(tenant), Reason::Unauthorized)),
                Refusal::Foreign => Some((Some(tenant), Reason::ForeignTenant)),
                Refusal::Malformed(_) | Refusal::Unavailable { .. } => None,
            };
            if let Some((tenant, reason)) = denied {
                self.denied(tenant, headers, reason);
            }
            refuse(refusal)
        })?;
        Ok((StatusCode::ACCEPTED, Json(answer(accepted))).into_response())
    }

    /// Records that a request was turned away; `tenant` is a configured one.
    fn denied(&self, tenant: Option<&TenantId>, headers: &HeaderMap, reason: Reason) {
        let (request, tenant) = (headers.get(REQUEST_ID).cloned(), tenant.cloned());
        self.audit.record(Record::Webhook(DeniedWebhook { request, tenant, reason }));
    }
}

fn answer(accepted: Accepted) -> AcceptedBody {
    let mut items = accepted.items.into_iter();
    if !accepted.batch {
        // Not an array: exactly one.
        return items.next().map_or_else(|| ignored("nothing was posted"), one);
    }
    let events: Vec<AcceptedBody> = items.map(one).collect();
    if events.iter().all(|event| event.status == "ignored") {
        let reason = "no event of the array is of interest";
        return AcceptedBody { events: Some(events), ..ignored(reason) };
    }
    AcceptedBody { status: "queued", event_id: None, reason: None, events: Some(events) }
}

fn one(disposition: Disposition) -> AcceptedBody {
    match disposition {
        Disposition::Queued(id) => {
            AcceptedBody { status: "queued", event_id: Some(id.as_str().to_owned()), reason: None, events: None }
        }
        Disposition::Ignored(reason) => ignored(reason),
    }
}

const fn ignored(reason: &'static str) -> AcceptedBody {
    AcceptedBody { status: "ignored", event_id: None, reason: Some(reason), events: None }
}

fn refuse(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::UnknownTenant => unknown_tenant(),
        Refusal::Unauthorized => Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "a valid credential of this tenant's source is needed",
        ),
        Refusal::Malformed(fault) => malformed(fault),
        Refusal::Foreign => {
            let detail = "tenantId: the event is of another tenant";
            Problem::new(StatusCode::FORBIDDEN, "foreign_tenant", detail).field("tenantId")
        }
        Refusal::Unavailable { retry_after } => {
            let detail = "the event could not be made durable; post it again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_durable", detail).retry_after(retry_after)
        }
    }
}

fn malformed(malformed: Malformed) -> Problem {
    Problem::bad_field(malformed.field, malformed.expected)
}

fn unknown_tenant() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_tenant", "tenantId: unknown tenant").field("tenantId")
}
