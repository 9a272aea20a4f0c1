//! Hears the changes that any process applied: the script of an event publishes them on one channel.
//!
//! Redis keeps nothing for a subscriber that is not connected. So a broken connection makes a gap in the feed, and the
//! next one another: from then on all changes arrive. In a cluster a message reaches every node, so one node is enough; its
//! own connection, not that of the cluster's client, shows when it breaks. A silent server is noticed by a ping.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Msg, RedisResult};
use tokio::time::{interval, timeout};

use crate::domain::{Key, Kind};
use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::store::changes::ChangeFeed;
use crate::supervise::Backoff;

use super::client::RedisClient;
use super::config::{Config, Endpoints};
use super::error::refused;
use super::subscriber::PubSubConnection;

/// The channel of applied changes, followed by the number of the database: channels are common to all databases.
const CHANNEL: &str = "cust:changes:";

/// The time between two pings, and the longest that connecting or one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Starts to publish in `feed` the changes that any process applies to a Redis.
///
/// # Errors
///
/// The configuration is invalid.
pub fn listen(config: &Config, feed: ChangeFeed, shutdown: &Shutdown) -> Result<(), Error> {
    let clients = config.of_each_node().into_iter().map(|node| RedisClient::new(&node, |cluster| cluster));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let endpoints = config.endpoints().map_err(refused)?;
    shutdown.spawn(run(clients, channel(&endpoints), feed, shutdown.clone()));
    Ok(())
}

/// Returns the name of the channel on which scripts publish applied changes.
pub(super) fn channel(endpoints: &Endpoints) -> String {
    format!("{CHANNEL}{}", endpoints.database())
}

/// Listens until shutdown, to one node after the other.
async fn run(mut clients: Vec<RedisClient>, channel: String, feed: ChangeFeed, shutdown: Shutdown) {
    let mut backoff = Backoff::default();
    loop {
        for client in &mut clients {
            if let Ok(Ok(PubSubConnection::Single(sink, stream))) = timeout(PATIENCE, subscribe(client, &channel)).await
            {
                backoff.reset();
                feed.set_live(true);
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = forward(sink, stream, &channel, &feed) => {}
                }
                feed.set_live(false);
                tracing::warn!(
                    "the connection for the change feed is broken, connecting again; streams of changes are reset"
                );
            }
            backoff.pause(&shutdown).await;
            if shutdown.is_requested() {
                return;
            }
        }
    }
}

async fn subscribe(client: &mut RedisClient, channel: &str) -> RedisResult<PubSubConnection> {
    let mut connection = client.connect_pubsub().await?;
    connection.subscribe(channel).await?;
    Ok(connection)
}

/// Forwards messages until the connection breaks or is silent.
async fn forward(mut sink: PubSubSink, mut stream: PubSubStream, channel: &str, feed: &ChangeFeed) {
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
    let messages = async {
        while let Some(message) = stream.next().await {
            match parse(&message) {
                Some((kind, key)) => feed.publish(key, kind),
                None => tracing::debug!("ignoring an invalid message of the change feed"),
            }
        }
    };
    tokio::select! {
        () = pings => {}
        () = messages => {}
    }
}

/// Parses a message: what the event did (`C`, `U`, `D`), and the entry key.
fn parse(message: &Msg) -> Option<(Kind, Key)> {
    let text = std::str::from_utf8(message.get_payload_bytes()).ok()?;
    let kind = match text.get(..1)? {
        "C" => Kind::Created,
        "U" => Kind::Updated,
        "D" => Kind::Deleted,
        _ => return None,
    };
    Some((kind, text.get(1..)?.parse().ok()?))
}
