//! One round: a fault is injected under load, held, and healed; then everything is judged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use crate::oracle::history::{Observation, ObservedAnswer, RunHistory, RunMicros};
use crate::oracle::http::OracleClient;
use crate::oracle::judge::{Judgement, TimeBounds, judge};
use crate::oracle::load::{CONTACTS, EDITOR, ProfileWriter, READER, RoundState, WriterLimits, look_up, read_all};
use crate::support::{PATIENCE, Standstill, customer};

use super::fault::Fault;
use super::site::{Site, UNSETTLED_TTL, UPSTREAM_TIMEOUT};
use super::verdict::Verdict;

/// The customers of a round. Those with an even number are changed; the others are quiet, so their lookups are hits.
const CUSTOMERS: u32 = 400;

/// Together the readers send 200 lookups per second.
const READERS: u32 = 50;
const READER_PERIOD: Duration = Duration::from_millis(250);

/// Together the writers cause about 200 events per second; some changes have several.
const WRITERS: u32 = 24;
const WRITER_PERIOD: Duration = Duration::from_millis(160);

/// The load before the fault.
const BEFORE: Duration = Duration::from_secs(1);

/// How long a caller waits.
const PATIENCE_OF_A_CALLER: Duration = Duration::from_secs(2);

/// How long nothing may be accepted or applied after the load, although events are left.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(120);

/// A lookup of a reader.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    took: Duration,
    quiet: bool,
    found: bool,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
struct Counts {
    at: Instant,
    /// Events that Genesys sent.
    sent: u64,
    accepted: u64,
    applied: usize,
    calls: u64,
}

impl Counts {
    async fn of(site: &Site) -> Self {
        let (events, calls) = (site.sandbox("/sandbox/events").await, site.sandbox("/sandbox/calls").await);
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        let (recorded, open) = site.recorder.event_counts();
        let (sent, accepted) = (number(&events["announced"]), number(&events["acknowledged"]));
        Self { at: Instant::now(), sent, accepted, applied: recorded - open, calls: number(&calls["total"]) }
    }
}

/// Runs a round.
pub(super) async fn round(site: &mut Site, fault: Fault, hold: Duration) -> Verdict {
    let first = 1 + site.rounds * CUSTOMERS;
    site.rounds += 1;
    let mut stage = RoundState::new(&site.recorder, first, CUSTOMERS);
    stage.limits = WriterLimits { most_open: usize::MAX, ahead: usize::MAX };
    let (stage, lookups) = (Arc::new(stage), [site.public; 2]);
    // Every customer is in the cache.
    let mut answers = read_all(&stage, lookups).await;
    let readers: Vec<_> = (0..READERS).map(|_| tokio::spawn(read(Arc::clone(&stage), site.public))).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| ProfileWriter::new(&stage, site.sandbox, (2 * n..CUSTOMERS).step_by(2 * WRITERS as usize)))
        .map(|writer| tokio::spawn(writer.write(WRITER_PERIOD)))
        .collect();
    sleep(BEFORE).await;

    let before = Counts::of(site).await;
    fault.inject(site).await;
    let noticed = held(site, fault, hold).await;
    let after = Counts::of(site).await;
    fault.heal(site).await;
    let healed = Instant::now();
    let back = timeout(2 * PATIENCE, is_back(site, &stage)).await.is_ok().then(|| healed.elapsed());

    stage.over.store(true, Ordering::Relaxed);
    let changes = join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    let (mut asked, mut observed) = (Vec::new(), Vec::new());
    for reader in join_all(readers).await {
        let (lookups, answers) = reader.unwrap();
        asked.extend(lookups);
        observed.extend(answers);
    }
    answers.extend(observed);
    quiet(site).await;
    let drained = healed.elapsed();
    sleep(UPSTREAM_TIMEOUT + UNSETTLED_TTL).await;
    answers.extend(read_all(&stage, lookups).await);
    let customers = stage.customers.read().clone();
    let judgement = judge(&RunHistory { customers, changes, applies: site.recorder.finish(), answers }, bounds());

    asked.retain(|lookup| (before.at..after.at).contains(&lookup.at));
    let verdict = Verdict { noticed, back, drained, ..shares(before, after, &asked) };
    let dead_lettered = !site.shows("profile_edge_dead_letters 0").await;
    Verdict { dead_lettered, ..judged(verdict, &judgement) }
}

/// Holds the fault, at least until it is noticed. Returns how long that took.
async fn held(site: &Site, fault: Fault, hold: Duration) -> Option<Duration> {
    let injected = Instant::now();
    let (notice, mut noticed) = (fault.expected(site.shape).notice, None);
    while injected.elapsed() < hold || (notice.is_some() && noticed.is_none() && injected.elapsed() < PATIENCE) {
        fault.hold(site).await;
        if let Some(notice) = notice.filter(|_| noticed.is_none()) {
            let named = site.degraded().await.is_some_and(|names| names.iter().any(|name| name == notice.dependency));
            noticed = (named && site.shows(notice.series).await).then(|| injected.elapsed());
        }
    }
    noticed
}

/// Waits until the site works as before: nothing is degraded, a new event is applied, and a quiet customer is a hit.
async fn is_back(site: &Site, stage: &RoundState) {
    let mut genesys = OracleClient::new(site.sandbox, EDITOR);
    let mut reader = OracleClient::new(site.public, READER);
    // A customer of no round: its changes are not judged.
    let path = format!("{CONTACTS}/{}", customer(900_000 + site.rounds));
    let mut changes: Vec<Uuid> = Vec::new();
    loop {
        let reply = genesys.send("PATCH", &path, &json!({ "firstName": "Ada" }).to_string()).await.unwrap();
        let event = reply.header("sandbox-events").expect("a change has an event").parse().unwrap();
        stage.recorder.record_events(&[event], &[]);
        changes.push(event);
        sleep(Duration::from_millis(200)).await;
        let quiet = stage.customers.read()[1].0.clone();
        let lookup = format!("/api/v1/profile?tenantId=10001&customerId={quiet}");
        let hit = reader.send("GET", &lookup, "").await.is_ok_and(|reply| reply.head.contains("profile-edge; hit"));
        let applied = changes.iter().any(|event| stage.recorder.is_applied(*event));
        if hit && applied && site.names_nothing().await {
            return;
        }
    }
}

/// Waits until every event is accepted and applied. What is left when nothing happens any more is lost.
async fn quiet(site: &Site) {
    let mut standstill = Standstill::of((None, 0));
    loop {
        let events = site.sandbox("/sandbox/events").await;
        let open = site.recorder.event_counts().1;
        let is_quiet = events["acknowledged"] == events["announced"] && open == 0;
        if is_quiet || standstill.lasts((events["acknowledged"].as_u64(), open)) > LONGEST_STANDSTILL {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Looks customers up until the round is over.
async fn read(stage: Arc<RoundState>, public: SocketAddr) -> (Vec<Asked>, Vec<ObservedAnswer>) {
    let mut client = OracleClient::new(public, READER);
    sleep(READER_PERIOD.mul_f64(rand::random())).await;
    let mut ticks = interval(READER_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    while !stage.is_over() {
        ticks.tick().await;
        let customer = rand::random_range(0..CUSTOMERS);
        let at = Instant::now();
        let answer = look_up(&stage, &mut client, customer).await.ok();
        let found = answer.is_some_and(|answer| matches!(answer.saw, Observation::Profile(_)));
        asked.push(Asked { at, took: at.elapsed(), quiet: customer % 2 == 1, found });
        answers.extend(answer);
    }
    (asked, answers)
}

fn shares(before: Counts, after: Counts, asked: &[Asked]) -> Verdict {
    let share = |part: usize, whole: usize| if whole == 0 { 1.0 } else { part as f64 / whole as f64 };
    let quiet: Vec<_> = asked.iter().filter(|lookup| lookup.quiet).collect();
    let sent = (after.sent - before.sent) as usize;
    Verdict {
        served: share(quiet.iter().filter(|lookup| lookup.found).count(), quiet.len()),
        late: share(asked.iter().filter(|lookup| lookup.took > PATIENCE_OF_A_CALLER).count(), asked.len()),
        accepted: share((after.accepted - before.accepted) as usize, sent),
        applied: share(after.applied.saturating_sub(before.applied), sent),
        calls: (after.calls - before.calls) as usize,
        lookups: asked.len(),
        seconds: (after.at - before.at).as_secs_f64(),
        sent,
        ..Verdict::default()
    }
}

fn judged(verdict: Verdict, judgement: &Judgement) -> Verdict {
    let described = judgement.faults.iter().map(|(fault, text)| format!("{fault:?} {text}"));
    Verdict {
        stale: judgement.faults.len(),
        lost: judgement.events - judgement.applied,
        described: described.filter(|text| text.contains("after")).take(3).collect(),
        ..verdict
    }
}

/// Genesys shows a change at once.
fn bounds() -> TimeBounds {
    let settlement = RunMicros::try_from((UPSTREAM_TIMEOUT + UNSETTLED_TTL).as_micros()).unwrap();
    // For the resolution of the sandbox's clock.
    TimeBounds { read_lag: 1_000, settlement }
}
