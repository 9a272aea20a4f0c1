//! The admin listener: liveness, readiness, metrics, and the operators' commands.
//!
//! `/metrics`, `/livez` and `/readyz` never need a key. Everything else, also what is not there, needs the admin key
//! unless the listener is bound to loopback.

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
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::metrics::{Door, Metrics};
use crate::operate::actions::{self, Actions, MAX_DEAD_LETTERS};
use crate::readiness::{Phase, Readiness};
use crate::reload::Reloadable;

use super::error::Problem;
use super::{body, json};

/// The largest body of an operator's command, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What the admin listener works with.
#[derive(Debug)]
pub struct Ops {
    /// The operators' commands.
    pub actions: Actions,
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
    ops.actions.inspect(&tenant, &customer).await.map(Json).map_err(refuse)
}

async fn invalidate(State(ops): State<Arc<Ops>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let event = ops.actions.invalidate(&tenant, &customer, target.force).await.map_err(refuse)?;
    let answer = json!({ "status": "queued", "eventId": event.as_str() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn dead_letters(State(ops): State<Arc<Ops>>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let letters = ops.actions.dead_letters(limit).await.map_err(refuse)?;
    Ok(Json(json!({ "deadLetters": letters })))
}

async fn dead_letter(State(ops): State<Arc<Ops>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    ops.actions.dead_letter(&id).await.map(Json).map_err(refuse)
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

fn parse(target: &Target) -> Result<(crate::domain::TenantId, crate::domain::CustomerId), Problem> {
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
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the admin key is needed, as a bearer token").into_response()
}
