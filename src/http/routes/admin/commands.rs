//! The operators' commands: what each is asked with, and what it answers.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::audit::{Operation, Record};
use crate::domain::{CustomerId, EventId, ReplayId, TenantId};
use crate::http::request::{body, json};
use crate::http::response::problem::Problem;
use crate::operate::actions;
use crate::operate::dead_letters::{Handled, MAX_SEARCHED, Which};
use crate::operate::replay::request::Order;
use crate::operate::replay::{Prepared, Progress, Running};

use super::{About, Made, Ops};

/// The largest body of an operator's command, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// How often it is told how far a replay is: often enough that nobody takes the connection for dead.
const TELL_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    tenant_id: String,
    customer_id: String,
    #[serde(default)]
    force: bool,
}

/// Which dead letters are meant.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Letters {
    #[serde(default)]
    ids: BTreeSet<String>,
    #[serde(default)]
    all: bool,
}

/// What is to be replayed, as it was written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    since: String,
    until: Option<String>,
    tenant_id: Option<String>,
    rate: Option<u32>,
    #[serde(default)]
    dry_run: bool,
}

pub(in crate::http) async fn inspect(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    let action = |ops: Arc<Ops>| async move { ops.actions.inspect(&tenant, &customer).await };
    ops.perform(&headers, "inspect", about, action, |_| Made::default()).await.map(Json)
}

pub(in crate::http) async fn invalidate(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    let action = move |ops: Arc<Ops>| async move { ops.actions.invalidate(&tenant, &customer, target.force).await };
    let found = |id: &EventId| Made { event: Some(id.clone()), ..Made::default() };
    let event = ops.perform(&headers, "invalidate", about, action, found).await?;
    let answer = json!({ "status": "queued", "eventId": event.as_str() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

pub(in crate::http) async fn dead_letters(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let action = move |ops: Arc<Ops>| async move { ops.actions.dead_letters(limit).await };
    let letters = ops.perform(&headers, "dead_letters.list", About::default(), action, |_| Made::default()).await?;
    Ok(Json(json!({ "deadLetters": letters })))
}

pub(in crate::http) async fn dead_letter(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let action = |ops: Arc<Ops>| async move { ops.actions.dead_letter(&id).await };
    let found =
        |letter: &Value| Made { event: letter["eventId"].as_str().and_then(|id| id.parse().ok()), ..Made::default() };
    ops.perform(&headers, "dead_letters.show", About::default(), action, found).await.map(Json)
}

pub(in crate::http) async fn redrive(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let action = |ops: Arc<Ops>| async move { ops.actions.redrive(&which).await };
    let done = ops.perform(&headers, "dead_letters.redrive", About::default(), action, handled).await?;
    Ok(Json(json!({ "redriven": done.count, "kept": done.kept })))
}

pub(in crate::http) async fn purge(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let action = |ops: Arc<Ops>| async move { ops.actions.purge(&which).await };
    let done = ops.perform(&headers, "dead_letters.purge", About::default(), action, handled).await?;
    Ok(Json(json!({ "purged": done.count })))
}

fn handled(handled: &Handled) -> Made {
    Made { event: handled.event.clone(), count: Some(handled.count), ..Made::default() }
}

/// Begins a replay, and answers with how far it is, a line of JSON at a time, until it ends. It is recorded before it
/// begins, and when it has ended; it stops when nobody reads its answer any more.
pub(in crate::http) async fn replay(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wanted: Wanted = json::parse(&body::read(&headers, body, MAX_BODY).await?)?;
    let order = wanted.order(&ops)?;
    let (tenant, is_dry) = (order.tenant.clone(), order.dry_run);
    let is_known = tenant.as_ref().is_none_or(|tenant| ops.actions.knows(tenant));
    // What is not configured may be anything.
    let about = About { tenant: tenant.filter(|_| is_known), key: None };
    let action = if is_dry { "replay.dry_run" } else { "replay" };
    let found = |prepared: &Prepared| Made { replay: Some(prepared.id), ..Made::default() };
    let prepare = move |ops: Arc<Ops>| async move {
        if is_known { ops.replays.prepare(order).await } else { Err(actions::Error::UnknownTenant) }
    };
    // What is recorded as begun also ends, and that is recorded, when nobody waits for it any more.
    let begin = {
        let ops = Arc::clone(&ops);
        async move {
            let prepared = ops.perform(&headers, action, about, prepare, found).await?;
            let id = prepared.id;
            let running = prepared.begin();
            if !is_dry {
                ops.shutdown.spawn(record_end(Arc::clone(&ops), id, running.progress.clone()));
            }
            Ok(running)
        }
    };
    let running = ops.finish(begin).await?;
    let lines = futures_util::stream::unfold(Some((running, Instant::now())), tell);
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

/// Records how a replay ended, when it has.
async fn record_end(ops: Arc<Ops>, id: ReplayId, mut progress: watch::Receiver<Progress>) {
    // A task that ended without a word panicked, which is told of where it happened.
    let _ = progress.wait_for(|progress| progress.status.is_over()).await;
    let (outcome, replayed) = {
        let progress = progress.borrow();
        (progress.status.as_str(), progress.replayed)
    };
    let operation = Operation::new(None, "replay.ended", outcome);
    let record = Record::Operator(Operation { replay: Some(id), count: Some(replayed), ..operation });
    // It is done; where its record is late, what comes next is refused.
    let _ = ops.audit.settle(record).await;
}

/// Returns the next line about a replay: when it is time for one, or when it is over.
async fn tell(told: Option<(Running, Instant)>) -> Option<(Result<String, Infallible>, Option<(Running, Instant)>)> {
    let (mut running, at) = told?;
    let _ = timeout_at(at, running.progress.wait_for(|progress| progress.status.is_over())).await;
    // Asked first: what a task says last is still there when it has gone. One that has gone without a word panicked.
    let is_gone = running.progress.has_changed().is_err();
    let progress = running.progress.borrow().clone();
    let is_over = is_gone || progress.status.is_over();
    // A struct of texts and numbers is always JSON.
    let line = serde_json::to_string(&progress).expect("texts and numbers are JSON") + "\n";
    Some((Ok(line), (!is_over).then(|| (running, Instant::now() + TELL_EVERY))))
}

impl Wanted {
    fn order(self, ops: &Ops) -> Result<Order, Problem> {
        let Self { since, until, tenant_id, rate, dry_run } = self;
        let tenant = tenant_id.map(|id| id.parse::<TenantId>()).transpose();
        let tenant = tenant.map_err(|error| Problem::bad_field("tenantId", error))?;
        let order = Order::parse(&since, until.as_deref(), tenant, rate, dry_run, ops.actions.clock.now());
        order.map_err(|mistake| Problem::bad_field(mistake.field, mistake.expected))
    }
}

async fn which(headers: &HeaderMap, body: Body) -> Result<Which, Problem> {
    let Letters { ids, all } = json::parse(&body::read(headers, body, MAX_BODY).await?)?;
    match (ids.is_empty(), all) {
        (true, true) => Ok(Which::All),
        (false, false) => Ok(Which::These(ids)),
        (true, false) | (false, true) => Err(Problem::bad_field("ids", "expected some ids, or \"all\": true")),
    }
}

fn limit(query: &str) -> Result<usize, Problem> {
    let limit = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "limit");
    let Some((_, limit)) = limit else { return Ok(MAX_SEARCHED) };
    let expected = format!("expected a number from 1 to {MAX_SEARCHED}");
    let limit = limit.parse().ok().filter(|limit| (1..=MAX_SEARCHED).contains(limit));
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
