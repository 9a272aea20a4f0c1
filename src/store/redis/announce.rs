//! Announcements: whoever fills a key says so on the channel of its name, and wakes whoever waits there.
//!
//! One connection for subscriptions, mended in the background. It is economy only: a waiter looks again by
//! itself every few milliseconds, so a lost announcement, or no connection at all, costs a moment. A
//! channel is subscribed while someone of this process waits on its key, at most [`MAX_CHANNELS`] at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::aio::PubSub;
use redis::sentinel::SentinelClient;
use redis::{Client, RedisResult, TlsCertificates};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::shutdown::Shutdown;
use crate::store::Error;

use super::config::Place;
use super::link::explain;

/// How many keys may be waited on with an announcement.
const MAX_CHANNELS: usize = 4096;

/// How long to leave a broken connection alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The announcements that a process listens to.
#[derive(Clone, Debug)]
pub(super) struct Announcements {
    bells: Arc<Mutex<HashMap<String, Bell>>>,
    orders: mpsc::Sender<Order>,
}

/// Who waits on one key.
#[derive(Debug)]
struct Bell {
    rung: Arc<Notify>,
    waiters: usize,
}

/// What the connection's task is to do.
#[derive(Debug)]
enum Order {
    Subscribe(String),
    Unsubscribe(String),
}

/// A waiter's ear at one key; dropping it ends the subscription if it was the last.
#[derive(Debug)]
pub(super) struct Ear {
    announcements: Announcements,
    channel: String,
    rung: Option<Arc<Notify>>,
}

impl Announcements {
    /// Starts listening.
    ///
    /// # Errors
    ///
    /// The certificates or addresses cannot be used.
    pub(super) fn open(
        place: &Place,
        certificates: Option<&TlsCertificates>,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let source = Source::of(place, certificates).map_err(|error| explain(&error))?;
        let (orders, taken) = mpsc::channel(MAX_CHANNELS);
        let announcements = Self { bells: Arc::default(), orders };
        shutdown.spawn(listen(source, Arc::clone(&announcements.bells), taken, shutdown.clone()));
        Ok(announcements)
    }

    /// Opens an ear at a key.
    pub(super) fn listen(&self, channel: &str) -> Ear {
        let mut bells = self.bells.lock();
        let known = bells.contains_key(channel);
        let rung = if known || bells.len() < MAX_CHANNELS {
            let bell = bells.entry(channel.to_owned()).or_insert_with(|| Bell { rung: Arc::default(), waiters: 0 });
            bell.waiters += 1;
            Some(Arc::clone(&bell.rung))
        } else {
            None
        };
        drop(bells);
        if !known && rung.is_some() {
            // With no room for orders the waiter looks by itself.
            let _ = self.orders.try_send(Order::Subscribe(channel.to_owned()));
        }
        Ear { announcements: self.clone(), channel: channel.to_owned(), rung }
    }
}

impl Ear {
    /// Waits for the next announcement. Cancel-safe.
    pub(super) async fn rung(&mut self) {
        match &self.rung {
            Some(rung) => rung.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if self.rung.is_none() {
            return;
        }
        let mut bells = self.announcements.bells.lock();
        let Some(bell) = bells.get_mut(&self.channel) else { return };
        bell.waiters -= 1;
        if bell.waiters == 0 {
            bells.remove(&self.channel);
            // With no room the channel stays subscribed until the connection ends; its messages ring nothing.
            let _ = self.announcements.orders.try_send(Order::Unsubscribe(std::mem::take(&mut self.channel)));
        }
    }
}

enum Source {
    /// One of these: a cluster passes announcements on to all its nodes.
    Nodes(Vec<Client>),
    Sentinel(Box<SentinelClient>),
}

impl Source {
    fn of(place: &Place, certificates: Option<&TlsCertificates>) -> RedisResult<Self> {
        let client = |node: &redis::ConnectionInfo| match certificates {
            Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
            None => Client::open(node.clone()),
        };
        match place {
            Place::Single(node) => Ok(Self::Nodes(vec![client(node)?])),
            Place::Cluster(nodes) => Ok(Self::Nodes(nodes.iter().map(client).collect::<RedisResult<_>>()?)),
            Place::Sentinel(sentinels, name) => {
                let client = super::link::sentinel(sentinels, name, certificates)?;
                Ok(Self::Sentinel(Box::new(client)))
            }
        }
    }

    async fn connect(&mut self, attempt: usize) -> RedisResult<PubSub> {
        match self {
            Self::Nodes(nodes) => nodes[attempt % nodes.len()].get_async_pubsub().await,
            Self::Sentinel(client) => client.async_get_client().await?.get_async_pubsub().await,
        }
    }
}

async fn listen(
    mut source: Source,
    bells: Arc<Mutex<HashMap<String, Bell>>>,
    mut orders: mpsc::Receiver<Order>,
    shutdown: Shutdown,
) {
    let mut attempt = 0;
    while !shutdown.is_requested() {
        let connected = tokio::select! {
            () = shutdown.requested() => return,
            connected = timeout(PAUSE, source.connect(attempt)) => connected,
        };
        if let Ok(Ok(connection)) = connected {
            pass_on(connection, &bells, &mut orders, &shutdown).await;
        }
        attempt += 1;
        // Either way it is time to go on.
        let _ = timeout(PAUSE, shutdown.requested()).await;
    }
}

/// Serves one connection until it breaks.
async fn pass_on(
    connection: PubSub,
    bells: &Mutex<HashMap<String, Bell>>,
    orders: &mut mpsc::Receiver<Order>,
    shutdown: &Shutdown,
) {
    let (mut sink, mut messages) = connection.split();
    let waited_on: Vec<String> = bells.lock().keys().cloned().collect();
    for channel in waited_on {
        if sink.subscribe(channel).await.is_err() {
            return;
        }
    }
    loop {
        let order = tokio::select! {
            () = shutdown.requested() => return,
            message = messages.next() => {
                let Some(message) = message else { return };
                if let Some(bell) = bells.lock().get(message.get_channel_name()) {
                    bell.rung.notify_waiters();
                }
                continue;
            }
            order = orders.recv() => order,
        };
        let done = match order {
            Some(Order::Subscribe(channel)) => sink.subscribe(channel).await,
            // Someone may have begun to wait again meanwhile.
            Some(Order::Unsubscribe(channel)) if !bells.lock().contains_key(&channel) => {
                sink.unsubscribe(channel).await
            }
            Some(Order::Unsubscribe(_)) => Ok(()),
            None => return,
        };
        if done.is_err() {
            return;
        }
    }
}
