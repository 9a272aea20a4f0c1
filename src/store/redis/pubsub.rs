//! Announcements: whoever fills a key says so on the channel of its name, and wakes whoever waits there.
//!
//! One connection for subscriptions, mended in the background; in a cluster, the channels are sharded (Redis 7),
//! so that an announcement stays on the key's own node. It is economy only: a waiter looks again by itself
//! from time to time, so a lost announcement, or no connection at all, costs a moment. A channel is subscribed
//! while someone of this process waits on its key, at most [`MAX_CHANNELS`] at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::aio::{PubSubSink, PubSubStream};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::SentinelClient;
use redis::{Client, ProtocolVersion, PushInfo, PushKind, RedisResult, TlsCertificates, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::shutdown::Shutdown;
use crate::store::Error;

use super::config::Place;
use super::connection::explain;

/// How many keys may be waited on with an announcement.
const MAX_CHANNELS: usize = 4096;

/// How long to leave a broken connection alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The announcements that a process listens to.
#[derive(Clone, Debug)]
pub(super) struct Announcements {
    bells: Arc<Bells>,
    orders: mpsc::Sender<Order>,
}

/// Who waits, by the names of the channels.
type Bells = Mutex<HashMap<String, Bell>>;

/// Who waits on one key.
#[derive(Debug)]
struct Bell {
    told: watch::Sender<Told>,
    waiters: usize,
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing yet; it may not even be subscribed.
    Nothing,
    /// It is subscribed: what is announced from now on is heard.
    Subscribed,
    /// The key has changed.
    Changed,
}

/// What the connection's task is to do.
#[derive(Debug)]
enum Order {
    Subscribe(String),
    Unsubscribe(String),
}

/// A waiter's ear at one key; dropping it ends the subscription if it was the last.
#[derive(Debug)]
pub(super) struct KeyListener {
    announcements: Announcements,
    channel: String,
    told: Option<watch::Receiver<Told>>,
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
        let bells = Arc::default();
        let source = Source::of(place, certificates, &bells).map_err(|error| explain(&error))?;
        let (orders, taken) = mpsc::channel(MAX_CHANNELS);
        shutdown.spawn(listen(source, Arc::clone(&bells), taken, shutdown.clone()));
        Ok(Self { bells, orders })
    }

    /// Opens an ear at a key.
    pub(super) fn listen(&self, channel: &str) -> KeyListener {
        let mut bells = self.bells.lock();
        let known = bells.contains_key(channel);
        let told = (known || bells.len() < MAX_CHANNELS).then(|| {
            let new = || Bell { told: watch::Sender::new(Told::Nothing), waiters: 0 };
            let bell = bells.entry(channel.to_owned()).or_insert_with(new);
            bell.waiters += 1;
            let mut told = bell.told.subscribe();
            // Also what was told before is news to this waiter.
            told.mark_changed();
            told
        });
        drop(bells);
        if !known && told.is_some() {
            // With no room for orders the waiter looks by itself.
            let _ = self.orders.try_send(Order::Subscribe(channel.to_owned()));
        }
        KeyListener { announcements: self.clone(), channel: channel.to_owned(), told }
    }
}

impl KeyListener {
    /// Waits until something is told of the key, and returns it. Cancel-safe.
    pub(super) async fn told(&mut self) -> Told {
        loop {
            let Some(told) = &mut self.told else { return std::future::pending().await };
            // The bell lives as long as an ear at it.
            if told.changed().await.is_err() {
                self.told = None;
                continue;
            }
            match *told.borrow_and_update() {
                Told::Nothing => {}
                news @ (Told::Subscribed | Told::Changed) => return news,
            }
        }
    }
}

impl Drop for KeyListener {
    fn drop(&mut self) {
        if self.told.is_none() {
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

/// Rings the bell of a channel, if anyone waits there.
fn ring(bells: &Bells, channel: &str, told: Told) {
    if let Some(bell) = bells.lock().get(channel) {
        bell.told.send_replace(told);
    }
}

enum Source {
    Node(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

/// Where channels are subscribed.
enum Connection {
    Plain(PubSubSink, PubSubStream),
    /// Mends itself node by node, and subscribes again; its messages ring the bells by themselves.
    Sharded(ClusterConnection),
}

impl Source {
    fn of(place: &Place, certificates: Option<&TlsCertificates>, bells: &Arc<Bells>) -> RedisResult<Self> {
        match place {
            Place::Single(node) => {
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
                    None => Client::open(node.clone()),
                };
                client.map(|client| Self::Node(Box::new(client)))
            }
            Place::Cluster(nodes) => {
                let bells = Arc::clone(bells);
                let hear = move |push: PushInfo| -> Result<(), std::convert::Infallible> {
                    if let (PushKind::SMessage, Some(Value::BulkString(channel))) = (&push.kind, push.data.first()) {
                        // A key's name is ASCII.
                        ring(&bells, std::str::from_utf8(channel).unwrap_or_default(), Told::Changed);
                    }
                    Ok(())
                };
                let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
                    .use_protocol(ProtocolVersion::RESP3)
                    .connection_timeout(PAUSE)
                    .response_timeout(PAUSE)
                    .push_sender(hear);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.build().map(|client| Self::Cluster(Box::new(client)))
            }
            Place::Sentinel(sentinels, name) => super::connection::sentinel(sentinels, name, certificates)
                .map(|client| Self::Sentinel(Box::new(client))),
        }
    }

    async fn connect(&mut self) -> RedisResult<Connection> {
        let client = match self {
            Self::Node(client) => client.as_ref().clone(),
            Self::Sentinel(client) => client.async_get_client().await?,
            Self::Cluster(client) => return client.get_async_connection().await.map(Connection::Sharded),
        };
        let (sink, stream) = client.get_async_pubsub().await?.split();
        Ok(Connection::Plain(sink, stream))
    }
}

impl Connection {
    /// Returns once the server has confirmed the subscription.
    async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Plain(sink, _) => sink.subscribe(channel).await,
            Self::Sharded(cluster) => cluster.ssubscribe(channel).await,
        }
    }

    async fn unsubscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Plain(sink, _) => sink.unsubscribe(channel).await,
            Self::Sharded(cluster) => cluster.sunsubscribe(channel).await,
        }
    }

    /// Waits for a message and returns its channel; `None` when the connection has ended.
    async fn heard(&mut self) -> Option<String> {
        match self {
            Self::Plain(_, stream) => stream.next().await.map(|message| message.get_channel_name().to_owned()),
            Self::Sharded(_) => std::future::pending().await,
        }
    }
}

async fn listen(mut source: Source, bells: Arc<Bells>, mut orders: mpsc::Receiver<Order>, shutdown: Shutdown) {
    while !shutdown.is_requested() {
        let connected = tokio::select! {
            () = shutdown.requested() => return,
            connected = timeout(PAUSE, source.connect()) => connected,
        };
        if let Ok(Ok(connection)) = connected {
            pass_on(connection, &bells, &mut orders, &shutdown).await;
        }
        // Either way it is time to go on.
        let _ = timeout(PAUSE, shutdown.requested()).await;
    }
}

/// Serves one connection until it breaks.
async fn pass_on(mut connection: Connection, bells: &Bells, orders: &mut mpsc::Receiver<Order>, shutdown: &Shutdown) {
    // What was ordered before is either waited on still or not wanted any more.
    while orders.try_recv().is_ok() {}
    let waited_on: Vec<String> = bells.lock().keys().cloned().collect();
    for channel in waited_on {
        if follow(&mut connection, bells, Order::Subscribe(channel)).await.is_none() {
            return;
        }
    }
    loop {
        let order = tokio::select! {
            () = shutdown.requested() => return,
            heard = connection.heard() => {
                let Some(channel) = heard else { return };
                ring(bells, &channel, Told::Changed);
                continue;
            }
            order = orders.recv() => order,
        };
        let Some(order) = order else { return };
        if follow(&mut connection, bells, order).await.is_none() {
            return;
        }
    }
}

/// Does what was ordered; `None` when the connection is broken.
async fn follow(connection: &mut Connection, bells: &Bells, order: Order) -> Option<()> {
    match order {
        Order::Subscribe(channel) => {
            timeout(PAUSE, connection.subscribe(&channel)).await.ok()?.ok()?;
            ring(bells, &channel, Told::Subscribed);
        }
        Order::Unsubscribe(channel) => {
            // Someone may have begun to wait again meanwhile.
            let unwanted = !bells.lock().contains_key(&channel);
            if unwanted {
                timeout(PAUSE, connection.unsubscribe(&channel)).await.ok()?.ok()?;
            }
        }
    }
    Some(())
}
