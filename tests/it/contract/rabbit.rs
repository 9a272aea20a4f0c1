//! The AMQP queue under the queue's contract: on one RabbitMQ node, and on a cluster of three.

use async_trait::async_trait;
use profile_edge::config;
use profile_edge::domain::Secret;
use profile_edge::queue::open::{Config, OpenQueue, QueueKind};
use profile_edge::queue::{DeadLetterReason, amqp};
use serde_json::json;
use tempfile::TempDir;

use super::queue::{Fixture, events, holds, id, open, take};
use crate::support::eventually;
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
        // It opens without the broker, if that takes long.
        eventually("a connection to the broker", || async { opened.queue.depth().await.ok() }).await;
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

/// A broker that may deliver a message a few times only drops it afterwards, however often it was the consumer that ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_limit_set_by_a_policy_drops_no_event() {
    const LIMIT: u32 = 8;
    let Alone(place) = Alone::new().await;
    let opened = open(&place.config).await;
    let (ours, rule) = ("invalidations|dead-letters|restores", json!({ "delivery-limit": LIMIT }));
    let policy = json!({ "pattern": ours, "apply-to": "queues", "definition": rule });
    place.server.api("PUT", &format!("/policies/{}/limit", place.vhost), Some(policy)).await.unwrap();
    eventually("both work queues, and those of dead letters and restores, have the limit", || async {
        let queues = place.server.api("GET", &format!("/queues/{}", place.vhost), None).await?;
        let limited = |queue: &&serde_json::Value| queue["effective_policy_definition"]["delivery-limit"] == LIMIT;
        (queues.as_array()?.iter().filter(limited).count() == 4).then_some(())
    })
    .await;
    opened.publisher.publish(&events([1])).await.unwrap();
    let (mut counted, mut round) = (0, 0);
    // A subscription that ended may leave a copy beside the original, whose count is lower.
    while counted <= 2 * LIMIT - 2 && round < 16 * LIMIT {
        let mut subscription = opened.queue.subscribe(1).await.unwrap();
        let delivery = take(&mut subscription).await;
        assert_eq!(id(&delivery), "1");
        counted = counted.max(delivery.redelivered());
        if round < 2 {
            delivery.retry().await.unwrap();
            drop(take(&mut subscription).await);
        }
        round += 1;
    }
    assert!(counted > LIMIT, "{counted} after {round} rounds");
    let mut subscription = opened.queue.subscribe(8).await.unwrap();
    opened.publisher.publish(&events([2])).await.unwrap();
    let settled = async {
        loop {
            let delivery = subscription.next().await.unwrap();
            match id(&delivery).as_str() {
                "2" => delivery.dead_letter(DeadLetterReason::RedeliveredTooOften).await.unwrap(),
                _ => delivery.ack().await.unwrap(),
            }
        }
    };
    let listed = async {
        holds(&opened, 0, 1).await;
        // Each listing takes the dead letters and returns them.
        for _ in 0..2 * LIMIT {
            assert_eq!(opened.dead_letters.list(10).await.unwrap().len(), 1);
        }
        holds(&opened, 0, 1).await;
    };
    tokio::select! {
        () = listed => {}
        () = settled => {}
    }
}

/// A channel that failed before leaves nothing to the one that gets its number: each probe opens channels, and a connection has
/// 2,047 numbers.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_failed_channel_is_used_again() {
    // The first start asks for queues that do not exist yet, which closes channels.
    let opened = Alone::new().await.open().await;
    for probe in 0..2_100 {
        let depth = opened.queue.depth().await;
        assert!(depth.is_ok(), "probe {probe}: {depth:?}");
    }
}
