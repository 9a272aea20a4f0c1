//! The AMQP queue under the queue's contract: on one RabbitMQ node, and on a cluster of three.

use async_trait::async_trait;
use profile_edge::config;
use profile_edge::domain::Secret;
use profile_edge::queue::amqp;
use profile_edge::queue::open::{Config, OpenQueue, QueueKind};
use tempfile::TempDir;

use super::queue::{Fixture, open};
use crate::support::servers::rabbit::{RabbitCluster, RabbitServer};

/// An own virtual host on the node that all tests share.
pub(crate) struct Alone(Place<'static>);

/// The same, with an outbox that nothing goes to while the broker answers.
pub(crate) struct WithOutbox {
    place: Place<'static>,
    _directory: TempDir,
}

/// An own virtual host on the three nodes that all tests share. Queues have a member on each node.
pub(crate) struct OnThreeNodes(Place<'static>);

/// A virtual host, and the configuration that points at it.
pub(super) struct Place<'s> {
    server: &'s RabbitServer,
    vhost: String,
    pub(super) config: Config,
}

impl<'s> Place<'s> {
    pub(super) async fn on(server: &'s RabbitServer, adapt: impl FnOnce(&str, &mut amqp::Config)) -> Self {
        let vhost = server.vhost().await;
        let mut config = config::from_toml("").unwrap().config.queue;
        config.kind = QueueKind::Amqp;
        config.amqp = server.config(&vhost);
        config.amqp.shards = 2;
        adapt(&vhost, &mut config.amqp);
        Self { server, vhost, config }
    }

    async fn inject(&self, bytes: &[u8]) {
        self.server.publish(&self.vhost, "amq.default", "profile-edge.invalidations.0", bytes).await;
    }
}

#[async_trait]
impl Fixture for Alone {
    const HISTORIES: u32 = 6;

    async fn new() -> Self {
        Self(Place::on(RabbitServer::shared().await, |_, _| {}).await)
    }

    async fn open(&self) -> OpenQueue {
        open(&self.0.config).await
    }

    async fn inject(&self, bytes: &[u8]) {
        self.0.inject(bytes).await;
    }
}

#[async_trait]
impl Fixture for WithOutbox {
    const HISTORIES: u32 = 3;

    async fn new() -> Self {
        let (mut place, directory) =
            (Place::on(RabbitServer::shared().await, |_, _| {}).await, tempfile::tempdir().unwrap());
        (place.config.outbox.enabled, place.config.outbox.path) = (true, directory.path().join("outbox"));
        Self { place, _directory: directory }
    }

    async fn open(&self) -> OpenQueue {
        let opened = open(&self.place.config).await;
        assert!(opened.outbox.is_some());
        opened
    }

    async fn inject(&self, bytes: &[u8]) {
        self.place.inject(bytes).await;
    }
}

#[async_trait]
impl Fixture for OnThreeNodes {
    const HISTORIES: u32 = 3;

    async fn new() -> Self {
        let cluster = RabbitCluster::shared().await;
        let links = |vhost: &str, config: &mut amqp::Config| {
            config.urls = cluster.urls(vhost).into_iter().map(Secret::new).collect();
        };
        Self(Place::on(&cluster.nodes[0], links).await)
    }

    async fn open(&self) -> OpenQueue {
        open(&self.0.config).await
    }

    async fn inject(&self, bytes: &[u8]) {
        self.0.inject(bytes).await;
    }
}
