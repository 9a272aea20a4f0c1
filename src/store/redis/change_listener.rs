//! Hears the changes that any process applied: the script of an event publishes them on one channel.
//!
//! Redis keeps nothing for a subscriber that is not connected. So a broken connection makes a gap in the feed, and the
//! next one another: from then on all changes arrive. In a cluster a message reaches every node, so one node is enough; its
//! own connection, not that of the cluster's client, shows when it breaks. A silent server is noticed by a ping.
//!
//! A server that answers may not be the one where events are applied any more: the sentinels name another master, or the
//! name in the configuration moved. Then nothing would ever be heard again. So the connection ends when the sentinels name
//! another master. Where a name leads to the server, it is replaced after its [`MaxAge`]: the next connection is made first, and a
//! mark is published by a third one. If both subscriptions hear it, what the old one still hears the new one hears too, and
//! there is no gap. A change that comes in between may be heard twice. An old server that was made a replica of the new one
//! meanwhile passes for the same.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSubStream;
use redis::{Msg, RedisResult};
use tokio::time::{interval, sleep, timeout};
use uuid::Uuid;

use crate::domain::{Key, Kind};
use crate::max_age::MaxAge;
use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::store::changes::ChangeFeed;
use crate::supervise::Backoff;

use super::client::{ServerClient, Settings};
use super::config::{Config, Endpoints, Mode};
use super::error::{explain, refused};
use super::sentinels::MOVED;
use super::subscriber::Subscription;

/// The channel of applied changes, followed by the number of the database: channels are common to all databases.
const CHANNEL: &str = "cust:changes:";

/// The first character of a mark, which is no change.
const MARK: &str = "=";

/// The time between two pings, and the longest that connecting or one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a mark may fail to be published before the next connection is used without a proof.
const MAX_UNPROVED: u32 = 5;

/// Why a connection is given up.
const BROKEN: &str = "it broke, or the server is silent";
const UNHEARD: &str = "the name leads to several servers";

/// Listens to one server.
struct Listener {
    client: ServerClient,
    max_age: MaxAge,
    /// Whether messages of several nodes arrive, in no order.
    is_of_cluster: bool,
    channel: String,
    feed: ChangeFeed,
}

/// Starts to publish in `feed`, from its first reader on, the changes that any process applies to a Redis.
///
/// # Errors
///
/// The configuration is invalid.
pub fn listen(config: &Config, feed: &ChangeFeed, shutdown: &Shutdown) -> Result<(), Error> {
    let listeners = config.of_each_node().into_iter().map(|node| {
        let settings = Settings::read(&node).map_err(refused)?;
        Ok(Listener {
            client: ServerClient::new(&node, &settings).map_err(|error| explain(&error))?,
            max_age: match settings.endpoints {
                // They are asked all the time.
                Endpoints::Sentinel { .. } => MaxAge::new(Duration::MAX, []),
                Endpoints::Single(_) | Endpoints::Cluster(_) => node.max_age().map_err(refused)?,
            },
            is_of_cluster: config.mode == Some(Mode::Cluster),
            channel: channel(&settings.endpoints),
            feed: feed.clone(),
        })
    });
    let listeners = listeners.collect::<Result<Vec<_>, Error>>()?;
    feed.spawn_when_wanted(shutdown, run(listeners, shutdown.clone()));
    Ok(())
}

/// Returns the name of the channel on which scripts publish applied changes.
pub(super) fn channel(endpoints: &Endpoints) -> String {
    format!("{CHANNEL}{}", endpoints.database())
}

/// Listens until shutdown, to one node after the other.
async fn run(mut listeners: Vec<Listener>, shutdown: Shutdown) {
    let mut backoff = Backoff::default();
    loop {
        for listener in &mut listeners {
            if let Some(subscription) = listener.subscribe().await {
                backoff.reset();
                listener.feed.set_live(true);
                let reason = tokio::select! {
                    () = shutdown.requested() => return,
                    reason = listener.follow(subscription) => reason,
                };
                listener.feed.set_live(false);
                tracing::warn!(
                    reason,
                    "the connection for the change feed is given up, connecting again; streams of changes are reset"
                );
            }
            backoff.pause(&shutdown).await;
            if shutdown.is_requested() {
                return;
            }
        }
    }
}

impl Listener {
    /// Connects and subscribes, if both succeed in time.
    async fn subscribe(&mut self) -> Option<Subscription> {
        let subscribing = async {
            let mut subscription = self.client.subscription().await?;
            subscription.sink.subscribe(&self.channel).await?;
            RedisResult::Ok(subscription)
        };
        timeout(PATIENCE, subscribing).await.ok()?.ok()
    }

    /// Forwards changes until the connection is to be given up, and returns why. Replaces it when it has reached its age.
    async fn follow(&mut self, mut current: Subscription) -> &'static str {
        let (mut backoff, mut retry, mut unproved) = (Backoff::default(), None, 0);
        loop {
            let (max_age, wait) = (self.max_age, retry.take());
            let due = async {
                match wait {
                    Some(pause) => sleep(pause).await,
                    None => max_age.reached().await,
                }
            };
            tokio::select! {
                () = forward(&mut current, &self.channel, &self.feed) => return BROKEN,
                () = self.client.moved() => return MOVED,
                () = due => {}
            }
            let (channel, feed) = (self.channel.clone(), self.feed.clone());
            let next = tokio::select! {
                () = forward(&mut current, &channel, &feed) => return BROKEN,
                next = self.subscribe() => next,
            };
            let Some(mut next) = next else {
                // The present connection works.
                retry = Some(backoff.next_delay());
                continue;
            };
            match self.hear_a_mark(&mut current, &mut next).await {
                Some((true, true)) => {
                    if self.is_of_cluster {
                        // What one node publishes may overtake the mark of another on its way to the new connection only.
                        let both = async {
                            tokio::join!(messages(&mut current.stream, &feed), messages(&mut next.stream, &feed))
                        };
                        let _ = timeout(PATIENCE, both).await;
                    }
                }
                Some((_, false)) => return UNHEARD,
                None if unproved < MAX_UNPROVED => {
                    unproved += 1;
                    retry = Some(backoff.next_delay());
                    continue;
                }
                Some((false, true)) | None => {
                    tracing::info!("redis may lead to another server than before; streams of changes are reset");
                    self.feed.set_live(true);
                }
            }
            (current, unproved) = (next, 0);
            backoff.reset();
        }
    }

    /// Publishes a mark by a connection of its own, and returns which of two subscriptions hear it; `None` if it could not be
    /// published. Both forward changes meanwhile.
    async fn hear_a_mark(&mut self, old: &mut Subscription, new: &mut Subscription) -> Option<(bool, bool)> {
        let (mark, feed) = (format!("{MARK}{}", Uuid::new_v4().simple()), self.feed.clone());
        let heard = async { tokio::join!(until(&mut old.stream, &mark, &feed), until(&mut new.stream, &mark, &feed)) };
        let unpublished = async {
            if self.publish(&mark).await.is_some() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            heard = heard => Some(heard),
            () = unpublished => None,
        }
    }

    async fn publish(&mut self, message: &str) -> Option<()> {
        let publishing = async {
            let mut connection = self.client.connect().await?;
            redis::cmd("PUBLISH").arg(&self.channel).arg(message).exec_async(&mut connection).await
        };
        timeout(PATIENCE, publishing).await.ok()?.ok()
    }
}

/// Forwards changes until the connection breaks or is silent. Cancel-safe.
async fn forward(subscription: &mut Subscription, channel: &str, feed: &ChangeFeed) {
    let Subscription { sink, stream } = subscription;
    // Redis confirms a subscription that it has already: the ping of a subscriber.
    let pings = async {
        let mut due = interval(PATIENCE);
        loop {
            due.tick().await;
            if !matches!(timeout(PATIENCE, sink.subscribe(channel)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    tokio::select! {
        () = pings => {}
        () = messages(stream, feed) => {}
    }
}

/// Forwards changes until the stream ends. Cancel-safe.
async fn messages(stream: &mut PubSubStream, feed: &ChangeFeed) {
    while let Some(message) = stream.next().await {
        publish(&message, feed);
    }
}

/// Forwards changes up to a mark; returns whether it came in time.
async fn until(stream: &mut PubSubStream, mark: &str, feed: &ChangeFeed) -> bool {
    let coming = async {
        while let Some(message) = stream.next().await {
            if message.get_payload_bytes() == mark.as_bytes() {
                return true;
            }
            publish(&message, feed);
        }
        false
    };
    // The mark takes as long to be published as may be, and as long to arrive.
    timeout(PATIENCE * 2, coming).await.unwrap_or_default()
}

fn publish(message: &Msg, feed: &ChangeFeed) {
    match parse(message.get_payload_bytes()) {
        Some((kind, key)) => feed.publish(key, kind),
        None if message.get_payload_bytes().starts_with(MARK.as_bytes()) => {}
        None => tracing::debug!("ignoring an invalid message of the change feed"),
    }
}

/// Parses a message: what the event did (`C`, `U`, `D`), and the entry key.
fn parse(payload: &[u8]) -> Option<(Kind, Key)> {
    let text = std::str::from_utf8(payload).ok()?;
    let kind = match text.get(..1)? {
        "C" => Kind::Created,
        "U" => Kind::Updated,
        "D" => Kind::Deleted,
        _ => return None,
    };
    Some((kind, text.get(1..)?.parse().ok()?))
}
