//! The operators' commands: their requests and answers.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::audit::{AuditRecord, OperatorRecord};
use crate::domain::{CustomerId, EventId, ReplayId, TenantId};
use crate::http::request::budget::ByteBudget;
use crate::http::request::{body, json};
use crate::http::response::problem::Problem;
use crate::operate::actions;
use crate::operate::dead_letters::{DeadLetterSelection, Handled, MAX_SEARCHED};
use crate::operate::replay::request::{Origin, ReplayRequest};
use crate::operate::replay::{PreparedReplay, Progress, RunningReplay};
use crate::store::ClearMode;

use super::{AdminApi, CommandOutcome, CommandTarget};

/// The maximum body size of a command, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// The interval of progress lines during a replay; short enough that no proxy closes the connection as idle.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CustomerRequest {
    tenant_id: String,
    customer_id: String,
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClearRequest {
    tenant_id: String,
    #[serde(default)]
    hard: bool,
}

/// A selection of dead letters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeadLettersRequest {
    #[serde(default)]
    ids: BTreeSet<String>,
    #[serde(default)]
    all: bool,
}

/// The parameters of a replay, before they are checked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ReplayBody {
    since: String,
    until: Option<String>,
    tenant_id: Option<String>,
    rate: Option<u32>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    from_genesys: bool,
}

pub(in crate::http) async fn inspect(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let request: CustomerRequest = read(&headers, body).await?;
    let (tenant, customer) = request.ids()?;
    let target = CommandTarget::customer(&api, &tenant, &customer);
    let action = |api: Arc<AdminApi>| async move { api.operations().actions.inspect(&tenant, &customer).await };
    api.perform(&headers, "inspect", target, action, |_| CommandOutcome::default()).await.map(Json)
}

pub(in crate::http) async fn invalidate(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let request: CustomerRequest = read(&headers, body).await?;
    let (tenant, customer) = request.ids()?;
    let target = CommandTarget::customer(&api, &tenant, &customer);
    let action = move |api: Arc<AdminApi>| async move {
        api.operations().actions.invalidate(&tenant, &customer, request.force).await
    };
    let outcome = |id: &EventId| CommandOutcome { event: Some(id.clone()), ..CommandOutcome::default() };
    let event = api.perform(&headers, "invalidate", target, action, outcome).await?;
    let answer = json!({ "status": "queued", "eventId": event.as_str() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

pub(in crate::http) async fn clear(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let ClearRequest { tenant_id, hard } = read(&headers, body).await?;
    let tenant: TenantId = tenant_id.parse().map_err(|error| Problem::bad_field("tenantId", error))?;
    let known = Some(tenant.clone()).filter(|tenant| api.operations().actions.knows(tenant));
    let target = CommandTarget { tenant: known, key: None };
    let (name, mode) = if hard { ("clear.hard", ClearMode::Hard) } else { ("clear", ClearMode::Soft) };
    let action = move |api: Arc<AdminApi>| async move { api.operations().actions.clear(&tenant, mode).await };
    api.perform(&headers, name, target, action, |()| CommandOutcome::default()).await?;
    Ok(Json(json!({ "status": "cleared" })))
}

pub(in crate::http) async fn dead_letters(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let action = move |api: Arc<AdminApi>| async move { api.operations().actions.dead_letters(limit).await };
    let letters = api
        .perform(&headers, "dead_letters.list", CommandTarget::default(), action, |_| CommandOutcome::default())
        .await?;
    Ok(Json(json!({ "deadLetters": letters })))
}

pub(in crate::http) async fn dead_letter(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    // What is no UTF-8 is no id.
    let id = id.map_or_else(|_| String::new(), |Path(id)| id);
    let action = |api: Arc<AdminApi>| async move { api.operations().actions.dead_letter(&id).await };
    let outcome = |letter: &Value| CommandOutcome {
        event: letter["eventId"].as_str().and_then(|id| id.parse().ok()),
        ..CommandOutcome::default()
    };
    api.perform(&headers, "dead_letters.show", CommandTarget::default(), action, outcome).await.map(Json)
}

pub(in crate::http) async fn redrive(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let action = |api: Arc<AdminApi>| async move { api.operations().actions.redrive(&which).await };
    let done = api.perform(&headers, "dead_letters.redrive", CommandTarget::default(), action, handled).await?;
    Ok(Json(json!({ "redriven": done.count, "kept": done.kept })))
}

pub(in crate::http) async fn purge(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let action = |api: Arc<AdminApi>| async move { api.operations().actions.purge(&which).await };
    let done = api.perform(&headers, "dead_letters.purge", CommandTarget::default(), action, handled).await?;
    Ok(Json(json!({ "purged": done.count })))
}

fn handled(handled: &Handled) -> CommandOutcome {
    CommandOutcome { event: handled.event.clone(), count: Some(handled.count), ..CommandOutcome::default() }
}

/// Starts a replay and streams its progress, one line of JSON at a time, until it ends. The start is recorded before the
/// replay begins, and the end when it has ended. The replay stops when the client disconnects.
pub(in crate::http) async fn replay(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body: ReplayBody = read(&headers, body).await?;
    let request = body.checked(&api)?;
    let (tenant, is_dry, origin) = (request.tenant.clone(), request.dry_run, request.origin);
    let is_known = tenant.as_ref().is_none_or(|tenant| api.operations().actions.knows(tenant));
    // An unknown tenant is unchecked input, so it is not recorded.
    let target = CommandTarget { tenant: tenant.filter(|_| is_known), key: None };
    let action = match (origin, is_dry) {
        (Origin::Journal, false) => "replay",
        (Origin::Journal, true) => "replay.dry_run",
        (Origin::Genesys, false) => "replay.from_genesys",
        (Origin::Genesys, true) => "replay.from_genesys.dry_run",
    };
    let outcome = |prepared: &PreparedReplay| CommandOutcome { replay: Some(prepared.id), ..CommandOutcome::default() };
    let prepare = move |api: Arc<AdminApi>| async move {
        if is_known { api.operations().replays.prepare(request).await } else { Err(actions::Error::UnknownTenant) }
    };
    // A replay with a recorded start also gets a recorded end, even if the client disconnects.
    let begin = {
        let api = Arc::clone(&api);
        async move {
            let prepared = api.perform(&headers, action, target, prepare, outcome).await?;
            let id = prepared.id;
            let running = prepared.begin();
            if !is_dry {
                api.shutdown.spawn(record_end(Arc::clone(&api), id, running.progress.clone()));
            }
            Ok(running)
        }
    };
    let running = api.run_to_completion(begin).await?;
    let lines = futures_util::stream::unfold(Some((running, Instant::now())), next_line);
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

/// Records how a replay ended, when it has.
async fn record_end(api: Arc<AdminApi>, id: ReplayId, mut progress: watch::Receiver<Progress>) {
    // If the sender is gone without a final status, the task panicked, which the panic hook has logged.
    let _ = progress.wait_for(|progress| progress.status.is_over()).await;
    let (outcome, replayed) = {
        let progress = progress.borrow();
        (progress.status.as_str(), progress.replayed)
    };
    let operation = OperatorRecord::new(None, "replay.ended", outcome);
    let record = AuditRecord::Operator(OperatorRecord { replay: Some(id), count: Some(replayed), ..operation });
    // The replay is over. While the audit is behind, the next commands are refused.
    let _ = api.audit.record_and_wait(record).await;
}

/// Returns the next progress line: at the next interval, or when the replay is over.
async fn next_line(
    state: Option<(RunningReplay, Instant)>,
) -> Option<(Result<String, Infallible>, Option<(RunningReplay, Instant)>)> {
    let (mut running, at) = state?;
    let _ = timeout_at(at, running.progress.wait_for(|progress| progress.status.is_over())).await;
    // Checked before reading the progress: a task that ends sends its last progress first. One that sent none panicked.
    let is_gone = running.progress.has_changed().is_err();
    let progress = running.progress.borrow().clone();
    let is_over = is_gone || progress.status.is_over();
    // A struct of strings and numbers always serializes.
    let line = serde_json::to_string(&progress).expect("strings and numbers serialize") + "\n";
    Some((Ok(line), (!is_over).then(|| (running, Instant::now() + PROGRESS_INTERVAL))))
}

impl CustomerRequest {
    fn ids(&self) -> Result<(TenantId, CustomerId), Problem> {
        Ok((
            self.tenant_id.parse().map_err(|error| Problem::bad_field("tenantId", error))?,
            self.customer_id.parse().map_err(|error| Problem::bad_field("customerId", error))?,
        ))
    }
}

impl ReplayBody {
    fn checked(self, api: &AdminApi) -> Result<ReplayRequest, Problem> {
        let Self { since, until, tenant_id, rate, dry_run, from_genesys } = self;
        let origin = if from_genesys { Origin::Genesys } else { Origin::Journal };
        let tenant = tenant_id.map(|id| id.parse::<TenantId>()).transpose();
        let tenant = tenant.map_err(|error| Problem::bad_field("tenantId", error))?;
        let now = api.operations().actions.clock.now();
        let request = ReplayRequest::parse(origin, &since, until.as_deref(), tenant, rate, dry_run, now);
        request.map_err(|mistake| Problem::bad_field(mistake.field, mistake.expected))
    }
}

async fn which(headers: &HeaderMap, body: Body) -> Result<DeadLetterSelection, Problem> {
    let DeadLettersRequest { ids, all } = read(headers, body).await?;
    match (ids.is_empty(), all) {
        (true, true) => Ok(DeadLetterSelection::All),
        (false, false) => Ok(DeadLetterSelection::Ids(ids)),
        (true, false) | (false, true) => Err(Problem::bad_field("ids", "expected at least one id, or \"all\": true")),
    }
}

fn limit(query: &str) -> Result<usize, Problem> {
    let limit = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "limit");
    let Some((_, limit)) = limit else { return Ok(MAX_SEARCHED) };
    let expected = format!("expected a number from 1 to {MAX_SEARCHED}");
    let limit = limit.parse().ok().filter(|limit| (1..=MAX_SEARCHED).contains(limit));
    limit.ok_or_else(|| Problem::bad_field("limit", expected))
}

pub(super) async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    // The sender has the admin key, and the listener has few connections.
    json::parse(&body::read(headers, body, MAX_BODY, &ByteBudget::of(MAX_BODY)).await?.bytes)
}
