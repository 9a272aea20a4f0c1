//! One run: some lookups, some events, a Genesys, and a schedule that gives the actor of each step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use parking_lot::Mutex;
use profile_edge::clock::{ManualClock, SharedClock};
use profile_edge::consumer;
use profile_edge::domain::{
    CustomerId, Event, EventId, EventTime, Identity, KeyHasher, Kind, Modified, Profile, ProfileBody, Shape, Stamps,
    TenantId, Timestamp,
};
use profile_edge::faults::Faults;
use profile_edge::lookup::{Config, Lookup, LookupAnswer, LookupDependencies, LookupError, LookupOutcome};
use profile_edge::metrics::Metrics;
use profile_edge::shutdown::Shutdown;
use profile_edge::store::embedded::{self, Embedded};
use profile_edge::store::{Clears, Lifetimes};
use profile_edge::upstream::{self, Expand, Fetched, Requester, Search, Upstream};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::Instant;

use super::gates::{BEGIN, Gated, Gates};
use super::{Chance, InitialEntry, Plan};

pub(super) const TENANT: &str = "10001";
const LEASE: Duration = Duration::from_secs(2);
const TTL: Duration = Duration::from_secs(300);
const GRACE: Duration = Duration::from_secs(600);
/// The first actor among lookups, and among events; below them are the processes.
const LOOKUPS: usize = 10;
const EVENTS: usize = 20;
/// How often every task is polled after a step, so that all reach their next gate.
const TURNS: usize = 24;

/// A lookup: its start and its answer.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) lookup: usize,
    pub(super) began: usize,
    pub(super) answer: Result<LookupAnswer, LookupError>,
}

/// Everything that happened in a run.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The steps in their order.
    pub(super) steps: Vec<String>,
    pub(super) seen: Vec<Seen>,
    /// When each event had its effect at all its keys.
    pub(super) applied: HashMap<usize, usize>,
    /// When each fetch was sent, by its number, which is in the profile.
    pub(super) sent: Vec<usize>,
    /// The answer of a lookup of each process at the end.
    pub(super) last: Vec<Result<LookupAnswer, LookupError>>,
}

/// Genesys: its customers' versions, of which reads may show an older one.
#[derive(Debug)]
struct Genesys {
    truth: Mutex<HashMap<String, u32>>,
    shown: Mutex<HashMap<String, u32>>,
    lags: bool,
    /// Aliases and their canonical customers.
    aliases: HashMap<&'static str, &'static str>,
    sent: Mutex<Vec<usize>>,
}

impl Genesys {
    fn write(&self, customer: &str, version: u32) {
        let raise = |versions: &Mutex<HashMap<String, u32>>| {
            let mut versions = versions.lock();
            let known = versions.entry(customer.to_owned()).or_insert(version);
            *known = version.max(*known);
        };
        raise(&self.truth);
        if !self.lags {
            raise(&self.shown);
        }
    }

    fn catch_up(&self) {
        self.shown.lock().clone_from(&self.truth.lock());
    }

    fn read(&self, customer: &str, number: usize) -> Fetched {
        let canonical = self.aliases.get(customer).copied().unwrap_or(customer);
        let version = self.shown.lock().get(canonical).copied().unwrap_or(1);
        let body = format!("{{\"version\":{version},\"fetch\":{number}}}");
        Fetched::Found(Profile {
            body: ProfileBody::new(Bytes::from(body)),
            modified: Some(Modified::from_millis(i64::from(version))),
            canonical: Some(canonical.parse().unwrap()),
        })
    }
}

/// The connection of one actor's process to Genesys.
#[derive(Debug)]
struct Line {
    genesys: Arc<Genesys>,
    gates: Arc<Gates>,
    actor: usize,
}

#[async_trait]
impl Upstream for Line {
    async fn fetch(
        &self,
        _: &TenantId,
        customer: &CustomerId,
        _: &Requester,
        _: Instant,
    ) -> Result<Fetched, upstream::Error> {
        let sent = self.gates.pass(self.actor, "ask").await;
        let number = {
            let mut all = self.genesys.sent.lock();
            all.push(sent);
            all.len() - 1
        };
        let fetched = self.genesys.read(customer.expose(), number);
        self.gates.pass(self.actor, "answer").await;
        Ok(fetched)
    }

    /// No plan looks up many customers at once.
    async fn fetch_many(
        &self,
        _: &TenantId,
        _: &[CustomerId],
        _: &Requester,
        _: Instant,
    ) -> Result<upstream::FetchedMany, upstream::Error> {
        Err(upstream::Error::Unreachable(None))
    }

    /// Expanded answers are never stored, and no lookup of a plan requests one.
    async fn fetch_expanded(
        &self,
        _: &TenantId,
        _: &CustomerId,
        _: &Expand,
        _: &Requester,
        _: Instant,
    ) -> Result<Fetched, upstream::Error> {
        Err(upstream::Error::Unreachable(None))
    }

    /// No lookup of a plan is by an identifier.
    async fn search(&self, _: &TenantId, _: &Search, _: &Requester, _: Instant) -> Result<Fetched, upstream::Error> {
        Err(upstream::Error::Unreachable(None))
    }
}

/// Reads `{"version":v,"fetch":f}`.
pub(super) fn version_and_fetch(answer: &LookupAnswer) -> Option<(u32, usize)> {
    let LookupOutcome::Found(found) = &answer.outcome else { return None };
    let value: serde_json::Value = serde_json::from_slice(found.body.expose()).unwrap();
    let number = |name: &str| usize::try_from(value[name].as_u64().unwrap()).unwrap();
    Some((u32::try_from(number("version")).unwrap(), number("fetch")))
}

/// A run under way.
pub(super) struct World<'a> {
    plan: &'a Plan,
    gates: Arc<Gates>,
    store: Arc<Embedded>,
    clock: Arc<ManualClock>,
    genesys: Arc<Genesys>,
    lookups: Vec<Lookup>,
    shutdown: Shutdown,
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a Plan, metrics: &Arc<Metrics>) -> Self {
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let lifetimes = Lifetimes { dedup_window: TTL * 100, tombstone_ttl: TTL * 100 };
        let config = embedded::Config { max_bytes: ByteSize::mib(16) };
        let store = Arc::new(Embedded::new(&config, lifetimes, Arc::clone(&clock) as SharedClock));
        let gates = Arc::new(Gates::default());
        let genesys = Arc::new(Genesys {
            truth: Mutex::default(),
            shown: Mutex::default(),
            lags: plan.chances.contains(&Chance::ReadsCatchUp),
            aliases: plan.aliases.iter().copied().collect(),
            sent: Mutex::default(),
        });
        let (_, shutdown) = Shutdown::new();
        let mut world = Self { plan, gates, store, clock, genesys, lookups: Vec::new(), shutdown };
        world.lookups = (0..plan.processes).map(|process| world.process(process, metrics)).collect();
        world
    }

    fn process(&self, process: usize, metrics: &Arc<Metrics>) -> Lookup {
        let times = Config {
            ttl: TTL,
            ttl_jitter: 0.0,
            grace: GRACE,
            negative_ttl: TTL,
            identifier_ttl: TTL,
            phone_region: None,
            unsettled_ttl: Duration::from_secs(1),
            unwatched_ttl: Duration::from_secs(60),
            lease_ttl: LEASE,
            soft_timeout: LEASE * 10,
            deadline: LEASE * 20,
        };
        let (gates, genesys, clock) = (Arc::clone(&self.gates), Arc::clone(&self.genesys), Arc::clone(&self.clock));
        Lookup::new(LookupDependencies {
            store: self.gated(process),
            upstream: Arc::new(Line { genesys, gates, actor: process }),
            hasher: KeyHasher::Sha256,
            identifiers: None,
            previous: None,
            watches: std::collections::HashMap::new(),
            clears: Clears::default(),
            tenants: HashMap::from([(TENANT.parse().unwrap(), times)]),
            settle_window: TTL * 10,
            clock: clock as SharedClock,
            metrics: Arc::clone(metrics),
            shutdown: self.shutdown.clone(),
            faults: Faults::default(),
        })
    }

    fn gated(&self, actor: usize) -> Arc<Gated> {
        let (store, gates) = (Arc::clone(&self.store), Arc::clone(&self.gates));
        Arc::new(Gated { store, gates, actor, fills_anyway: self.plan.fills_anyway })
    }

    /// Runs the plan under a schedule: the index of the actor of each step. After its end the first actor continues.
    /// Returns the history, and the number of choices at each step.
    pub(super) async fn run(self, schedule: &[usize]) -> (History, Vec<usize>) {
        let mut history = History::default();
        self.prepare().await;
        let applied = Arc::new(Mutex::new(HashMap::new()));
        let lookups: Vec<_> = (0..self.plan.lookups.len()).map(|n| self.look_up(n)).collect();
        let events: Vec<_> = (0..self.plan.events.len()).map(|n| self.apply(n, &applied)).collect();
        let mut chances = self.plan.chances.clone();
        let mut widths = Vec::new();
        settle().await;
        while lookups.iter().any(|task| !task.is_finished()) || events.iter().any(|task| !task.is_finished()) {
            let waiting = self.waiting();
            let width = waiting.len() + chances.len();
            assert!(width > 0, "nobody can take a step: {:#?}", history.steps);
            let choice = schedule.get(widths.len()).copied().unwrap_or(0);
            widths.push(width);
            if let Some((actor, step)) = waiting.get(choice) {
                history.steps.push(format!("{actor} {step}"));
                self.gates.release(*actor, step);
            } else {
                let chance = chances.remove(choice - waiting.len());
                history.steps.push(format!("{chance:?}"));
                self.take(chance).await;
            }
            settle().await;
        }
        for lookup in lookups {
            history.seen.push(lookup.await.unwrap());
        }
        history.applied.clone_from(&applied.lock());
        self.genesys.catch_up();
        // Unsettled records expire.
        self.pass(LEASE).await;
        for process in 0..self.plan.processes {
            history.last.push(self.alone(process, self.plan.lookups[0].1).await);
        }
        history.sent.clone_from(&self.genesys.sent.lock());
        (history, widths)
    }

    /// Returns the actors that can take a step. Of equal lookups the first starts first: the other order is the same
    /// history with other names.
    fn waiting(&self) -> Vec<(usize, &'static str)> {
        let mut waiting = self.gates.waiting();
        let alike = self.plan.lookups.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let first = waiting.iter().position(|(_, step)| *step == BEGIN);
        if let Some(first) = first.filter(|_| alike) {
            // Lookups that start are ordered after the processes, and events after them.
            let others = waiting.iter().skip(first + 1).take_while(|(_, step)| *step == BEGIN).count();
            waiting.drain(first + 1..first + 1 + others);
        }
        waiting
    }

    async fn prepare(&self) {
        match self.plan.initial {
            InitialEntry::Nothing => {}
            InitialEntry::Fresh | InitialEntry::Stale => {
                for (_, customer) in &self.plan.lookups {
                    self.alone(0, customer).await.unwrap();
                }
                if self.plan.initial == InitialEntry::Stale {
                    self.pass(TTL).await;
                }
            }
        }
    }

    fn look_up(&self, number: usize) -> JoinHandle<Seen> {
        let (process, customer) = self.plan.lookups[number];
        let (lookup, gates) = (self.lookups[process].clone(), Arc::clone(&self.gates));
        tokio::spawn(async move {
            let began = gates.begin(LOOKUPS + number).await;
            let (tenant, customer) = (TENANT.parse().unwrap(), customer.parse().unwrap());
            let answer = lookup.get(&tenant, &customer, &Requester::Background, None).await.unwrap();
            Seen { lookup: number, began, answer }
        })
    }

    /// Changes a customer at Genesys and applies the event as the consumer does; twice if the first time crashes.
    fn apply(&self, number: usize, applied: &Arc<Mutex<HashMap<usize, usize>>>) -> JoinHandle<()> {
        let planned = self.plan.events[number].clone();
        let (gates, genesys, applied) = (Arc::clone(&self.gates), Arc::clone(&self.genesys), Arc::clone(applied));
        let actor = EVENTS + number;
        let store = self.gated(actor);
        tokio::spawn(async move {
            if let Some(version) = planned.version {
                gates.pass(actor, "change").await;
                genesys.write(planned.customers[0], version);
            }
            let event = event(number, &planned.customers, planned.kind, planned.at);
            if planned.crashes {
                let mut first = Box::pin(consumer::apply(store.as_ref(), &event));
                // It reaches its second key and crashes.
                let stopped = async {
                    gates.pass(actor, "crash").await;
                };
                tokio::select! { biased; _ = &mut first => {}, () = stopped => {} }
            }
            consumer::apply(store.as_ref(), &event).await.unwrap();
            let now = gates.tick();
            applied.lock().insert(number, now);
        })
    }

    async fn take(&self, chance: Chance) {
        self.gates.tick();
        match chance {
            Chance::Evict => {
                let identity = identity(self.plan.lookups[0].1);
                self.store.evict(&identity.key());
            }
            Chance::LeasesRunOut => self.pass(LEASE).await,
            Chance::ReadsCatchUp => self.genesys.catch_up(),
        }
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::advance(time).await;
    }

    /// Looks a customer up while no other actor takes a step.
    async fn alone(&self, process: usize, customer: &'static str) -> Result<LookupAnswer, LookupError> {
        let lookup = self.lookups[process].clone();
        let task = tokio::spawn(async move {
            lookup
                .get(&TENANT.parse().unwrap(), &customer.parse().unwrap(), &Requester::Background, None)
                .await
                .unwrap()
        });
        while !task.is_finished() {
            if let Some((actor, step)) = self.gates.waiting().first() {
                self.gates.release(*actor, step);
            }
            yield_now().await;
        }
        task.await.unwrap()
    }
}

async fn settle() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

fn identity(customer: &str) -> Identity {
    KeyHasher::Sha256.identify(&TENANT.parse().unwrap(), &customer.parse().unwrap())
}

fn event(number: usize, customers: &[&str], kind: Kind, at: i64) -> Event {
    let modified = Modified::from_millis(at);
    Event {
        id: EventId::fresh(),
        identity: profile_edge::domain::Digest::from_bytes([u8::try_from(number).unwrap(); 16]),
        tenant: TENANT.parse().unwrap(),
        keys: customers.iter().map(|customer| identity(customer).key().digest()).collect(),
        identifiers: Vec::new(),
        kind,
        stamps: Stamps {
            modified: (kind != Kind::Deleted).then_some(modified),
            at: Some(EventTime::from_modified(modified)),
        },
        received_at: Timestamp::from_millis(0),
        shape: Shape::Flat,
        traceparent: None,
        force: false,
        again: None,
    }
}
