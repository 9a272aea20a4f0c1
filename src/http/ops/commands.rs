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
use tokio::time::{Instant, timeout_at};

use crate::domain::{CustomerId, EventId, TenantId};
use crate::http::error::Problem;
use crate::http::{body, json};
use crate::operate::actions;
use crate::operate::dead_letters::{MAX_SEARCHED, PutBack, Which};
use crate::operate::replay::order::Order;
use crate::operate::replay::{Prepared, Running};

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

pub(super) async fn inspect(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    let action = ops.actions.inspect(&tenant, &customer);
    ops.perform(&headers, "inspect", about, action, |_| Made::default()).await.map(Json)
}

pub(super) async fn invalidate(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = target(&headers, body).await?;
    let (tenant, customer) = parse(&target)?;
    let about = About::customer(&ops, &tenant, &customer);
    let action = ops.actions.invalidate(&tenant, &customer, target.force);
    let found = |id: &EventId| Made { event: Some(id.clone()), ..Made::default() };
    let event = ops.perform(&headers, "invalidate", about, action, found).await?;
    let answer = json!({ "status": "queued", "eventId": event.as_str() });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

pub(super) async fn dead_letters(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let limit = limit(query.as_deref().unwrap_or_default())?;
    let action = ops.actions.dead_letters(limit);
    let letters = ops.perform(&headers, "dead_letters.list", About::default(), action, |_| Made::default()).await?;
    Ok(Json(json!({ "deadLetters": letters })))
}

pub(super) async fn dead_letter(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let action = ops.actions.dead_letter(&id);
    // Once it is found it is an id, and not anything.
    let found = |_: &Value| Made { event: id.parse().ok(), ..Made::default() };
    ops.perform(&headers, "dead_letters.show", About::default(), action, found).await.map(Json)
}

pub(super) async fn redrive(
    State(ops): State<Arc<Ops>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let found = |put_back: &PutBack| Made {
        event: put_back.event.clone(),
        count: Some(put_back.redriven.events),
        ..Made::default()
    };
    let action = ops.actions.redrive(&which);
    let done = ops.perform(&headers, "dead_letters.redrive", About::default(), action, found).await?;
    Ok(Json(json!({ "redriven": done.redriven.events, "kept": done.redriven.kept })))
}

pub(super) async fn purge(State(ops): State<Arc<Ops>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
    let which = which(&headers, body).await?;
    let found = |purged: &u64| Made { count: Some(*purged), ..Made::default() };
    let action = ops.actions.purge(&which);
    let purged = ops.perform(&headers, "dead_letters.purge", About::default(), action, found).await?;
    Ok(Json(json!({ "purged": purged })))
}

/// Begins a replay, and answers with how far it is, a line of JSON at a time, until it ends. It is recorded before it
/// begins, and stops when nobody reads its answer any more.
pub(super) async fn replay(State(ops): State<Arc<Ops>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let wanted: Wanted = json::parse(&body::read(&headers, body, MAX_BODY).await?)?;
    let order = wanted.order(&ops)?;
    // What is not configured may be anything.
    let about = About { tenant: order.tenant.clone().filter(|tenant| ops.actions.knows(tenant)), key: None };
    let action = if order.dry_run { "replay.dry_run" } else { "replay" };
    let found = |prepared: &Prepared| Made { replay: Some(prepared.id), ..Made::default() };
    let prepare = async {
        match &order.tenant {
            Some(tenant) if !ops.actions.knows(tenant) => Err(actions::Error::UnknownTenant),
            Some(_) | None => ops.replays.prepare(order).await,
        }
    };
    let prepared = ops.perform(&headers, action, about, prepare, found).await?;
    let lines = futures_util::stream::unfold(Some((prepared.begin(), Instant::now())), tell);
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

/// Returns the next line about a replay: when it is time for one, or when it is over.
async fn tell(told: Option<(Running, Instant)>) -> Option<(Result<String, Infallible>, Option<(Running, Instant)>)> {
    let (mut running, at) = told?;
    // A task that ended without a word panicked; what was known last is told.
    let _ = timeout_at(at, running.progress.wait_for(|progress| progress.status.is_over())).await;
    let progress = running.progress.borrow().clone();
    let is_over = progress.status.is_over() || running.progress.has_changed().is_err();
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
