//! The operators' commands about the outbox.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::http::response::problem::Problem;

use super::commands::read;
use super::{AdminApi, CommandOutcome, CommandTarget};

/// How long a drain may take, in seconds.
const PATIENCE: std::ops::RangeInclusive<u64> = 1..=600;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainRequest {
    #[serde(default = "default_patience")]
    timeout_seconds: u64,
}

const fn default_patience() -> u64 {
    60
}

pub(in crate::http) async fn status(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let action = |api: Arc<AdminApi>| async move { api.operations().actions.outbox().await };
    api.perform(&headers, "outbox.status", CommandTarget::default(), action, |_| CommandOutcome::default())
        .await
        .map(Json)
}

pub(in crate::http) async fn drain(
    State(api): State<Arc<AdminApi>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let DrainRequest { timeout_seconds } = read(&headers, body).await?;
    if !PATIENCE.contains(&timeout_seconds) {
        return Err(Problem::bad_field("timeoutSeconds", "expected a number from 1 to 600"));
    }
    let deadline = Instant::now() + Duration::from_secs(timeout_seconds);
    let action = move |api: Arc<AdminApi>| async move {
        let actions = &api.operations().actions;
        tokio::select! {
            drained = actions.drain_outbox(deadline) => drained,
            // The drain of the process includes the outbox, and must not wait for this command.
            () = api.shutdown.requested() => actions.outbox().await,
        }
    };
    api.perform(&headers, "outbox.drain", CommandTarget::default(), action, |_| CommandOutcome::default())
        .await
        .map(Json)
}
