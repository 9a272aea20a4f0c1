//! The faults: how each is injected and healed, and what must work meanwhile.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::eventually;
use crate::support::servers::proxy::Link;

use super::site::{Shape, Site, WORK_QUEUE};

/// A fault. Those of Redis hit the master, in a cluster one master of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The healthy run, with which the calls to Genesys are compared.
    Healthy,
    /// Redis has no memory left, and evicts nothing.
    RedisFull,
    /// Redis lacks the replicas that it needs for writes.
    RedisWithoutReplicas,
    /// Redis is a replica, of a master that does not answer.
    RedisReadOnly,
    /// Redis delays writes (`CLIENT PAUSE`).
    RedisPausesWrites,
    /// The user of the service may run no scripts.
    RedisWithoutPermission,
    /// Redis cannot save its data, and so takes no writes (`MISCONF`).
    RedisCannotSave,
    /// Redis is stopped (SIGSTOP).
    RedisSilent,
    /// Redis is killed.
    RedisKilled,
    /// Redis is killed, and starts again without its data.
    RedisLosesItsData,
    /// The move of a slot to another master does not end.
    SlotMoving,
    /// The replica becomes the master, and the name leads to it. The old master keeps its clients, and is a replica that
    /// gets no data.
    MasterDemoted,
    /// RabbitMQ is killed.
    BrokerKilled,
    /// RabbitMQ blocks publishers because of an alarm.
    BrokerBlocked,
    /// The work queue is deleted.
    QueueDeleted,
    /// Genesys answers 429, with a `Retry-After` of a day.
    GenesysLimits,
    /// Genesys answers 503.
    GenesysFails,
    /// Every connection to Genesys is closed.
    GenesysCut,
    /// The process gets processor time for half of each period (SIGSTOP and SIGCONT).
    Starved,
}

/// What `/readyz` and a metric show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notice {
    pub(super) dependency: &'static str,
    pub(super) series: &'static str,
}

/// What must work while a fault lasts. Shares are of what was sent during the fault; they leave room for what was under
/// way when it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) notice: Option<Notice>,
    /// The share of events that are accepted.
    pub(super) accepted: f64,
    /// The share of events that are applied.
    pub(super) applied: f64,
    /// Whether calls to Genesys stay at those of the healthy run. They may rise where the store cannot be read or filled:
    /// lookups then go past it.
    pub(super) calls: bool,
    /// The longest time until everything works after the end of the fault.
    pub(super) back: Duration,
}

const STORE: Notice = Notice { dependency: "store", series: "profile_edge_store_up 0" };
const QUEUE: Notice = Notice { dependency: "queue", series: "profile_edge_queue_up 0" };
const GENESYS: Notice = Notice { dependency: "upstream:10001", series: "profile_edge_upstream_breaker_state 2" };

/// How long a fault is held before it is looked at again.
const MOMENT: Duration = Duration::from_millis(50);

/// How long Redis delays writes unless it is told to go on, in milliseconds.
const PAUSE: &str = "600000";

impl Fault {
    /// The faults of Redis that any server can have.
    const OF_A_SERVER: [Self; 7] = [
        Self::RedisFull,
        Self::RedisWithoutReplicas,
        Self::RedisPausesWrites,
        Self::RedisWithoutPermission,
        Self::RedisCannotSave,
        Self::RedisSilent,
        Self::RedisKilled,
    ];

    /// Returns every fault of a site with this Redis, except those of a broker.
    pub(super) fn of(shape: Shape) -> Vec<Self> {
        let mut faults = Self::OF_A_SERVER.to_vec();
        match shape {
            Shape::Single => faults.extend([Self::RedisReadOnly, Self::RedisLosesItsData, Self::MasterDemoted]),
            Shape::Cluster => faults.extend([Self::SlotMoving, Self::RedisLosesItsData]),
            Shape::Sentinel => {}
        }
        faults.extend([Self::GenesysLimits, Self::GenesysFails, Self::GenesysCut, Self::Starved]);
        faults
    }

    /// The faults of a broker.
    pub(super) const OF_THE_BROKER: [Self; 3] = [Self::BrokerKilled, Self::BrokerBlocked, Self::QueueDeleted];

    pub(super) fn expected(self, shape: Shape) -> Expected {
        let back = Duration::from_secs(10);
        let works = Expected { notice: None, accepted: 0.8, applied: 0.6, calls: true, back };
        // Two masters of three go on.
        let applied = if shape == Shape::Cluster { 0.4 } else { 0.0 };
        let store = Expected { notice: Some(STORE), applied, calls: false, ..works };
        let queue = Expected { notice: Some(QUEUE), accepted: 0.0, applied: 0.0, ..works };
        match self {
            Self::Healthy | Self::Starved | Self::SlotMoving => works,
            // A sentinel needs little time for a failover.
            Self::RedisSilent | Self::RedisKilled | Self::RedisPausesWrites if shape == Shape::Sentinel => {
                Expected { notice: None, ..store }
            }
            Self::RedisFull
            | Self::RedisWithoutReplicas
            | Self::RedisReadOnly
            | Self::RedisPausesWrites
            | Self::RedisWithoutPermission
            | Self::RedisCannotSave => store,
            Self::RedisSilent | Self::RedisKilled | Self::RedisLosesItsData => store,
            Self::MasterDemoted => Expected { notice: None, ..store },
            Self::BrokerKilled | Self::BrokerBlocked => queue,
            Self::QueueDeleted => Expected { accepted: 0.5, applied: 0.3, ..works },
            // Genesys is asked once a minute whether it still wants a day of silence.
            Self::GenesysLimits => {
                let back = Duration::from_secs(70);
                Expected { notice: Some(Notice { series: "", ..GENESYS }), back, ..works }
            }
            Self::GenesysFails | Self::GenesysCut => Expected { notice: Some(GENESYS), ..works },
        }
    }

    pub(super) async fn inject(self, site: &mut Site) {
        let master = site.deployment.master().await;
        match self {
            Self::Healthy | Self::Starved => {}
            Self::RedisFull => site.redis(master, &["CONFIG", "SET", "maxmemory", "1"]).await,
            Self::RedisWithoutReplicas => {
                site.redis(master, &["CONFIG", "SET", "min-replicas-to-write", "5"]).await;
            }
            Self::RedisReadOnly => site.redis(master, &["REPLICAOF", "127.0.0.1", "1"]).await,
            Self::RedisPausesWrites => site.redis(master, &["CLIENT", "PAUSE", PAUSE, "WRITE"]).await,
            Self::RedisWithoutPermission => {
                site.redis(master, &["ACL", "SETUSER", "default", "-evalsha", "-eval"]).await;
            }
            Self::RedisCannotSave => {
                // A directory in the place of the file, which may be there.
                let file = site.deployment.servers[master].directory().join("dump.rdb");
                let _ = std::fs::remove_file(&file);
                std::fs::create_dir(file).unwrap();
                site.redis(master, &["CONFIG", "SET", "save", "3600 1"]).await;
                site.redis(master, &["BGSAVE"]).await;
            }
            Self::RedisSilent => site.deployment.servers[master].pause().await,
            Self::RedisKilled => site.deployment.servers[master].kill().await,
            Self::RedisLosesItsData => site.deployment.servers[master].kill_with_its_data().await,
            Self::SlotMoving => drop(site.deployment.begin_to_move_a_slot().await),
            Self::MasterDemoted => {
                let replica = 1 - master;
                let port = site.deployment.servers[replica].port.to_string();
                // Waits until the replica has everything, and swaps the two.
                site.redis(master, &["FAILOVER", "TO", "127.0.0.1", &port]).await;
                eventually("the replica is the master", || async {
                    (site.deployment.master().await == replica).then_some(())
                })
                .await;
                site.redis(master, &["REPLICAOF", "127.0.0.1", "1"]).await;
                site.redis_name
                    .as_ref()
                    .expect("this site has a name for Redis")
                    .move_to(site.deployment.servers[replica].port);
            }
            Self::BrokerKilled => site.broker().kill().await,
            Self::BrokerBlocked => site.broker().ctl(&["set_vm_memory_high_watermark", "0.00001"]).await,
            Self::QueueDeleted => {
                let queue = format!("/queues/%2f/{WORK_QUEUE}");
                site.broker().api("DELETE", &queue, None).await.expect("it is deleted");
            }
            Self::GenesysLimits => site.behave(&json!({ "fail_status": 429, "retry_after": 86_400 })).await,
            Self::GenesysFails => site.behave(&json!({ "fail_status": 503 })).await,
            Self::GenesysCut => site.genesys.set(Link::Broken),
        }
        // The faults of Redis heal where they began, also after a failover.
        site.faulty = master;
    }

    /// Holds the fault for a moment.
    pub(super) async fn hold(self, site: &Site) {
        match self {
            Self::Starved => site.edge.starve(MOMENT).await,
            _ => sleep(MOMENT).await,
        }
    }

    pub(super) async fn heal(self, site: &mut Site) {
        let faulty = site.faulty;
        match self {
            Self::Healthy | Self::Starved | Self::QueueDeleted => {}
            Self::RedisFull => site.redis(faulty, &["CONFIG", "SET", "maxmemory", "0"]).await,
            Self::RedisWithoutReplicas => {
                site.redis(faulty, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
            }
            Self::RedisReadOnly => site.redis(faulty, &["REPLICAOF", "NO", "ONE"]).await,
            Self::RedisPausesWrites => site.redis(faulty, &["CLIENT", "UNPAUSE"]).await,
            Self::RedisWithoutPermission => site.redis(faulty, &["ACL", "SETUSER", "default", "+@all"]).await,
            Self::RedisCannotSave => {
                site.redis(faulty, &["CONFIG", "SET", "save", ""]).await;
                std::fs::remove_dir(site.deployment.servers[faulty].directory().join("dump.rdb")).unwrap();
            }
            Self::RedisSilent => site.deployment.servers[faulty].unpause().await,
            Self::RedisKilled | Self::RedisLosesItsData => site.deployment.servers[faulty].restart().await,
            Self::SlotMoving => site.deployment.end_to_move_the_slot().await,
            Self::MasterDemoted => {
                let port = site.deployment.servers[1 - faulty].port.to_string();
                site.redis(faulty, &["REPLICAOF", "127.0.0.1", &port]).await;
                site.deployment.servers[faulty].follows().await;
            }
            Self::BrokerKilled => site.broker().restart().await,
            Self::BrokerBlocked => site.broker().ctl(&["set_vm_memory_high_watermark", "0.4"]).await,
            Self::GenesysLimits | Self::GenesysFails => {
                site.behave(&json!({ "fail_status": null, "retry_after": null })).await;
            }
            Self::GenesysCut => site.genesys.set(Link::Whole),
        }
        if site.shape == Shape::Sentinel {
            site.deployment.follows_one_master().await;
        }
    }
}
