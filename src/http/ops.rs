//! The admin listener: liveness, readiness, metrics, and the operators' commands.
//!
//! `/metrics`, `/livez` and `/readyz` never need a key. Everything else, also what is not there, needs the admin key
//! unless the listener is bound to loopback. What an operator does is recorded in the audit, and so is who was turned
//! away; where everything must be recorded and nothing can be, commands are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, body::Body};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::audit::{Audit, Operation, Record};
use crate::domain::{CustomerId, Digest, EventId, TenantId};
use crate::metrics::{Door, Metrics};
use crate::operate::actions::{self, Actions, MAX_DEAD_LETTERS};
use crate::readiness::{Phase, Readiness};
use crate::reload::Reloadable;

use super::error::Problem;
use super::front::REQUEST_ID;
use super::{body, json};

/// The largest body of an operator's command, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What the admin listener works with.
#[derive(Debug)]
pub struct Ops {
    /// The operators' commands.
    pub actions: Actions,
    /// Where they are recorded.
    pub audit: Audit,
    /// What `/readyz` tells.
    pub readiness: Arc<Readiness>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// The SHA-256 of the admin key; `None` when none is needed.
    pub key: Reloadable<Option<[u8; 32]>>,
}

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
struct ReadyBody {
    status: &'static str,
    degraded: Vec<String>,
    /// Why, where there is more to say than that something does not answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    reasons: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    tenant_id: String,
    customer_id: String,
    #[serde(default)]
    force: bool,
}

/// Makes the routes.
pub fn routes(ops: Arc<Ops>) -> Router {
    let guarded = Router::new()
        .route("/admin/inspect", post(inspect))
        .route("/admin/invalidate", post(invalidate))
        .route("/admin/dead-letters", get(dead_letters))
        .route("/admin/dead-letters/{id}", get(dead_letter))
        .route("/", any(async || Problem::no_such_route()))
        .route("/{*rest}", any(async || Problem::no_such_route()))
        .layer(middleware::from_fn_with_state(Arc::clone(&ops), guard));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(ops)
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], ops.metrics.render()).into_response()
}

async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let reasons = ops.readiness.refused();
    let down = ops.readiness.degraded().into_iter().map(str::to_owned);
    let degraded: Vec<String> = down.chain(reasons.keys().cloned()).collect();
    let (code, status) = match ops.readiness.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Phase::Running if ops.readiness.can_work() && degraded.is_empty() => (StatusCode::OK, "ready"),
        Phase::Running if ops.readiness.can_work() => (StatusCode::OK, "degraded"),
        Phase::Running => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    (code, Json(ReadyBody { status, degraded, reasons })).into_response()
}

async fn inspect(State(ops): State<Arc<Ops>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    ops.perform(&headers, "inspect", about, ops.actions.inspect(&tenant, &customer), |_| None).await.map(Json)
}

async fn invalidate(State(ops): State<Arc<Ops>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    let action = ops.actions.invalidate(&tenant, &customer, target.force);
    let event = ops.perform(&headers, "invalidate", about, action, |id| Some(id.clone())).await?;
    let answer = json!({ "status": "queued", "eventId": event.as_str() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn dead_letters(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let action = ops.actions.dead_letters(limit);
    let letters = ops.perform(&headers, "dead_letters.list", About::default(), action, |_| None).await?;
    Ok(Json(json!({ "deadLetters": letters })))
}

async fn dead_letter(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let action = ops.actions.dead_letter(&id);
    // Once it is found it is an id, and not anything.
    ops.perform(&headers, "dead_letters.show", About::default(), action, |_| id.parse().ok()).await.map(Json)
}

/// What a command is about, as far as it may be recorded.
#[derive(Default)]
struct About {
    tenant: Option<TenantId>,
    key: Option<Digest>,
}

impl About {
    /// A customer, if the tenant is configured: what else stands in its place may be anything.
    fn customer(ops: &Ops, tenant: &TenantId, customer: &CustomerId) -> Self {
        let key = ops.actions.digest(tenant, customer);
        Self { tenant: key.map(|_| tenant.clone()), key }
    }
}

impl Ops {
    /// Carries out a command and records it, with the event or dead letter that `event` finds in what came of it.
    async fn perform<T>(
        &self,
        headers: &HeaderMap,
        action: &'static str,
        about: About,
        work: impl Future<Output = Result<T, actions::Error>>,
        event: impl FnOnce(&T) -> Option<EventId>,
    ) -> Result<T, Problem> {
        if self.audit.is_strict() && !self.audit.works() {
            return Err(Problem::unrecorded());
        }
        let done = work.await.map_err(refuse);
        let outcome = done.as_ref().map_or_else(Problem::code, |_| "ok");
        let About { tenant, key } = about;
        let event = done.as_ref().ok().and_then(event);
        let operation = Operation { request: headers.get(REQUEST_ID).cloned(), action, outcome, tenant, key, event };
        // It is done; where its record is late, what comes next is refused.
        let _ = self.audit.settle(Record::Operator(operation)).await;
        done
    }
}

fn limit(query: &str) -> Result<usize, Problem> {
    let limit = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "limit");
    let Some((_, limit)) = limit else { return Ok(MAX_DEAD_LETTERS) };
    let expected = format!("expected a number from 1 to {MAX_DEAD_LETTERS}");
    let limit = limit.parse().ok().filter(|limit| (1..=MAX_DEAD_LETTERS).contains(limit));
    limit.ok_or_else(|| Problem::bad_field("limit", expected))
}

async fn target(headers: &HeaderMap, body: Body) -> Result<Target, Problem> {
    json::parse(&body::read(headers, body, MAX_BODY).await?)
}

fn parse(target: &Target) -> Result<(TenantId, CustomerId), Problem> {
    Ok((
        target.tenant_id.parse().map_err(|error| Problem::bad_field("tenantId", error))?,
        target.customer_id.parse().map_err(|error| Problem::bad_field("customerId", error))?,
    ))
}

fn refuse(error: actions::Error) -> Problem {
    let (status, code) = match &error {
        actions::Error::UnknownTenant => (StatusCode::NOT_FOUND, "unknown_tenant"),
        actions::Error::UnknownDeadLetter => (StatusCode::NOT_FOUND, "unknown_dead_letter"),
        actions::Error::NoQueue => (StatusCode::CONFLICT, "no_queue"),
        actions::Error::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
        actions::Error::Queue(_) => (StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable"),
    };
    tracing::warn!(code, %error, "an operator's command failed");
    Problem::new(status, code, error.to_string())
}

/// Lets a request through if no key is needed or the right one is presented.
async fn guard(State(ops): State<Arc<Ops>>, request: Request, next: Next) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| {
        let value = value.as_bytes();
        value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer ")).map(|_| value[7..].trim_ascii())
    });
    let allowed = ops.key.load().is_none_or(|key| {
        presented.is_some_and(|presented| bool::from(Sha256::digest(presented).as_slice().ct_eq(&key)))
    });
    if allowed {
        return next.run(request).await;
    }
    ops.metrics.auth_failures.with(Door::Admin).increment(1);
    let request_id = request.headers().get(REQUEST_ID).cloned();
    ops.audit.record(Record::Operator(Operation::denied(request_id)));
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the admin key is needed, as a bearer token").into_response()
}
