//! A connection for subscriptions: to one server or to a cluster.

use futures_util::StreamExt;
use redis::RedisResult;
use redis::aio::{PubSubSink, PubSubStream};
use redis::cluster_async::ClusterConnection;

/// A connection to one server on which channels are subscribed.
pub(super) struct Subscription {
    pub(super) sink: PubSubSink,
    /// What is published in them. It ends with the connection.
    pub(super) stream: PubSubStream,
}

/// A connection on which channels are subscribed.
pub(super) enum PubSubConnection {
    Single(Subscription),
    /// Reconnects to each node by itself and subscribes again. Its messages go to the callback of the client.
    Cluster(ClusterConnection),
}

impl PubSubConnection {
    /// Subscribes to a channel; returns once the server has confirmed it.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(server) => server.sink.subscribe(channel).await,
            Self::Cluster(cluster) => cluster.ssubscribe(channel).await,
        }
    }

    /// Ends a subscription.
    pub(super) async fn unsubscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::Single(server) => server.sink.unsubscribe(channel).await,
            Self::Cluster(cluster) => cluster.sunsubscribe(channel).await,
        }
    }

    /// Waits for a message and returns its channel; `None` when the connection has ended.
    pub(super) async fn next_message(&mut self) -> Option<String> {
        match self {
            Self::Single(server) => server.stream.next().await.map(|message| message.get_channel_name().to_owned()),
            Self::Cluster(_) => std::future::pending().await,
        }
    }
}
