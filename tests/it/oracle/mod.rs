//! The oracle: real processes under load and kills, and a judge who knows every change.
//!
//! Writers change, create, delete and merge customers of a sandbox Genesys whose read side lags and whose events come
//! late, twice and in any order. Readers look them up through two lookup processes. Everything is killed with
//! `SIGKILL`, one after the other, and started again on its data: ingest, both consumers, both lookups, Redis,
//! RabbitMQ. All the while an operator replays the last seconds. What everyone saw is recorded ([`history`]) and
//! judged afterwards ([`judge`], which tells the rules).
//!
//! A *round* ends when it has its answers, its events and all its kills. Then every event must come to be applied,
//! and when the settlement is over every customer is read once more through each lookup: these answers are judged
//! with the others, so nothing but the last version of each passes. Rounds have customers of their own.
//!
//! `tests/oracle --minutes N` goes on with rounds for so long.

mod history;
mod http;
mod judge;
mod load;
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

use history::{History, Moment, Recorder};
use http::Client;
use judge::{Bounds, Fault, Judgement, judge};
use load::{Stage, Writer, read, read_all};
use world::{READ_LAG, UNSETTLED_TTL, UPSTREAM_TIMEOUT, Victim, World};

const READERS: usize = 24;
const WRITERS: u32 = 8;
/// How many customers a round begins with: few, so that their changes and lookups meet.
const CUSTOMERS: u32 = 400;

/// How many tenths of a second pass from a restart to the next kill.
const CALM: usize = 50;

/// The longest that a round may take to have what it needs, and the longest until all its events are applied.
const LONGEST_ROUND: Duration = Duration::from_secs(900);
const LONGEST_QUIET: Duration = Duration::from_secs(180);

/// Everyone who is killed, in this order.
const VICTIMS: [Victim; 7] = [
    Victim::Consumer(0),
    Victim::Lookup(0),
    Victim::Redis,
    Victim::Ingest,
    Victim::Consumer(1),
    Victim::Lookup(1),
    Victim::Rabbit,
];

/// What a round has to have before it may end.
#[derive(Clone, Copy, Debug)]
struct Budget {
    answers: usize,
    events: usize,
    kills: usize,
}

/// What came of a run.
#[derive(Debug, Default)]
struct Report {
    judgement: Judgement,
    acknowledged: u64,
    unanswered: usize,
    replays: usize,
    kills: Vec<Victim>,
    took: Duration,
}

/// A run: the world, and what is known of it.
struct Run {
    world: World,
    recorder: Arc<Recorder>,
    sandbox: Client,
    rounds: u32,
}

impl Run {
    async fn start(faults: &str) -> Self {
        let recorder = Arc::new(Recorder::new());
        let world = World::start(&recorder, faults).await;
        let mut sandbox = Client::new(world.sandbox, "");
        let behaviour = serde_json::json!({
            "read_lag": format!("{}ms", READ_LAG.as_millis()), "stamp_reads": true,
            "event_lag": "5ms", "event_jitter": "200ms", "event_duplicates": 1,
        });
        let reply = sandbox.send("POST", "/sandbox/behaviour", &behaviour.to_string()).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        Self { world, recorder, sandbox, rounds: 0 }
    }

    async fn round(&mut self, budget: Budget) -> Report {
        let started = Instant::now();
        let first = 1 + self.rounds * CUSTOMERS;
        self.rounds += 1;
        let stage = Arc::new(Stage::new(&self.recorder, first, CUSTOMERS));
        let readers: Vec<_> = (0..READERS)
            .map(|_| tokio::spawn(read(Arc::clone(&stage), self.world.lookups, Duration::from_millis(14))))
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| Writer::new(&stage, self.world.sandbox, (n..CUSTOMERS).step_by(WRITERS as usize)))
            .map(|writer| tokio::spawn(writer.write(Duration::from_millis(45))))
            .collect();

        let operator = tokio::spawn(replay(Arc::clone(&stage), self.world.operators()));
        let disturbed = timeout(LONGEST_ROUND, self.disturb(&stage, budget)).await;
        let kills = disturbed.unwrap_or_else(|_| panic!("{budget:?} takes longer than {LONGEST_ROUND:?}"));
        stage.over.store(true, Ordering::Relaxed);
        let changes = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
        let mut answers: Vec<_> = join_all(readers).await.into_iter().flat_map(Result::unwrap).collect();

        let replays = operator.await.unwrap();
        let acknowledged = self.quiet().await;
        // What the promise allows to pass before everyone must be shown the last version.
        sleep(READ_LAG + UPSTREAM_TIMEOUT + UNSETTLED_TTL).await;
        answers.extend(read_all(&stage, self.world.lookups).await);
        let customers = stage.customers.read().iter().map(|(_, start)| *start).collect();
        let history = History { customers, changes, applies: self.recorder.finish(), answers };
        Report {
            judgement: judge(&history, bounds()),
            acknowledged,
            unanswered: stage.unanswered.load(Ordering::Relaxed),
            replays,
            kills,
            took: started.elapsed(),
        }
    }

    /// Kills and restarts until the round has what it needs.
    async fn disturb(&mut self, stage: &Stage, budget: Budget) -> Vec<Victim> {
        let mut kills = Vec::new();
        for victim in VICTIMS.into_iter().cycle() {
            for _ in 0..CALM {
                let enough = stage.answers.load(Ordering::Relaxed) >= budget.answers
                    && self.recorder.events().0 >= budget.events
                    && kills.len() >= budget.kills;
                if enough || stage.is_over() {
                    return kills;
                }
                sleep(Duration::from_millis(100)).await;
            }
            if budget.kills > 0 {
                self.world.kill(victim).await;
                // Long enough for everyone to meet its absence.
                sleep(Duration::from_millis(500)).await;
                self.world.restart(victim).await;
                kills.push(victim);
            }
        }
        kills
    }

    /// Waits until every event is acknowledged and applied; returns how many were acknowledged. What is not applied
    /// by then is lost.
    async fn quiet(&mut self) -> u64 {
        let started = Instant::now();
        loop {
            let reply = self.sandbox.send("GET", "/sandbox/events", "").await.unwrap();
            let tally: Value = serde_json::from_str(&reply.body).unwrap();
            // Copies that the sandbox still tries to deliver tell nothing new.
            let is_quiet = tally["acknowledged"] == tally["announced"] && self.recorder.events().1 == 0;
            if is_quiet || started.elapsed() > LONGEST_QUIET {
                return tally["acknowledged"].as_u64().unwrap();
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Has the last seconds replayed by one consumer after the other, whether or not it lives; returns how many replays
/// were done whole.
async fn replay(stage: Arc<Stage>, operators: [SocketAddr; 2]) -> usize {
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

fn bounds() -> Bounds {
    let micros = |time: Duration| Moment::try_from(time.as_micros()).unwrap();
    // A millisecond more for the sandbox's clock, which tells no less.
    let read_lag = micros(READ_LAG + Duration::from_millis(1));
    Bounds { read_lag, settlement: micros(UPSTREAM_TIMEOUT + UNSETTLED_TTL) }
}

impl Report {
    fn add(&mut self, round: Self) {
        self.judgement.add(round.judgement);
        self.acknowledged = round.acknowledged;
        self.unanswered += round.unanswered;
        self.replays += round.replays;
        self.kills.extend(round.kills);
        self.took += round.took;
    }

    /// The faults that are told at length: the first few of each kind.
    fn told(&self) -> Vec<&(Fault, String)> {
        self.judgement.faults.iter().filter(|(_, told)| !told.is_empty()).collect()
    }

    /// Panics with what is wrong, if anything is.
    fn is_clean(&self) {
        let told = self.told();
        assert!(told.is_empty(), "{self}\n{told:#?}");
        assert_eq!(self.judgement.applied, self.judgement.events, "{self}");
        assert_eq!(self.acknowledged as usize, self.judgement.events, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.judgement)?;
        writeln!(f, "events acknowledged        {}", self.acknowledged)?;
        writeln!(f, "lookups without an answer  {}", self.unanswered)?;
        writeln!(f, "replays                    {}", self.replays)?;
        writeln!(f, "kills                      {} {:?}", self.kills.len(), self.kills)?;
        write!(f, "took                       {} s", self.took.as_secs())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_older_than_an_applied_event_whatever_is_killed() {
    let minutes = std::env::var("PROFILE_EDGE_ORACLE_MINUTES").ok();
    let soak = minutes.map(|minutes| Duration::from_secs(60 * minutes.parse::<u64>().expect("a number of minutes")));
    let mut run = Run::start("").await;
    let mut report = Report::default();
    while report.took < soak.unwrap_or(Duration::from_millis(1)) {
        let round = run.round(Budget { answers: 200_000, events: 20_000, kills: VICTIMS.len() }).await;
        assert!(round.replays > 3, "{round}");
        report.add(round);
        println!("\n{report}");
        report.is_clean();
    }
}

/// What a cache without leases does: it writes what it fetched, whatever has happened meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_finds_stale_answers_when_fills_need_no_lease() {
    let mut run = Run::start(faults::Fault::FillWithoutLease.as_str()).await;
    let report = run.round(Budget { answers: 15_000, events: 1_500, kills: 0 }).await;
    println!("\n{report}\n{:#?}", report.told());
    assert!(report.judgement.count(|fault| fault == Fault::NotLabelled) > 0, "{report}");
    assert_eq!(report.judgement.applied, report.judgement.events, "{report}");
}
