//! The AMQP queue under the queue's contract: on one RabbitMQ node.

use async_trait::async_trait;
use profile_edge::config;
use profile_edge::queue::open::{Config, Kind, Opened};

use super::queue::{Fixture, open};
use crate::support::servers::rabbit::RabbitServer;

/// A virtual host of one's own on the node that all tests share.
pub(crate) struct Alone {
    vhost: String,
    config: Config,
}

#[async_trait]
impl Fixture for Alone {
    const HISTORIES: u32 = 6;

    async fn new() -> Self {
        let server = RabbitServer::shared().await;
        let vhost = server.vhost().await;
        let mut config = config::from_toml("").unwrap().config.queue;
        config.kind = Kind::Amqp;
        config.amqp = server.config(&vhost);
        config.amqp.shards = 2;
        Self { vhost, config }
    }

    async fn open(&self) -> Opened {
        open(&self.config).await
    }

    async fn inject(&self, bytes: &[u8]) {
        let server = RabbitServer::shared().await;
        server.publish(&self.vhost, "amq.default", "profile-edge.invalidations.0", bytes).await;
    }
}
