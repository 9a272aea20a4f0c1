//! The admin listener: liveness, readiness, metrics, and the operators' commands.
//!
//! `/metrics`, `/livez` and `/readyz` never need a key. Everything else, also what is not there, needs the admin key
//! unless the listener is bound to loopback. What an operator does is recorded in the audit, and so is who was turned
//! away; where everything must be recorded and nothing can be, commands are refused.

mod commands;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use tracing::Instrument;

use crate::audit::{Audit, Operation, Record};
use crate::domain::{CustomerId, Digest, EventId, ReplayId, TenantId};
use crate::metrics::{Door, Metrics};
use crate::operate::actions::{self, Actions};
use crate::operate::replay::Replays;
use crate::readiness::{Phase, Readiness};
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

use crate::http::response::problem::Problem;
use crate::http::server::service::REQUEST_ID;

/// What the admin listener works with.
#[derive(Debug)]
pub struct Ops {
    /// The operators' commands.
    pub actions: Actions,
    /// Replays.
    pub replays: Replays,
    /// Where they are recorded.
    pub audit: Audit,
    /// What `/readyz` tells.
    pub readiness: Arc<Readiness>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Tracks what is being done.
    pub shutdown: Shutdown,
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

/// Makes the routes.
pub fn routes(ops: Arc<Ops>) -> Router {
    let guarded = Router::new()
        .route("/admin/inspect", post(commands::inspect))
        .route("/admin/invalidate", post(commands::invalidate))
        .route("/admin/dead-letters", get(commands::dead_letters))
        .route("/admin/dead-letters/{id}", get(commands::dead_letter))
        .route("/admin/dead-letters/redrive", post(commands::redrive))
        .route("/admin/dead-letters/purge", post(commands::purge))
        .route("/admin/replay", post(commands::replay))
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

/// What a command is about, as far as it may be recorded.
#[derive(Default)]
struct About {
    tenant: Option<TenantId>,
    key: Option<Digest>,
}

/// What came of a command, as far as it is recorded.
#[derive(Default)]
struct Made {
    event: Option<EventId>,
    replay: Option<ReplayId>,
    count: Option<u64>,
}

impl About {
    /// A customer, if the tenant is configured: what else stands in its place may be anything.
    fn customer(ops: &Ops, tenant: &TenantId, customer: &CustomerId) -> Self {
        let key = ops.actions.digest(tenant, customer);
        Self { tenant: key.map(|_| tenant.clone()), key }
    }
}

impl Ops {
    /// Carries out a command and records it, with what `found` finds in what came of it; both are
    /// [finished](Self::finish).
    async fn perform<T, Work>(
        self: &Arc<Self>,
        headers: &HeaderMap,
        action: &'static str,
        about: About,
        work: impl FnOnce(Arc<Self>) -> Work,
        found: impl FnOnce(&T) -> Made + Send + 'static,
    ) -> Result<T, Problem>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, actions::Error>> + Send + 'static,
    {
        if self.audit.is_strict() && !self.audit.works() {
            return Err(Problem::unrecorded());
        }
        let (ops, work) = (Arc::clone(self), work(Arc::clone(self)));
        let request = headers.get(REQUEST_ID).cloned();
        let performing = async move {
            let done = work.await.map_err(refuse);
            let outcome = done.as_ref().map_or_else(Problem::code, |_| "ok");
            let About { tenant, key } = about;
            let Made { event, replay, count } = done.as_ref().map(found).unwrap_or_default();
            let operation = Operation { tenant, key, event, replay, count, ..Operation::new(request, action, outcome) };
            match ops.audit.settle(Record::Operator(operation)).await {
                // It has not begun yet, and does not; its record may be written all the same.
                Err(_) if replay.is_some() => {
                    let ended = Operation::new(None, "replay.ended", "refused");
                    ops.audit.record(Record::Operator(Operation { replay, count: Some(0), ..ended }));
                    Err(Problem::unrecorded())
                }
                // It is done; where its record is late, what comes next is refused.
                Ok(()) | Err(_) => done,
            }
        };
        self.finish(performing).await
    }

    /// Does something in a task of its own: what has begun is finished, also when nobody waits for it any more.
    async fn finish<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.shutdown.spawn(work.in_current_span()).await {
            Ok(done) => done,
            // Nobody cancels it; a panic is told of where it happened, and answered as any other.
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn refuse(error: actions::Error) -> Problem {
    let (status, code) = match &error {
        actions::Error::UnknownTenant => (StatusCode::NOT_FOUND, "unknown_tenant"),
        actions::Error::UnknownDeadLetter => (StatusCode::NOT_FOUND, "unknown_dead_letter"),
        actions::Error::NoQueue => (StatusCode::CONFLICT, "no_queue"),
        actions::Error::NoJournal => (StatusCode::CONFLICT, "no_journal"),
        actions::Error::NoEvent => (StatusCode::CONFLICT, "no_event"),
        actions::Error::Busy => (StatusCode::CONFLICT, "busy"),
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
