//! Announcements: a fill publishes on the channel of its key, and this process wakes its waiters there.
//!
//! One connection, restored in the background, holds all subscriptions. In a cluster the channels are sharded
//! (Redis 7), so an announcement stays on the node of the key. Announcements only save time: each waiter also looks
//! at its key from time to time, so a lost announcement, or no connection at all, costs a moment. A channel is
//! subscribed while a waiter of this process needs it, at most [`MAX_CHANNELS`] at once.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::max_age::MaxAge;
use crate::shutdown::Shutdown;
use crate::store::Error;

use super::client::RedisClient;
use super::config::Config;
use super::subscriber::PubSubConnection;

/// How many channels may be subscribed.
const MAX_CHANNELS: usize = 4096;

/// The pause before a new connection, and the longest that connecting or one command may take.
const PAUSE: Duration = Duration::from_secs(1);

/// The subscriptions of this process.
#[derive(Clone, Debug)]
pub(super) struct Announcements {
    channels: Arc<Channels>,
    commands: mpsc::Sender<SubscriptionCommand>,
}

/// The channels with waiters, by name.
type Channels = Mutex<HashMap<String, Channel>>;

/// The waiters on one key.
#[derive(Debug)]
struct Channel {
    state: watch::Sender<ChannelState>,
    waiters: usize,
}

/// The state of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelState {
    /// It may not be subscribed yet.
    Pending,
    /// It is subscribed: later announcements arrive.
    Subscribed,
    /// The key has changed.
    Changed,
}

/// A command to the task that owns the connection.
#[derive(Debug)]
enum SubscriptionCommand {
    Subscribe(String),
    Unsubscribe(String),
}

/// Listens to one key for one waiter. Dropping the last listener of a key ends the subscription.
#[derive(Debug)]
pub(super) struct KeyListener {
    announcements: Announcements,
    channel: String,
    /// `None` if there are too many channels already.
    state: Option<watch::Receiver<ChannelState>>,
}

impl Announcements {
    /// Starts the task that owns the connection.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, or one of its files cannot be read.
    pub(super) fn open(config: &Config, max_age: MaxAge, shutdown: &Shutdown) -> Result<Self, Error> {
        let channels: Arc<Channels> = Arc::default();
        let pushed_to = Arc::clone(&channels);
        let on_push = move |push: PushInfo| -> Result<(), Infallible> {
            if let (PushKind::SMessage, Some(Value::BulkString(channel))) = (&push.kind, push.data.first()) {
                // The name of a key is ASCII.
                notify(&pushed_to, std::str::from_utf8(channel).unwrap_or_default(), ChannelState::Changed);
            }
            Ok(())
        };
        let client = RedisClient::new(config, move |cluster| {
            cluster.use_protocol(ProtocolVersion::RESP3).response_timeout(PAUSE).push_sender(on_push.clone())
        })?;
        let (commands, received) = mpsc::channel(MAX_CHANNELS);
        shutdown.spawn(run(client, Arc::clone(&channels), received, max_age, shutdown.clone()));
        Ok(Self { channels, commands })
    }

    /// Starts to listen to a key.
    pub(super) fn listen(&self, channel: &str) -> KeyListener {
        let mut channels = self.channels.lock();
        let is_known = channels.contains_key(channel);
        let state = (is_known || channels.len() < MAX_CHANNELS).then(|| {
            let new = || Channel { state: watch::Sender::new(ChannelState::Pending), waiters: 0 };
            let entry = channels.entry(channel.to_owned()).or_insert_with(new);
            entry.waiters += 1;
            let mut state = entry.state.subscribe();
            // The present state is new to this waiter.
            state.mark_changed();
            state
        });
        drop(channels);
        if !is_known && state.is_some() {
            // If the queue of commands is full, the waiter looks at the key by itself.
            let _ = self.commands.try_send(SubscriptionCommand::Subscribe(channel.to_owned()));
        }
        KeyListener { announcements: self.clone(), channel: channel.to_owned(), state }
    }
}

impl KeyListener {
    /// Waits until the channel is subscribed or the key has changed. Cancel-safe.
    pub(super) async fn next_state(&mut self) -> ChannelState {
        loop {
            let Some(state) = &mut self.state else { return std::future::pending().await };
            // A channel exists as long as one of its listeners.
            if state.changed().await.is_err() {
                self.state = None;
                continue;
            }
            match *state.borrow_and_update() {
                ChannelState::Pending => {}
                state @ (ChannelState::Subscribed | ChannelState::Changed) => return state,
            }
        }
    }
}

impl Drop for KeyListener {
    fn drop(&mut self) {
        if self.state.is_none() {
            return;
        }
        let mut channels = self.announcements.channels.lock();
        let Some(channel) = channels.get_mut(&self.channel) else { return };
        channel.waiters -= 1;
        if channel.waiters == 0 {
            channels.remove(&self.channel);
            // If the queue of commands is full, the subscription lasts as long as the connection and wakes nobody.
            let command = SubscriptionCommand::Unsubscribe(std::mem::take(&mut self.channel));
            let _ = self.announcements.commands.try_send(command);
        }
    }
}

/// Wakes the waiters of a channel, if there are any.
fn notify(channels: &Channels, channel: &str, state: ChannelState) {
    if let Some(channel) = channels.lock().get(channel) {
        channel.state.send_replace(state);
    }
}

/// Connects until shutdown.
async fn run(
    mut client: RedisClient,
    channels: Arc<Channels>,
    mut commands: mpsc::Receiver<SubscriptionCommand>,
    max_age: MaxAge,
    shutdown: Shutdown,
) {
    while !shutdown.is_requested() {
        let connected = tokio::select! {
            () = shutdown.requested() => return,
            connected = timeout(PAUSE, client.connect_pubsub()) => connected,
        };
        if let Ok(Ok(connection)) = connected {
            tokio::select! {
                () = serve(connection, &channels, &mut commands, &shutdown) => {}
                // Until the next connection is made, waiters look at their keys by themselves.
                () = max_age.reached() => {}
            }
        }
        // Shutdown ends the pause early; the loop checks it.
        let _ = timeout(PAUSE, shutdown.requested()).await;
    }
}

/// Serves one connection until it breaks.
async fn serve(
    mut connection: PubSubConnection,
    channels: &Channels,
    commands: &mut mpsc::Receiver<SubscriptionCommand>,
    shutdown: &Shutdown,
) {
    // Earlier commands are obsolete: every channel that still has waiters is subscribed below.
    while commands.try_recv().is_ok() {}
    let names: Vec<String> = channels.lock().keys().cloned().collect();
    for name in names {
        if execute(&mut connection, channels, SubscriptionCommand::Subscribe(name)).await.is_none() {
            return;
        }
    }
    loop {
        let command = tokio::select! {
            () = shutdown.requested() => return,
            message = connection.next_message() => {
                let Some(channel) = message else { return };
                notify(channels, &channel, ChannelState::Changed);
                continue;
            }
            command = commands.recv() => command,
        };
        let Some(command) = command else { return };
        if execute(&mut connection, channels, command).await.is_none() {
            return;
        }
    }
}

/// Executes a command; `None` if the connection is broken.
async fn execute(connection: &mut PubSubConnection, channels: &Channels, command: SubscriptionCommand) -> Option<()> {
    match command {
        SubscriptionCommand::Subscribe(channel) => {
            match timeout(PAUSE, connection.subscribe(&channel)).await.ok()? {
                Ok(()) => notify(channels, &channel, ChannelState::Subscribed),
                // Without the permission for the channel its waiters poll: economy is lost, and nothing else.
                Err(error) if error.code() == Some("NOPERM") => {}
                Err(_) => return None,
            }
        }
        SubscriptionCommand::Unsubscribe(channel) => {
            // A new waiter may have come in the meantime.
            let is_unused = !channels.lock().contains_key(&channel);
            if is_unused {
                timeout(PAUSE, connection.unsubscribe(&channel)).await.ok()?.ok()?;
            }
        }
    }
    Some(())
}
