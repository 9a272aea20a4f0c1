//! The admin listener: liveness, readiness, metrics, and the operators' commands.
//!
//! `/metrics`, `/livez` and `/readyz` need no key. Every other path, also an unknown one, needs the admin key if one is
//! configured, which it must be beyond loopback, and refuses what a web page in an operator's browser could send: see
//! `browser.rs`. The audit records each command and each denied request. In strict mode commands are refused while the
//! audit cannot record them.
//!
//! The listener answers before the dependencies of the commands are open; until then commands get 503 `starting`.

mod browser;
mod commands;
mod outbox;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::audit::{Audit, AuditRecord, OperatorRecord};
use crate::authorization::Authorization;
use crate::domain::{CustomerId, Digest, EventId, ReplayId, TenantId};
use crate::metrics::{AuthEndpoint, Metrics};
use crate::operate::actions::{self, Actions};
use crate::operate::replay::Replays;
use crate::readiness::{Phase, Readiness};
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;
use crate::spans;
use crate::upstream;

use crate::http::response::headers::REQUEST_ID;
use crate::http::response::problem::Problem;

/// The state of the admin routes.
#[derive(Debug)]
pub struct AdminApi {
    /// What commands use; absent while the process starts.
    pub operations: OnceLock<Operations>,
    /// The audit of commands.
    pub audit: Audit,
    /// The state that `/readyz` reports.
    pub readiness: Arc<Readiness>,
    /// The metrics that `/metrics` reports.
    pub metrics: Arc<Metrics>,
    /// Tracks the running commands.
    pub shutdown: Shutdown,
    /// The SHA-256 of the admin key; `None` if none is configured.
    pub key: Reloadable<Option<[u8; 32]>>,
    /// Whether only this machine reaches the listener.
    pub is_loopback: bool,
}

/// What commands use.
#[derive(Debug)]
pub struct Operations {
    /// The operators' commands.
    pub actions: Actions,
    /// The replays of the journal.
    pub replays: Replays,
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
struct ReadyBody {
    status: &'static str,
    /// The dependencies that the start waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    awaited: Vec<&'static str>,
    degraded: Vec<String>,
    /// The reasons, for dependencies that answered but refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    reasons: BTreeMap<String, String>,
}

/// Returns the routes.
pub fn routes(api: Arc<AdminApi>) -> Router {
    let guarded = Router::new()
        .route("/admin/inspect", post(commands::inspect))
        .route("/admin/invalidate", post(commands::invalidate))
        .route("/admin/clear", post(commands::clear))
        .route("/admin/dead-letters", get(commands::dead_letters))
        .route("/admin/dead-letters/{id}", get(commands::dead_letter))
        .route("/admin/dead-letters/redrive", post(commands::redrive))
        .route("/admin/dead-letters/purge", post(commands::purge))
        .route("/admin/replay", post(commands::replay))
        .route("/admin/outbox", get(outbox::status))
        .route("/admin/outbox/drain", post(outbox::drain))
        .route("/", any(async || Problem::no_such_route()))
        .route("/{*rest}", any(async || Problem::no_such_route()))
        // Behind the guard too: without the key nobody learns which commands there are.
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(middleware::from_fn_with_state(Arc::clone(&api), require_key));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(api)
}

async fn metrics(State(api): State<Arc<AdminApi>>) -> Response {
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], api.metrics.render()).into_response()
}

/// Beyond loopback only who presents the admin key sees the tenants and the reasons.
async fn ready(State(api): State<Arc<AdminApi>>, headers: HeaderMap) -> Response {
    let mut reasons = api.readiness.refused();
    let down = api.readiness.degraded();
    let others = reasons.keys().filter(|name| !down.contains(&name.as_str())).cloned();
    let mut degraded: Vec<String> = down.iter().map(|name| (*name).to_owned()).chain(others).collect();
    if !api.is_loopback && !api.has_key(&headers) {
        // A reason of the store or the queue may contain addresses.
        reasons.retain(|name, _| !name.contains(':') && name != "queue" && name != "store");
        degraded.iter_mut().for_each(|name| name.truncate(name.find(':').unwrap_or(name.len())));
        degraded.dedup();
    }
    let (code, status) = match api.readiness.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Phase::Running if api.readiness.can_work() && degraded.is_empty() => (StatusCode::OK, "ready"),
        Phase::Running if api.readiness.can_work() => (StatusCode::OK, "degraded"),
        Phase::Running => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    (code, Json(ReadyBody { status, awaited: api.readiness.awaited(), degraded, reasons })).into_response()
}

/// The customer of a command, as far as it may be recorded.
#[derive(Default)]
struct CommandTarget {
    tenant: Option<TenantId>,
    key: Option<Digest>,
}

/// The result of a command, as far as it is recorded.
#[derive(Default)]
struct CommandOutcome {
    event: Option<EventId>,
    replay: Option<ReplayId>,
    count: Option<u64>,
}

impl CommandTarget {
    /// Returns a customer, if the tenant is configured: any other value is unchecked input.
    fn customer(api: &AdminApi, tenant: &TenantId, customer: &CustomerId) -> Self {
        let key = api.operations().actions.digest(tenant, customer);
        Self { tenant: key.map(|_| tenant.clone()), key }
    }
}

impl AdminApi {
    /// Returns what commands use.
    ///
    /// # Panics
    ///
    /// The process starts; `require_key` lets no command pass then.
    fn operations(&self) -> &Operations {
        self.operations.get().expect("no command passes the door before they are set")
    }

    /// Runs a command and records it; `outcome_of` extracts the recorded part of its result. Both run to completion (see
    /// [`run_to_completion`](Self::run_to_completion)).
    async fn perform<T, Work>(
        self: &Arc<Self>,
        headers: &HeaderMap,
        action: &'static str,
        target: CommandTarget,
        work: impl FnOnce(Arc<Self>) -> Work,
        outcome_of: impl FnOnce(&T) -> CommandOutcome + Send + 'static,
    ) -> Result<T, Problem>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, actions::Error>> + Send + 'static,
    {
        if self.audit.is_strict() && !self.audit.is_working() {
            return Err(Problem::unrecorded());
        }
        let (api, work) = (Arc::clone(self), work(Arc::clone(self)));
        let request = headers.get(REQUEST_ID).cloned();
        let performing = async move {
            let done = work.await.map_err(problem);
            let outcome = done.as_ref().map_or_else(Problem::code, |_| "ok");
            let CommandTarget { tenant, key } = target;
            let CommandOutcome { event, replay, count } = done.as_ref().map(outcome_of).unwrap_or_default();
            let operation =
                OperatorRecord { tenant, key, event, replay, count, ..OperatorRecord::new(request, action, outcome) };
            match api.audit.record_and_wait(AuditRecord::Operator(operation)).await {
                // The replay has not started and will not; the record of its start may still be written.
                Err(_) if replay.is_some() => {
                    let ended = OperatorRecord::new(None, "replay.ended", "refused");
                    api.audit.record(AuditRecord::Operator(OperatorRecord { replay, count: Some(0), ..ended }));
                    Err(Problem::unrecorded())
                }
                // The command is done. While the audit is behind, the next commands are refused.
                Ok(()) | Err(_) => done,
            }
        };
        self.run_to_completion(performing).await
    }

    /// Returns whether a request presents the admin key, or none is configured.
    fn has_key(&self, headers: &HeaderMap) -> bool {
        let presented = headers.get(header::AUTHORIZATION);
        let presented = presented.and_then(|value| Authorization::parse(value.as_bytes()));
        self.key.load().is_none_or(|key| {
            matches!(presented, Some(Authorization::Bearer(presented))
                if bool::from(Sha256::digest(presented).as_slice().ct_eq(&key)))
        })
    }

    /// Runs a future in its own task, so that it completes even if the client disconnects.
    async fn run_to_completion<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.shutdown.spawn(spans::part(work)).await {
            Ok(done) => done,
            // The task is never cancelled. The panic hook has logged the panic; it is answered like any other.
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn problem(error: actions::Error) -> Problem {
    let (status, code) = match &error {
        actions::Error::UnknownTenant => (StatusCode::NOT_FOUND, "unknown_tenant"),
        actions::Error::UnknownDeadLetter => (StatusCode::NOT_FOUND, "unknown_dead_letter"),
        actions::Error::NoQueue => (StatusCode::CONFLICT, "no_queue"),
        actions::Error::NoJournal => (StatusCode::CONFLICT, "no_journal"),
        actions::Error::NoEvent => (StatusCode::CONFLICT, "no_event"),
        actions::Error::NoOutbox => (StatusCode::CONFLICT, "no_outbox"),
        actions::Error::Busy => (StatusCode::CONFLICT, "busy"),
        actions::Error::NoGenesys => (StatusCode::CONFLICT, "no_genesys"),
        actions::Error::Genesys { error, .. } => match error {
            upstream::Error::Denied { .. } | upstream::Error::Privileges { .. } | upstream::Error::Unusable { .. } => {
                (StatusCode::CONFLICT, "genesys_refuses")
            }
            upstream::Error::Throttled { .. }
            | upstream::Error::BudgetSpent { .. }
            | upstream::Error::BreakerOpen { .. }
            | upstream::Error::Failed { .. }
            | upstream::Error::Unreachable(_)
            | upstream::Error::Timeout(_) => (StatusCode::SERVICE_UNAVAILABLE, "genesys_unavailable"),
        },
        actions::Error::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
        actions::Error::Queue(_) => (StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable"),
    };
    tracing::warn!(code, %error, "an operator's command failed");
    Problem::new(status, code, error.to_string())
}

/// Forwards a request if the right key is presented, or none is configured, and no web page can have sent it.
async fn require_key(State(api): State<Arc<AdminApi>>, request: Request, next: Next) -> Response {
    if api.has_key(request.headers()) {
        return match browser::refuse(&request, api.key.load().is_some()) {
            Some(problem) => problem.into_response(),
            None if api.operations.get().is_none() => {
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "the service is starting");
                problem.retry_after(Duration::from_secs(1)).into_response()
            }
            None => next.run(request).await,
        };
    }
    api.metrics.auth_failures.with(AuthEndpoint::Admin).increment(1);
    let request_id = request.headers().get(REQUEST_ID).cloned();
    api.audit.record(AuditRecord::Operator(OperatorRecord::denied(request_id)));
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the admin key is needed, as a bearer token").into_response()
}
