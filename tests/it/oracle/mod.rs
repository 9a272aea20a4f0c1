//! The oracle: real processes under load and kills, and a judge that knows every change.
//!
//! Writers change, create, delete and merge customers of a sandbox Genesys whose read side lags and whose events come
//! late, twice, and in any order. Phone numbers and e-mail addresses move between customers ([`numbers`]). Readers look them
//! up through two lookup processes, a third of the time by one of these. One after another, each process is
//! killed with `SIGKILL` and restarted on its data: ingest, both consumers, both lookups, the store, and RabbitMQ. Between two
//! kills something fails in part: a process is starved, Redis is full, forbids scripts, or is demoted. Meanwhile
//! an operator replays the last seconds. All changes and answers are recorded ([`history`]) and judged afterwards
//! ([`judge`], which states the rules).
//!
//! A *round* ends when it has enough answers, events, and kills. Then every event must be applied. After the settlement
//! time, every customer is read once more through each lookup process; these answers are judged too, so each must show
//! the last version. Each round has its own customers.
//!
//! Another run has its store on a cluster of Redis whose slots move; another on Memcached servers with little memory, which
//! another program fills. In both the clocks of the processes step. [`notified`] does so with notifications in place of webhooks,
//! whose sockets are cut.
//!
//! `tests/oracle --minutes N` repeats rounds for that time.

pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod judge;
pub(crate) mod load;
mod notified;
mod numbers;
mod world;

use std::fmt;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::faults;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use history::{Recorder, RunHistory, RunMicros};
use http::OracleClient;
use judge::{Judgement, OracleFault, TimeBounds, judge};
use load::{ProfileWriter, RoundState, read, read_all};
use world::{KillTarget, OracleWorld, PartialFault, READ_LAG, StoreServers, UNSETTLED_TTL, UPSTREAM_TIMEOUT};

use crate::support::Standstill;

/// How much a run does at the same time.
#[derive(Clone, Copy, Debug)]
struct RunScale {
    readers: usize,
    writers: u32,
    /// The number of customers at the start of a round.
    customers: u32,
    victims: &'static [(PartialFault, KillTarget)],
    /// By how many seconds the clocks of processes step.
    clock_step: i64,
}

/// Few customers, so that changes and lookups of one customer coincide.
const FULL: RunScale = RunScale { readers: 24, writers: 8, customers: 400, victims: &VICTIMS, clock_step: 0 };

/// The clocks step by nearly as much as they may differ.
const ON_A_CLUSTER: RunScale = RunScale { victims: &CLUSTER_VICTIMS, clock_step: 240, ..FULL };

/// More customers than the servers have memory for.
const ON_MEMCACHED: RunScale =
    RunScale { readers: 12, writers: 4, customers: 3_000, victims: &MEMCACHED_VICTIMS, clock_step: 240 };

/// The time before and after a partial fault, in tenths of a second, and how long it lasts.
const CALM: usize = 15;
const PARTIAL: Duration = Duration::from_secs(2);

/// The longest time for a round to reach its budget.
const LONGEST_ROUND: Duration = Duration::from_secs(900);

/// How long nothing may be acknowledged or applied, although events are left.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(180);

/// After how long without progress the audit trails are searched for what is left.
const SEARCH_AFTER: Duration = Duration::from_secs(2);

/// The processes that are killed, in this order, and the partial fault before each kill.
const VICTIMS: [(PartialFault, KillTarget); 7] = [
    (PartialFault::Starved(KillTarget::Lookup(0)), KillTarget::Consumer(0)),
    (PartialFault::RedisFull, KillTarget::Lookup(0)),
    (PartialFault::RedisDemoted, KillTarget::Store(0)),
    (PartialFault::Starved(KillTarget::Consumer(1)), KillTarget::Ingest),
    (PartialFault::RedisForbidsScripts, KillTarget::Consumer(1)),
    (PartialFault::Starved(KillTarget::Consumer(0)), KillTarget::Lookup(1)),
    (PartialFault::Starved(KillTarget::Lookup(1)), KillTarget::Rabbit),
];

const CLUSTER_VICTIMS: [(PartialFault, KillTarget); 4] = [
    (PartialFault::SlotMoving, KillTarget::Lookup(0)),
    (PartialFault::RedisFull, KillTarget::Consumer(0)),
    (PartialFault::SlotMoving, KillTarget::Store(0)),
    (PartialFault::Starved(KillTarget::Consumer(1)), KillTarget::Store(2)),
];

const MEMCACHED_VICTIMS: [(PartialFault, KillTarget); 4] = [
    (PartialFault::Starved(KillTarget::Lookup(0)), KillTarget::Store(1)),
    (PartialFault::Starved(KillTarget::Consumer(1)), KillTarget::Consumer(0)),
    (PartialFault::Starved(KillTarget::Lookup(1)), KillTarget::Store(2)),
    (PartialFault::Starved(KillTarget::Consumer(0)), KillTarget::Lookup(0)),
];

/// How many lost events are described, and by how many lines of logs each.
const DESCRIBED: usize = 5;

/// What a round must reach before it ends.
#[derive(Clone, Copy, Debug)]
struct RoundBudget {
    answers: usize,
    events: usize,
    kills: usize,
}

/// The result of a run.
#[derive(Debug, Default)]
struct OracleReport {
    judgement: Judgement,
    /// Descriptions of the first events that were not applied.
    lost: Vec<String>,
    acknowledged: u64,
    unanswered: usize,
    /// Lookups at the end that took too long.
    repeated: usize,
    replays: usize,
    kills: Vec<KillTarget>,
    /// Memory and files at the end of each round.
    sizes: Vec<String>,
    took: Duration,
}

/// A run: the processes, and the record.
struct OracleRun {
    world: OracleWorld,
    recorder: Arc<Recorder>,
    sandbox: OracleClient,
    scale: RunScale,
    rounds: u32,
}

impl OracleRun {
    async fn start(store: StoreServers, scale: RunScale, faults: &str) -> Self {
        let recorder = Arc::new(Recorder::new());
        let world = OracleWorld::start(&recorder, store, faults, scale.clock_step).await;
        let mut sandbox = OracleClient::new(world.sandbox, "");
        let behaviour = serde_json::json!({
            "read_lag": format!("{}ms", READ_LAG.as_millis()), "stamp_reads": true,
            "event_lag": "5ms", "event_jitter": "200ms", "event_duplicates": 1,
        });
        let reply = sandbox.send("POST", "/sandbox/behaviour", &behaviour.to_string()).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        Self { world, recorder, sandbox, scale, rounds: 0 }
    }

    async fn round(&mut self, budget: RoundBudget) -> OracleReport {
        let (started, RunScale { readers, writers, customers, .. }) = (Instant::now(), self.scale);
        let first = 1 + self.rounds * customers;
        self.rounds += 1;
        let stage = Arc::new(RoundState::new(&self.recorder, first, customers));
        let readers: Vec<_> = (0..readers)
            .map(|_| tokio::spawn(read(Arc::clone(&stage), self.world.lookups, Duration::from_millis(14))))
            .collect();
        let writers: Vec<_> = (0..writers)
            .map(|n| {
                // Not from the range of the customers that the sandbox generates when they are searched.
                let identifier = match n % 2 {
                    0 => format!("+1202556{:04}", (self.rounds * writers + n) % 10_000),
                    _ => format!("moving.{}.{n}@example.net", self.rounds),
                };
                let customers = (n..customers).step_by(writers as usize);
                ProfileWriter::new(&stage, self.world.sandbox, customers).with_number(identifier)
            })
            .map(|writer| tokio::spawn(writer.write(Duration::from_millis(45))))
            .collect();

        let operator = tokio::spawn(replay(Arc::clone(&stage), self.world.consumer_admins()));
        let disturbed = timeout(LONGEST_ROUND, self.disturb(&stage, budget)).await;
        let kills = disturbed.unwrap_or_else(|_| panic!("{budget:?} takes longer than {LONGEST_ROUND:?}"));
        stage.over.store(true, Ordering::Relaxed);
        let changes = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
        let mut answers: Vec<_> = join_all(readers).await.into_iter().flat_map(Result::unwrap).collect();

        let replays = operator.await.unwrap();
        let acknowledged = self.quiet().await;
        // After this time every lookup must show the last version.
        sleep(READ_LAG + UPSTREAM_TIMEOUT + UNSETTLED_TTL).await;
        let before = stage.unanswered.load(Ordering::Relaxed);
        answers.extend(read_all(&stage, self.world.lookups).await);
        let customers = stage.customers.read().clone();
        let history = RunHistory { customers, changes, applies: self.recorder.finish(), answers };
        let mut lost = Vec::new();
        for (event, change) in history.lost().take(DESCRIBED) {
            let named = self.world.directory.lines_with(&event.to_string(), DESCRIBED);
            lost.push(format!("{event} of {change:?}: {named:#?}, {}", self.world.consumer_metrics().await));
        }
        OracleReport {
            lost,
            judgement: judge(&history, bounds()),
            acknowledged,
            unanswered: before,
            repeated: stage.unanswered.load(Ordering::Relaxed) - before,
            replays,
            kills,
            sizes: vec![self.world.sizes()],
            took: started.elapsed(),
        }
    }

    /// Kills and restarts processes, with a partial fault before each kill, until the round has reached its budget.
    async fn disturb(&mut self, stage: &RoundState, budget: RoundBudget) -> Vec<KillTarget> {
        let (mut kills, mut answers) = (Vec::new(), 0);
        for (fault, victim) in self.scale.victims.iter().copied().cycle() {
            for tenth in 0..2 * CALM {
                // As many as lookups are answered: servers evict however fast this machine is.
                let before = std::mem::replace(&mut answers, stage.answers.load(Ordering::Relaxed));
                self.world.store.crowd(answers - before).await;
                let enough = answers >= budget.answers
                    && self.recorder.event_counts().0 >= budget.events
                    && kills.len() >= budget.kills;
                if enough || stage.is_over() {
                    return kills;
                }
                sleep(Duration::from_millis(100)).await;
                if tenth == CALM && budget.kills > 0 {
                    self.world.suffer(fault, PARTIAL).await;
                }
            }
            if budget.kills > 0 {
                self.world.kill(victim).await;
                // Long enough for every other process to notice.
                sleep(Duration::from_millis(500)).await;
                self.world.restart(victim).await;
                kills.push(victim);
            }
        }
        kills
    }

    /// Waits until every event is acknowledged and applied; returns the number of acknowledged events. Those that are left
    /// when nothing happens any more are lost.
    async fn quiet(&mut self) -> u64 {
        let mut standstill = Standstill::of((0, 0));
        loop {
            let reply = self.sandbox.send("GET", "/sandbox/events", "").await.unwrap();
            let tally: Value = serde_json::from_str(&reply.body).unwrap();
            // The sandbox may still send duplicates of acknowledged events.
            let acknowledged = tally["acknowledged"].as_u64().unwrap();
            let open = self.recorder.event_counts().1;
            let unchanged = standstill.lasts((acknowledged, open));
            let is_quiet = tally["acknowledged"] == tally["announced"] && open == 0;
            if is_quiet || unchanged > LONGEST_STANDSTILL {
                return acknowledged;
            }
            if unchanged > SEARCH_AFTER {
                self.world.directory.trails().for_each(|trail| self.recorder.record_audited(&trail));
                sleep(SEARCH_AFTER).await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Replays the last seconds by one consumer after the other, also while it is down; returns the number of complete
/// replays.
async fn replay(stage: Arc<RoundState>, operators: [SocketAddr; 2]) -> usize {
    let mut done = 0;
    for admin in operators.into_iter().cycle() {
        if stage.is_over() {
            break;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
        command.args(["replay", "--since", "5s", "--admin", &format!("http://{admin}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        done += usize::from(command.status().await.unwrap().success());
        sleep(Duration::from_millis(500)).await;
    }
    done
}

fn bounds() -> TimeBounds {
    let micros = |time: Duration| RunMicros::try_from(time.as_micros()).unwrap();
    // One millisecond more for the resolution of the sandbox's clock.
    let read_lag = micros(READ_LAG + Duration::from_millis(1));
    TimeBounds { read_lag, settlement: micros(UPSTREAM_TIMEOUT + UNSETTLED_TTL) }
}

impl OracleReport {
    fn add(&mut self, round: Self) {
        self.judgement.add(round.judgement);
        self.lost.extend(round.lost);
        self.acknowledged = round.acknowledged;
        self.unanswered += round.unanswered;
        self.repeated += round.repeated;
        self.replays += round.replays;
        self.kills.extend(round.kills);
        self.sizes.extend(round.sizes);
        self.took += round.took;
    }

    /// Returns the faults that have a description: the first few of each kind.
    fn described(&self) -> Vec<&(OracleFault, String)> {
        self.judgement.faults.iter().filter(|(_, described)| !described.is_empty()).collect()
    }

    /// Panics if anything is wrong.
    fn assert_clean(&self) {
        let described = self.described();
        assert!(described.is_empty(), "{self}\n{described:#?}");
        assert_eq!(self.judgement.applied, self.judgement.events, "{self}\n{:#?}", self.lost);
        assert_eq!(self.acknowledged as usize, self.judgement.events, "{self}");
    }
}

impl fmt::Display for OracleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.judgement)?;
        writeln!(f, "events acknowledged        {}", self.acknowledged)?;
        writeln!(f, "lookups without an answer  {}", self.unanswered)?;
        writeln!(f, "  repeated at the end      {}", self.repeated)?;
        writeln!(f, "replays                    {}", self.replays)?;
        writeln!(f, "kills                      {} {:?}", self.kills.len(), self.kills)?;
        writeln!(f, "after each round           {:#?}", self.sizes)?;
        write!(f, "took                       {} s", self.took.as_secs())
    }
}

/// Runs one round, or as many as there is time for.
async fn run_rounds(run: &mut OracleRun, budget: RoundBudget) {
    let minutes = std::env::var("PROFILE_EDGE_ORACLE_MINUTES").ok();
    let soak = minutes.map(|minutes| Duration::from_secs(60 * minutes.parse::<u64>().expect("a number of minutes")));
    let mut report = OracleReport::default();
    while report.took < soak.unwrap_or(Duration::from_millis(1)) {
        let round = run.round(budget).await;
        assert!(round.replays > 3, "{round}");
        report.add(round);
        println!("\n{report}");
        report.assert_clean();
        run.world.directory.empty_logs();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_older_than_an_applied_event_whatever_is_killed() {
    let mut run = OracleRun::start(StoreServers::redis().await, FULL, "").await;
    run_rounds(&mut run, RoundBudget { answers: 200_000, events: 20_000, kills: VICTIMS.len() }).await;
}

/// Three masters, whose slots move, while the clocks of the processes step.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_older_on_a_cluster_whose_slots_move_while_clocks_step() {
    let mut run = OracleRun::start(StoreServers::cluster().await, ON_A_CLUSTER, "").await;
    run_rounds(&mut run, RoundBudget { answers: 40_000, events: 4_000, kills: CLUSTER_VICTIMS.len() }).await;
}

/// Three servers that evict all the time; two of them are killed and start again with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_older_on_memcached_servers_that_evict_and_are_killed() {
    let mut run = OracleRun::start(StoreServers::memcached(3).await, ON_MEMCACHED, "").await;
    run_rounds(&mut run, RoundBudget { answers: 12_000, events: 1_200, kills: MEMCACHED_VICTIMS.len() }).await;
    let evictions = run.world.store.evictions().await;
    println!("evictions of each server   {evictions:?}");
    assert!(evictions[0] > 1_000, "{evictions:?}");
}

/// Runs a short round without kills in lookup processes with this fault; every event is applied.
async fn with_fault(fault: faults::Fault) -> OracleReport {
    let mut run = OracleRun::start(StoreServers::redis().await, FULL, fault.as_str()).await;
    let report = run.round(RoundBudget { answers: 15_000, events: 1_500, kills: 0 }).await;
    println!("\n{report}\n{:#?}", report.described());
    assert_eq!(report.judgement.applied, report.judgement.events, "{report}");
    report
}

/// Without leases, a cache stores what it fetched even if an event was applied during the fetch.
#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_finds_stale_answers_when_fills_need_no_lease() {
    let report = with_fault(faults::Fault::FillWithoutLease).await;
    assert!(report.judgement.count(|fault| fault == OracleFault::NotLabelled) > 0, "{report}");
}

/// A pointer that is believed whatever its customer's profile shows leads to somebody who does not have the number.
#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_finds_wrong_persons_when_every_pointer_is_believed() {
    let report = with_fault(faults::Fault::BelieveEveryPointer).await;
    assert!(report.judgement.count(|fault| fault == OracleFault::Impossible) > 0, "{report}");
}
