//! Outages under load: lookups and events while Redis or RabbitMQ fails.
//!
//! Ingest and lookups run in this process, and the consumer in its own, so that its processor time can be measured.
//! `PROFILE_EDGE_TEST_OUTAGE` sets the length of an outage in seconds; `.ci/nightly` sets longer ones.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::support::edge::{Edge, on_rabbit, with_sandbox_of};
use crate::support::eventually;
use crate::support::load::Load;
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::rabbit::{RabbitCluster, RabbitServer};
use crate::support::servers::redis::{Deployment, RedisServer, Setup};

const WORK_QUEUE: &str = "profile-edge.invalidations.0";

/// The share of one processor that a consumer may use while it has nothing to do. On an idle machine it uses a hundredth
/// of that.
const NEAR_IDLE: f64 = 0.2;

/// How long an outage lasts.
fn outage() -> Duration {
    let seconds = std::env::var("PROFILE_EDGE_TEST_OUTAGE").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// A service in two processes.
struct Site {
    /// Ingest and lookups, and the sandbox.
    front: Edge,
    consumer: Process,
    admin: u16,
    _directory: TempDir,
}

impl Site {
    async fn start(shared: &str) -> Self {
        let settings = format!("roles = [\"ingest\", \"lookup\"]\n[sandbox]\nlatency = \"0ms\"\n{shared}");
        let front = Edge::start_with(&settings).await;
        let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
        let own = format!(
            "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:{admin}\"\nsandbox.enabled = false\n{shared}{}",
            with_sandbox_of(front.sandbox_address())
        );
        let file = configuration(directory.path(), &own);
        let arguments = ["run", "--role", "consumer", "--config", &file.display().to_string()];
        let consumer = Process::start(directory.path(), &arguments, &[]);
        let site = Self { front, consumer, admin, _directory: directory };
        eventually("the consumer is ready", || async { site.scrape().await.map(drop) }).await;
        site
    }

    async fn on_cluster(redis: &Deployment, cluster: &RabbitCluster) -> Self {
        let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", redis.settings);
        let urls = cluster.urls("%2f").iter().map(|url| format!("{url:?}")).collect::<Vec<_>>().join(", ");
        Self::start(&format!("{store}[queue]\nkind = \"amqp\"\n[queue.amqp]\nurls = [{urls}]\n")).await
    }

    async fn scrape(&self) -> Option<String> {
        let answer = self.front.client.get(format!("http://127.0.0.1:{}/metrics", self.admin)).send().await;
        answer.ok()?.text().await.ok()
    }

    /// Waits for the length of an outage, and checks that the consumer is idle meanwhile.
    async fn sits_idle(&self) {
        let (began, used) = (Instant::now(), self.consumer.processor_time());
        sleep(outage()).await;
        let used = self.consumer.processor_time() - used;
        let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
        println!("the consumer used {:.1} % of a processor during the outage", share * 100.0);
        assert!(share < NEAR_IDLE, "the consumer used {share} of a processor while it could do nothing");
    }

    /// Checks after the load that no accepted event is lost and that no lookup returns an old profile.
    async fn lost_nothing(&self, load: &Load<'_>, redis: &RedisServer) {
        println!("{}", load.summary());
        load.all_were_answered_in_time();
        load.accepted_are_applied(&redis.connect().await.unwrap()).await;
        load.answers_are_current().await;
        let scrape = self.scrape().await.unwrap();
        assert!(scrape.contains("\nprofile_edge_dead_letters 0\n"), "{scrape}");
    }

    async fn stop(mut self) {
        self.consumer.signal("TERM");
        assert_eq!(self.consumer.ended().await, Some(0), "{}", self.consumer.log());
        self.front.stop().await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Killed,
    Stopped,
    Stalled,
}

/// Redis fails under load and recovers: lookups go to Genesys or get a 503, events are accepted all the time, and every
/// one of them is applied afterwards.
async fn redis_is(trouble: Trouble) {
    let mut redis = RedisServer::start(&[]).await;
    let proxy = Proxy::to(redis.port).await;
    let broker = RabbitServer::shared().await;
    let vhost = broker.vhost().await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"redis://{}\"\n", proxy.address);
    let site = Site::start(&format!("{store}{}", on_rabbit(&broker.url(&vhost)))).await;
    let front = &site.front;
    let load = Load::on(front).await;
    let story = async {
        load.accepts(200).await;
        match trouble {
            Trouble::Killed => redis.kill().await,
            Trouble::Stopped => redis.pause().await,
            Trouble::Stalled => proxy.set(Link::Stalled),
        }
        site.consumer.wait_for_log("the store is down").await;
        front.is_without("store").await;
        let accepted = load.accepted();
        site.sits_idle().await;
        assert!(load.accepted() > accepted, "{trouble:?}: events are accepted while the store is down");
        let since = load.lookups().len();
        match trouble {
            Trouble::Killed => redis.restart().await,
            Trouble::Stopped => redis.unpause().await,
            Trouble::Stalled => proxy.set(Link::Whole),
        }
        eventually("hits again", || async {
            load.lookups()[since..].iter().any(|lookup| lookup.reply.starts_with("profile-edge; hit")).then_some(())
        })
        .await;
        load.accepts(200).await;
        front.is_ready().await;
    };
    load.during(story).await;
    let bypassed = load.lookups().iter().filter(|lookup| lookup.reply.contains("detail=store-unavailable")).count();
    assert!(bypassed > 0, "{trouble:?}: lookups continue without the store");
    site.lost_nothing(&load, &redis).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_redis_under_load_loses_no_event_and_blocks_no_lookup() {
    redis_is(Trouble::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_redis_under_load_loses_no_event_and_blocks_no_lookup() {
    redis_is(Trouble::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalling_redis_under_load_loses_no_event_and_blocks_no_lookup() {
    redis_is(Trouble::Stalled).await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerTrouble {
    Killed,
    Stopped,
    Alarmed,
    QueueDeleted,
}

/// The broker fails under load in several ways: senders get a 503, lookups are not affected, and events that were
/// accepted before, during and after are applied.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_failures_under_load_lose_no_confirmed_event() {
    let redis = Deployment::start(Setup::Single).await;
    let mut broker = RabbitServer::start("").await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", redis.settings);
    let site = Site::start(&format!("{store}{}", on_rabbit(&broker.url("%2f")))).await;
    let front = &site.front;
    let load = Load::on(front).await;
    let story = async {
        use BrokerTrouble::{Alarmed, Killed, QueueDeleted, Stopped};
        for trouble in [Killed, Stopped, Alarmed, QueueDeleted] {
            load.accepts(200).await;
            match trouble {
                Killed => broker.kill().await,
                Stopped => broker.pause().await,
                Alarmed => broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await,
                QueueDeleted => {
                    broker.api("DELETE", &format!("/queues/%2f/{WORK_QUEUE}"), None).await.expect("it is deleted");
                }
            }
            if trouble != QueueDeleted {
                front.is_without("queue").await;
                let accepted = load.accepted();
                site.sits_idle().await;
                assert_eq!(load.accepted(), accepted, "{trouble:?}: nothing is accepted that the broker has not");
            }
            match trouble {
                Killed => broker.restart().await,
                Stopped => broker.unpause().await,
                Alarmed => broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await,
                QueueDeleted => {}
            }
        }
        load.accepts(200).await;
    };
    load.during(story).await;
    load.lookups_were_served();
    site.lost_nothing(&load, &redis.servers[0]).await;
    site.stop().await;
}

/// Every node of three is replaced, one after the other: by the programs in the directory of `PROFILE_EDGE_TEST_UPGRADE`, or
/// else by its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_three_nodes_under_load_loses_nothing() {
    let redis = Deployment::start(Setup::Single).await;
    let mut cluster = RabbitCluster::start().await;
    let site = Site::on_cluster(&redis, &cluster).await;
    let load = Load::on(&site.front).await;
    let before = cluster.nodes[0].version().await;
    let story = async {
        load.accepts(200).await;
        for node in 0..cluster.nodes.len() {
            cluster.nodes[node].replace(std::env::var("PROFILE_EDGE_TEST_UPGRADE").ok()).await;
            cluster.is_whole().await;
            // Its queues have a member on every node again, so that the next one may stop.
            cluster.leader("%2f", WORK_QUEUE).await;
            load.accepts(200).await;
        }
        cluster.nodes[0].ctl(&["enable_feature_flag", "all"]).await;
        load.accepts(200).await;
    };
    load.during(story).await;
    println!("replaced {before} by {}", cluster.nodes[0].version().await);
    load.lookups_were_served();
    site.lost_nothing(&load, &redis.servers[0]).await;
    site.stop().await;
}

/// Two nodes of three are killed one after the other: the node that the service is connected to, and then the leader of
/// the work queue. Both times the service continues with the other nodes.
#[tokio::test(flavor = "multi_thread")]
async fn killing_one_of_three_nodes_under_load_loses_nothing() {
    let redis = Deployment::start(Setup::Single).await;
    let mut cluster = RabbitCluster::start().await;
    let site = Site::on_cluster(&redis, &cluster).await;
    let load = Load::on(&site.front).await;
    let story = async {
        load.accepts(200).await;
        // URLs are tried in their order, so both processes publish to this node.
        cluster.nodes[0].kill().await;
        site.consumer.wait_for_log("the connection to the broker is down").await;
        load.accepts(400).await;
        cluster.nodes[0].restart().await;
        let leader = cluster.leader("%2f", WORK_QUEUE).await;
        cluster.nodes[leader].kill().await;
        load.accepts(400).await;
    };
    load.during(story).await;
    load.lookups_were_served();
    site.lost_nothing(&load, &redis.servers[0]).await;
    site.stop().await;
}
