//! Channels of notifications: their subscriptions, and the sockets that changes are sent to.
//!
//! As at Genesys, a channel has a lifetime, at most [`MAX_TOPICS`] topics and one socket: a second socket ends the first.
//! A client has at most [`MAX_CHANNELS`]; another one replaces the oldest without a socket, or else the oldest. Nothing is
//! kept for a socket that is away: what happens meanwhile is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::shutdown::Shutdown;

use super::errors::ApiError;
use super::oauth::ClientKind;

/// The limit of channels of a client.
const MAX_CHANNELS: usize = 20;
/// The limit of topics of a channel.
const MAX_TOPICS: usize = 1_000;
/// How many messages may wait for a slow socket, which is cut above it.
const MAX_WAITING: usize = 10_000;

/// All channels, oldest first.
pub(super) struct Channels {
    channels: Mutex<Vec<Channel>>,
    clock: SharedClock,
    shutdown: Shutdown,
}

pub(super) struct Channel {
    pub(super) id: Uuid,
    owner: ClientKind,
    expires: Timestamp,
    topics: BTreeSet<String>,
    /// To the task of its socket.
    socket: Option<mpsc::Sender<Frame>>,
}

/// What the task of a socket sends.
pub(super) enum Frame {
    Text(String),
    /// Nothing: the connection is dropped.
    Cut,
}

/// A topic in a request or an answer.
#[derive(Deserialize)]
pub(super) struct Topic {
    pub(super) id: String,
}

impl Channels {
    /// Creates none.
    pub(super) fn new(clock: SharedClock, shutdown: Shutdown) -> Self {
        Self { channels: Mutex::default(), clock, shutdown }
    }

    /// Sends a notification to the sockets whose channels have its topic, after `lag`.
    pub(super) fn announce(self: &Arc<Self>, topic: String, notification: Value, lag: Duration) {
        let channels = Arc::clone(self);
        let text = notification.to_string();
        if lag.is_zero() {
            return channels.send(&text, |channel| channel.topics.contains(&topic));
        }
        self.shutdown.spawn(async move {
            tokio::select! {
                () = sleep(lag) => channels.send(&text, |channel| channel.topics.contains(&topic)),
                () = channels.shutdown.requested() => {}
            }
        });
    }

    /// Announces to every socket that it will be closed.
    pub(super) fn announce_closing(&self) {
        let text = json!({ "topicName": "v2.system.socket_closing", "version": "2", "eventBody": {
            "message": "Websocket will be closed in 60 seconds. Please reconnect to continue receiving events."
        } });
        self.send(&text.to_string(), |_| true);
    }

    /// Cuts all sockets, without a word.
    pub(super) fn cut(&self) {
        for channel in self.channels.lock().iter_mut() {
            channel.cut();
        }
    }

    fn send(&self, text: &str, is_wanted: impl Fn(&Channel) -> bool) {
        for channel in self.channels.lock().iter_mut().filter(|channel| is_wanted(channel)) {
            let sent = channel.socket.as_ref().map(|socket| socket.try_send(Frame::Text(text.to_owned())));
            if matches!(sent, Some(Err(_))) {
                channel.cut();
            }
        }
    }

    /// Creates a channel.
    pub(super) fn create(&self, owner: ClientKind, expires: Timestamp) -> Uuid {
        let mut channels = self.channels.lock();
        let now = self.clock.now();
        channels.retain(|channel| channel.expires > now);
        if channels.iter().filter(|channel| channel.owner == owner).count() >= MAX_CHANNELS {
            let oldest = |idle: bool| {
                channels.iter().position(|channel| channel.owner == owner && !(idle && channel.is_connected()))
            };
            if let Some(oldest) = oldest(true).or_else(|| oldest(false)) {
                channels.remove(oldest).cut();
            }
        }
        let id = Uuid::new_v4();
        channels.push(Channel { id, owner, expires, topics: BTreeSet::new(), socket: None });
        id
    }

    /// Acts on a channel of this client.
    pub(super) fn with<T>(
        &self,
        id: Uuid,
        owner: ClientKind,
        act: impl FnOnce(&mut Channel) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (mut channels, now) = (self.channels.lock(), self.clock.now());
        let found = channels.iter_mut().find(|channel| channel.id == id && channel.owner == owner);
        found.filter(|channel| channel.expires > now).ok_or(ApiError::not_found()).and_then(act)
    }

    /// Returns the channels of a client.
    pub(super) fn list(&self, owner: ClientKind) -> Value {
        let channels = self.channels.lock();
        let owned = channels.iter().filter(|channel| channel.owner == owner);
        let entity = |channel: &Channel| json!({ "id": channel.id, "expires": channel.expires.to_string() });
        json!({ "entities": owned.map(entity).collect::<Vec<_>>() })
    }

    /// Returns how many channels, topics and sockets there are.
    pub(super) fn counts(&self) -> Value {
        let channels = self.channels.lock();
        let sockets = channels.iter().filter(|channel| channel.is_connected()).count();
        let topics: usize = channels.iter().map(|channel| channel.topics.len()).sum();
        json!({ "channels": channels.len(), "topics": topics, "sockets": sockets })
    }

    /// Makes a socket the one of its channel; returns what it sends, and how long the channel lives.
    pub(super) fn attach(&self, id: Uuid) -> Option<(mpsc::Receiver<Frame>, Duration)> {
        let (mut channels, now) = (self.channels.lock(), self.clock.now());
        let channel = channels.iter_mut().find(|channel| channel.id == id && channel.expires > now)?;
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        channel.socket = Some(sender);
        Some((receiver, channel.expires.since(now)))
    }
}

impl Channel {
    fn is_connected(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| !socket.is_closed())
    }

    fn cut(&mut self) {
        // A full channel of frames is dropped with its sender, which ends the socket too.
        if let Some(socket) = self.socket.take() {
            let _ = socket.try_send(Frame::Cut);
        }
    }

    /// Adds topics, after removing those that it has if they are to be replaced.
    pub(super) fn subscribe(&mut self, topics: Vec<Topic>, replace: bool) -> Result<Value, ApiError> {
        let kept = if replace { BTreeSet::new() } else { self.topics.clone() };
        let all: BTreeSet<String> = kept.into_iter().chain(topics.into_iter().map(|topic| topic.id)).collect();
        if all.len() > MAX_TOPICS {
            return Err(ApiError::bad_request("A channel may have 1000 topics."));
        }
        self.topics = all;
        Ok(self.subscriptions())
    }

    /// Returns the topics as an answer lists them.
    pub(super) fn subscriptions(&self) -> Value {
        let entity = |topic: &String| json!({ "id": topic, "selfUri": format!("/api/v2/notifications/channels/{}/subscriptions", self.id) });
        json!({ "entities": self.topics.iter().map(entity).collect::<Vec<_>>() })
    }
}
