//! The fault matrix: each fault of Redis, RabbitMQ, Genesys and the process itself, under load, on each kind of Redis
//! and each kind of queue.
//!
//! A *site* is one process of the service with servers of its own. A *round* sends 200 lookups and 200 events per second,
//! injects a fault, holds it, and heals it. Its verdict is a row of a table: what must work meanwhile works ([`fault`]
//! says what), `/readyz` and a metric name the fault, no answer is older than an applied event (by the judge of the
//! oracle), no event is lost or becomes a dead letter, calls to Genesys do not rise, and everything works again after
//! the end of the fault.
//!
//! The suite holds some faults for three seconds. `tests/faults` holds every fault on every site for 20 seconds, and
//! then also checks the times: shown within 3 s, back within 10 s.

mod fault;
mod round;
mod site;
mod verdict;

use std::time::Duration;

use crate::support::servers::redis::Setup;

use fault::Fault;
use round::round;
use site::Site;
use verdict::Verdict;

/// How long a fault is held in the suite.
const SHORT: Duration = Duration::from_secs(3);

/// How long every fault is held, if all are to be injected.
fn whole_matrix() -> Option<Duration> {
    let seconds = std::env::var("PROFILE_EDGE_TEST_FAULTS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("PROFILE_EDGE_TEST_FAULTS is a number of seconds")))
}

/// Injects faults into sites with this Redis: in the suite these, with one kind of queue; in the whole matrix all, with
/// both.
async fn endures(shape: Setup, with_broker: bool, some: &[Fault]) {
    let Some(hold) = whole_matrix() else {
        let failed = endures_on(Site::start(shape, with_broker).await, some, SHORT, false).await;
        return assert!(failed.is_empty(), "{failed}");
    };
    let mut failed = String::new();
    for with_broker in [false, true] {
        let of_broker = Fault::OF_THE_BROKER.into_iter().filter(|_| with_broker);
        let all: Vec<Fault> = Fault::of(shape).into_iter().chain(of_broker).collect();
        failed += &endures_on(Site::start(shape, with_broker).await, &all, hold, true).await;
    }
    assert!(failed.is_empty(), "{failed}");
}

/// Injects faults into a site, one after the other. Returns what was wrong, with the log of the site.
async fn endures_on(mut site: Site, faults: &[Fault], hold: Duration, strict: bool) -> String {
    let (name, mut failed) = (site.name(), Vec::new());
    println!("{}", Verdict::head());
    let healthy = round(&mut site, Fault::Healthy, hold).await;
    for fault in [Fault::Healthy].iter().chain(faults) {
        let verdict = match fault {
            Fault::Healthy => healthy.clone(),
            _ => round(&mut site, *fault, hold).await,
        };
        let wrong = verdict.wrong(&fault.expected(site.shape), &healthy, strict);
        let row = verdict.row(&name, *fault, &healthy, &wrong);
        println!("{row}");
        if !wrong.is_empty() {
            failed.push(format!("{row}\n{:#?}\n", verdict.described));
        }
    }
    let log = site.stop().await;
    if failed.is_empty() { String::new() } else { format!("{log}\n{}", failed.concat()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_redis_endures_every_fault() {
    endures(
        Setup::Single,
        false,
        &[
            Fault::RedisPausesWrites,
            Fault::RedisWithoutPermission,
            Fault::MasterDemoted,
            Fault::GenesysCut,
            Fault::Starved,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_endures_every_fault() {
    endures(Setup::Cluster, true, &[Fault::RedisFull, Fault::SlotMoving, Fault::QueueDeleted]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_behind_a_sentinel_endures_every_fault() {
    endures(Setup::Sentinel, false, &[Fault::RedisSilent]).await;
}
