//! The routes of notifications: channels, their subscriptions, and their WebSockets.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, header};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};
use uuid::Uuid;

use crate::shutdown::Shutdown;

use super::SandboxState;
use super::channels::{Frame, Topic};
use super::errors::ApiError;
use super::oauth::{self, AuthenticatedClient};

/// How often a socket gets a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The topic that needs no permission.
const METADATA: &str = "channel.metadata";

/// Answers `POST /api/v2/notifications/channels`.
pub(super) async fn create(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    headers: HeaderMap,
) -> Json<Value> {
    let lifetime = Duration::from_secs(sandbox.behaviour().channel_lifetime);
    let expires = sandbox.clock.now().plus(lifetime);
    let id = sandbox.channels.create(client.kind, expires);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    Json(json!({ "id": id, "connectUri": format!("ws://{host}/channels/{id}"), "expires": expires.to_string() }))
}

/// Answers `GET /api/v2/notifications/channels`.
pub(super) async fn list(State(sandbox): State<Arc<SandboxState>>, client: AuthenticatedClient) -> Json<Value> {
    Json(sandbox.channels.list(client.kind))
}

/// Answers `GET /api/v2/notifications/channels/{id}/subscriptions`.
pub(super) async fn subscriptions(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    Path(id): Path<Uuid>,
) -> Result<Json<Value>, ApiError> {
    sandbox.channels.with(id, client.kind, |channel| Ok(Json(channel.subscriptions())))
}

/// Answers `POST …/subscriptions`, which adds topics.
pub(super) async fn subscribe(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    Path(id): Path<Uuid>,
    Json(topics): Json<Vec<Topic>>,
) -> Result<Json<Value>, ApiError> {
    change(&sandbox, &client, id, topics, false)
}

/// Answers `PUT …/subscriptions`, which replaces all topics.
pub(super) async fn replace(
    State(sandbox): State<Arc<SandboxState>>,
    client: AuthenticatedClient,
    Path(id): Path<Uuid>,
    Json(topics): Json<Vec<Topic>>,
) -> Result<Json<Value>, ApiError> {
    change(&sandbox, &client, id, topics, true)
}

fn change(
    sandbox: &SandboxState,
    client: &AuthenticatedClient,
    id: Uuid,
    topics: Vec<Topic>,
    replace: bool,
) -> Result<Json<Value>, ApiError> {
    if topics.iter().any(|topic| topic.id != METADATA) {
        client.require(oauth::VIEW)?;
    }
    sandbox.channels.with(id, client.kind, |channel| channel.subscribe(topics, replace).map(Json))
}

/// Answers `GET /sandbox/channels`: how many channels, topics and sockets there are.
pub(super) async fn show(State(sandbox): State<Arc<SandboxState>>) -> Json<Value> {
    Json(sandbox.channels.counts())
}

/// Opens the WebSocket of a channel. The id of the channel is its credential, as at Genesys.
pub(super) async fn connect(
    State(sandbox): State<Arc<SandboxState>>,
    Path(id): Path<Uuid>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    if !sandbox.behaviour().sockets {
        return Err(ApiError::unavailable("The sandbox was configured to refuse sockets."));
    }
    let (frames, lifetime) = sandbox.channels.attach(id).ok_or(ApiError::not_found())?;
    let shutdown = sandbox.shutdown.clone();
    // The upgrade runs in a task of axum, which ends at shutdown.
    Ok(upgrade.on_upgrade(move |socket| serve(socket, frames, lifetime, shutdown)))
}

/// Sends frames and heartbeats until the channel expires, another socket takes it, or the client leaves.
async fn serve(mut socket: WebSocket, mut frames: mpsc::Receiver<Frame>, lifetime: Duration, shutdown: Shutdown) {
    let mut heartbeats = interval(HEARTBEAT);
    let end = sleep(lifetime);
    tokio::pin!(end);
    loop {
        let text = tokio::select! {
            () = shutdown.requested() => break,
            () = &mut end => break,
            _ = heartbeats.tick() => metadata("WebSocket Heartbeat"),
            frame = frames.recv() => match frame {
                Some(Frame::Text(text)) => text,
                Some(Frame::Cut) => return,
                None => break,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) if text.contains("ping") => metadata("pong"),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => continue,
            },
        };
        if socket.send(Message::Text(text.into())).await.is_err() {
            return;
        }
    }
    // The client may have left already.
    let _ = socket.send(Message::Close(None)).await;
}

fn metadata(message: &str) -> String {
    json!({ "topicName": METADATA, "version": "2", "eventBody": { "message": message } }).to_string()
}
