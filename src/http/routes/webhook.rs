//! The webhooks: Genesys, or a service that forwards its events, posts events here.
//!
//! The order of answers: 404 for an unknown tenant; 413, 415; 401; 400; 403; 503 with `Retry-After`; 202. On the route of a
//! tenant a request whose headers no scheme can accept is refused before its body is read. A 202 means that
//! the event is stored durably ([`rules::durability`](crate::rules#durability)).

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::{Audit, AuditRecord, DenialReason, DeniedWebhook};
use crate::domain::TenantId;
use crate::ingest::authenticate::ReceivedRequest;
use crate::ingest::malformed::Malformed;
use crate::ingest::shapes::{self, SenderId};
use crate::ingest::{Accepted, AcceptedShapes, Disposition, HeaderProof, Ingest, IngestError};

use crate::http::request::body;
use crate::http::request::budget::BodyBudgets;
use crate::http::response::headers::REQUEST_ID;
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::server::PeerAddress;

/// The state of the routes.
#[derive(Debug)]
pub(in crate::http) struct WebhookApi {
    ingest: Arc<Ingest>,
    audit: Audit,
    max_body: usize,
    budgets: BodyBudgets,
}

/// The answer to an accepted request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedBody {
    /// `queued`, or `ignored` if no event in the request is relevant; `rejected` for an element of an array that cannot
    /// be read.
    pub status: &'static str,
    /// The id of the queued event: as it was sent, or a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The id in the log and the audit, if it is another: that of the sender may be the name of a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logged_as: Option<String>,
    /// The reason why the event is ignored or rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The field that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The answer for each event of an array, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub events: Option<Vec<AcceptedBody>>,
}

/// Returns the routes; `max_body` is the maximum size of a body, in bytes.
pub fn routes(ingest: Arc<Ingest>, audit: Audit, max_body: usize, budgets: BodyBudgets) -> Router {
    Router::new()
        .route("/webhook/customer-updated", post(customer_updated))
        .route("/webhooks/{tenant_id}", post(tenant_webhook))
        .with_state(Arc::new(WebhookApi { ingest, audit, max_body, budgets }))
}

/// Accepts an event in the flat form.
#[utoipa::path(
    post, path = "/webhook/customer-updated", tag = "events",
    request_body(content = ref("#/components/schemas/FlatEventOfTenant"), content_type = "application/json"),
    security(("sourceKey" = []), ("sourceBasic" = []), ("sourceBearer" = []), ("hubSignature" = []), ("standardWebhooks" = [])),
    responses(
        (status = 202, description = "The event is stored durably, or ignored", body = AcceptedBody),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "Unknown tenant", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The event is not stored; post it again", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn customer_updated(State(api): State<Arc<WebhookApi>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let body = body::read_any(&parts.headers, body, api.max_body, &api.budgets.unproven).await?;
        let tenant = shapes::read_tenant(&body.bytes);
        // An unknown tenant is named before anything else that is wrong.
        if tenant.as_ref().ok().is_none_or(|tenant| api.ingest.knows(tenant)) {
            body.check_form(&parts.headers)?;
        }
        api.accept(&tenant.map_err(malformed)?, AcceptedShapes::Flat, &parts, &body.bytes).await
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

/// Accepts events of one tenant in any shape.
#[utoipa::path(
    post, path = "/webhooks/{tenant_id}", tag = "events",
    params(("tenant_id" = String, Path, description = "The tenant")),
    request_body(content = ref("#/components/schemas/PostedEvents"), content_type = "application/json"),
    security(("sourceKey" = []), ("sourceBasic" = []), ("sourceBearer" = []), ("hubSignature" = []), ("standardWebhooks" = [])),
    responses(
        (status = 403, description = "The event belongs to another tenant", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn tenant_webhook(
    State(api): State<Arc<WebhookApi>>,
    tenant: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let answer = async {
        let known = tenant.ok().and_then(|Path(tenant)| tenant.parse().ok());
        let known = known.filter(|tenant: &TenantId| api.ingest.knows(tenant));
        let Some(tenant) = known else {
            body::drain(body).await;
            api.denied(None, &parts.headers, DenialReason::UnknownTenant);
            return Err(unknown_tenant());
        };
        let budget = match api.ingest.header_proof(&tenant, &received(&parts, &[])) {
            HeaderProof::Refused => {
                body::discard(&parts.headers, body, api.max_body).await?;
                return Err(api.refuse(IngestError::Unauthorized, &tenant, &parts.headers));
            }
            HeaderProof::NeedsBody => &api.budgets.unproven,
            HeaderProof::Proven => &api.budgets.proven,
        };
        let body = body::read(&parts.headers, body, api.max_body, budget).await?;
        api.accept(&tenant, AcceptedShapes::Any, &parts, &body.bytes).await
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

fn received<'a>(parts: &'a Parts, body: &'a [u8]) -> ReceivedRequest<'a> {
    ReceivedRequest { headers: &parts.headers, body, peer: parts.extensions.get::<PeerAddress>().map(|peer| peer.0) }
}

impl WebhookApi {
    async fn accept(
        &self,
        tenant: &TenantId,
        expected: AcceptedShapes,
        parts: &Parts,
        body: &[u8],
    ) -> Result<Response, Problem> {
        let accepted = self.ingest.accept(tenant, expected, &received(parts, body)).await;
        let accepted = accepted.map_err(|refusal| self.refuse(refusal, tenant, &parts.headers))?;
        Ok((StatusCode::ACCEPTED, Json(accepted_body(accepted))).into_response())
    }

    /// Records a refusal and returns its answer.
    fn refuse(&self, refusal: IngestError, tenant: &TenantId, headers: &HeaderMap) -> Problem {
        let denied = match &refusal {
            IngestError::UnknownTenant => Some((None, DenialReason::UnknownTenant)),
            IngestError::Unauthorized => Some((Some(tenant), DenialReason::Unauthorized)),
            IngestError::Foreign => Some((Some(tenant), DenialReason::ForeignTenant)),
            IngestError::Malformed(_) | IngestError::Unavailable { .. } => None,
        };
        if let Some((tenant, reason)) = denied {
            self.denied(tenant, headers, reason);
        }
        problem(refusal)
    }

    /// Records a denied request; `tenant` must be a configured one.
    fn denied(&self, tenant: Option<&TenantId>, headers: &HeaderMap, reason: DenialReason) {
        let (request, tenant) = (headers.get(REQUEST_ID).cloned(), tenant.cloned());
        self.audit.record(AuditRecord::Webhook(DeniedWebhook { request, tenant, reason }));
    }
}

fn accepted_body(accepted: Accepted) -> AcceptedBody {
    let mut items = accepted.items.into_iter();
    if !accepted.batch {
        // Not an array: there is exactly one event.
        return items.next().map_or_else(|| ignored("nothing was posted"), event_body);
    }
    let events: Vec<AcceptedBody> = items.map(event_body).collect();
    let count = |status| events.iter().filter(|event| event.status == status).count();
    let answer = match (count("queued"), count("rejected")) {
        (0, 0) => ignored("no event of the array is relevant"),
        (0, rejected) => {
            let reason = format!("{rejected} of {} events cannot be read, and no other is relevant", events.len());
            AcceptedBody { reason: Some(reason.into()), ..status("ignored") }
        }
        _ => status("queued"),
    };
    AcceptedBody { events: Some(events), ..answer }
}

fn event_body(disposition: Disposition) -> AcceptedBody {
    match disposition {
        Disposition::Queued { id, sent } => {
            let id = id.as_str();
            let sent = sent.as_ref().map_or(id, SenderId::expose);
            let logged_as = (sent != id).then(|| id.to_owned());
            AcceptedBody { event_id: Some(sent.to_owned()), logged_as, ..status("queued") }
        }
        Disposition::Ignored(reason) => ignored(reason),
        Disposition::Rejected(Malformed { field, expected }) => {
            AcceptedBody { reason: Some(expected.into()), field: Some(field), ..status("rejected") }
        }
    }
}

const fn status(status: &'static str) -> AcceptedBody {
    AcceptedBody { status, event_id: None, logged_as: None, reason: None, field: None, events: None }
}

fn ignored(reason: &'static str) -> AcceptedBody {
    AcceptedBody { reason: Some(reason.into()), ..status("ignored") }
}

fn problem(refusal: IngestError) -> Problem {
    match refusal {
        IngestError::UnknownTenant => unknown_tenant(),
        IngestError::Unauthorized => Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "a valid credential of this tenant's source is needed",
        ),
        IngestError::Malformed(fault) => malformed(fault),
        IngestError::Foreign => {
            let detail = "tenantId: the event belongs to another tenant";
            Problem::new(StatusCode::FORBIDDEN, "foreign_tenant", detail).field("tenantId")
        }
        IngestError::Unavailable { retry_after } => {
            let detail = "the event could not be stored durably; post it again";
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
