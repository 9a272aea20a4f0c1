//! Who reads and writes in an oracle run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use super::history::{Answer, Change, Customer, Did, Label, Recorder, Saw, Start};
use super::http::{Client, Reply};
use crate::support::customer;

const CONTACTS: &str = "/api/v2/externalcontacts/contacts";
const EDITOR: &str = "authorization: Bearer sandbox-editor\r\ncontent-type: application/json\r\n";
const READER: &str = "x-api-key: demo-key\r\n";

/// How many events may be under way before writers wait; far below what the sandbox holds back.
const MOST_OPEN: usize = 400;
/// How many answers the events may be ahead of their readers.
const AHEAD: usize = 5_000;

/// The most ids that one merged customer may have.
const MOST_IDS: usize = 8;

/// What readers and writers of a round share.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) recorder: Arc<Recorder>,
    /// Every customer's id and how it stood at the start, by its number.
    pub(super) customers: RwLock<Vec<(String, Start)>>,
    pub(super) numbers: AtomicU32,
    /// Answers so far.
    pub(super) answers: AtomicUsize,
    /// Lookups without an answer that shows anything: 503, or a connection that a kill broke.
    pub(super) unanswered: AtomicUsize,
    /// The round is over.
    pub(super) over: AtomicBool,
}

impl Stage {
    /// A stage with so many customers of the sandbox, from this one on.
    pub(super) fn new(recorder: &Arc<Recorder>, from: u32, count: u32) -> Self {
        let customers = (from..from + count).map(|n| (customer(n), Start::Invented)).collect();
        Self {
            recorder: Arc::clone(recorder),
            customers: RwLock::new(customers),
            numbers: AtomicU32::new(1),
            answers: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Tells whether the round is over.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Tells whether writers should wait: for events to be applied, so that lookups meet them, or for readers on a
    /// slow machine, so that one of ten answers comes with a change.
    fn is_written_enough(&self) -> bool {
        let (events, open) = self.recorder.events();
        open > MOST_OPEN || events * 10 > self.answers.load(Ordering::Relaxed) + AHEAD
    }

    fn id(&self, customer: Customer) -> String {
        self.customers.read()[customer as usize].0.clone()
    }

    fn newcomer(&self, id: String) -> Customer {
        let mut customers = self.customers.write();
        customers.push((id, Start::Absent));
        Customer::try_from(customers.len() - 1).expect("there are fewer customers than that")
    }
}

/// Ends the round when whoever holds it panics, so that nobody waits for what will not come.
struct Alarm(Arc<Stage>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}

/// Reads through both lookups until the round is over.
pub(super) async fn read(stage: Arc<Stage>, lookups: [SocketAddr; 2], every: Duration) -> Vec<Answer> {
    let mut clients = lookups.map(|address| Client::new(address, READER));
    let (mut answers, mut ticks) = (Vec::new(), pace(every));
    let _alarm = Alarm(Arc::clone(&stage));
    while !stage.is_over() {
        ticks.tick().await;
        let customer = pick(&stage);
        let through = rand::rng().random_range(0..lookups.len());
        let client = &mut clients[through];
        if let Some(answer) = look_up(&stage, client, customer).await {
            answers.push(answer);
        } else {
            // Whoever is asked to come again, or finds nobody there, does not come at once.
            sleep(Duration::from_millis(20)).await;
        }
    }
    answers
}

/// Reads every customer once through each lookup; none of these may fail.
pub(super) async fn read_all(stage: &Stage, lookups: [SocketAddr; 2]) -> Vec<Answer> {
    let mut clients = lookups.map(|address| Client::new(address, READER));
    let mut answers = Vec::new();
    let count = Customer::try_from(stage.customers.read().len()).expect("there are fewer customers than that");
    for customer in 0..count {
        for client in &mut clients {
            answers.push(look_up(stage, client, customer).await.expect("in calm every lookup is answered"));
        }
    }
    answers
}

/// Half of the lookups go to whoever was changed last.
fn pick(stage: &Stage) -> Customer {
    let (recent, any) = (rand::rng().random_range(0..48), rand::rng().random::<u32>());
    let count = u32::try_from(stage.customers.read().len()).expect("there are fewer customers than that");
    Some(recent).filter(|n| *n < 24).and_then(|n| stage.recorder.recent(n)).unwrap_or(any % count)
}

async fn look_up(stage: &Stage, client: &mut Client, customer: Customer) -> Option<Answer> {
    let path = format!("/api/v1/profile?tenantId=10001&customerId={}", stage.id(customer));
    let began = stage.recorder.now();
    let reply = client.send("GET", &path, "").await.ok();
    let ended = stage.recorder.now();
    let shown = reply.and_then(|reply| Some((saw(&reply)?, reply)));
    let Some((saw, reply)) = shown else {
        stage.unanswered.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    stage.answers.fetch_add(1, Ordering::Relaxed);
    let status = reply.header("cache-status").unwrap_or_default();
    let label = match status.split_once("detail=").map(|(_, detail)| detail) {
        Some("unsettled" | "negative-unsettled") => Label::Unsettled,
        Some("store-unavailable") => Label::StoreUnavailable,
        _ => Label::None,
    };
    let stood = ["; hit", "; stored", "; ttl=-"].iter().any(|part| status.contains(part));
    let read_at = after(&reply.body, "\"sandboxReadAt\":").and_then(|at| at.parse().ok());
    Some(Answer { customer, began, ended, saw, label, stood, read_at })
}

/// What a reply shows; `None` for a failure, which shows nothing.
fn saw(reply: &Reply) -> Option<Saw> {
    match reply.status {
        200 => {
            let name = after(&reply.body, "\"firstName\":\"").expect("a profile has a first name");
            Some(Saw::Profile(name.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(0)))
        }
        404 => Some(Saw::Absent),
        410 => Some(Saw::Deleted),
        502 | 503 => None,
        other => panic!("{other}: {}{}", reply.head, reply.body),
    }
}

/// The letters and digits that follow a text.
fn after<'a>(body: &'a str, text: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(text)?;
    rest.split(|c: char| !c.is_ascii_alphanumeric()).next()
}

/// Someone who changes customers that nobody else changes.
#[derive(Debug)]
pub(super) struct Writer {
    stage: Arc<Stage>,
    client: Client,
    /// The ids of each profile, the canonical one last.
    profiles: Vec<Vec<Customer>>,
    changes: Vec<Change>,
}

impl Writer {
    pub(super) fn new(stage: &Arc<Stage>, sandbox: SocketAddr, customers: impl Iterator<Item = Customer>) -> Self {
        let client = Client::new(sandbox, EDITOR);
        let profiles = customers.map(|customer| vec![customer]).collect();
        Self { stage: Arc::clone(stage), client, profiles, changes: Vec::new() }
    }

    /// Changes until the round is over: mostly updates, some close upon another.
    pub(super) async fn write(mut self, every: Duration) -> Vec<Change> {
        let mut ticks = pace(every);
        let _alarm = Alarm(Arc::clone(&self.stage));
        while !self.stage.is_over() {
            ticks.tick().await;
            if self.stage.is_written_enough() {
                continue;
            }
            let chosen = rand::rng().random_range(0..self.profiles.len());
            let dice = rand::rng().random_range(0..100);
            match dice {
                0 => self.delete(chosen).await,
                1 | 2 => self.create().await,
                3 => self.merge(chosen).await,
                4..20 => {
                    for _ in 0..3 {
                        self.update(chosen).await;
                    }
                }
                _ => self.update(chosen).await,
            }
        }
        self.changes
    }

    /// Updates a profile by any of its ids.
    async fn update(&mut self, chosen: usize) {
        let profile = self.profiles[chosen].clone();
        let id = self.stage.id(profile[rand::rng().random_range(0..profile.len())]);
        let number = self.number();
        let body = json!({ "firstName": format!("v{number}") });
        self.change("PATCH", &format!("/{id}"), body, number, Did::Write, profile).await;
    }

    async fn create(&mut self) {
        let number = self.number();
        let body = json!({ "firstName": format!("v{number}"), "lastName": "New" });
        let customer = self.change("POST", "", body, number, Did::Write, Vec::new()).await;
        self.profiles.push(vec![customer]);
    }

    async fn delete(&mut self, chosen: usize) {
        // Of a merged customer only the canonical id is told to be deleted.
        if self.profiles.len() > 4 && self.profiles[chosen].len() == 1 {
            let profile = self.profiles.swap_remove(chosen);
            let (id, number) = (self.stage.id(profile[0]), self.number());
            self.change("DELETE", &format!("/{id}"), Value::Null, number, Did::Delete, profile).await;
        }
    }

    async fn merge(&mut self, chosen: usize) {
        let other = rand::rng().random_range(0..self.profiles.len());
        let ids = self.profiles[chosen].len() + self.profiles[other].len();
        if self.profiles.len() <= 4 || chosen == other || ids >= MOST_IDS {
            return;
        }
        let (first, last) = (chosen.min(other), chosen.max(other));
        let (last, first) = (self.profiles.swap_remove(last), self.profiles.swap_remove(first));
        let canonical = [&first, &last].map(|profile| self.stage.id(profile[profile.len() - 1]));
        let number = self.number();
        let body = json!({ "contactIds": canonical, "valueOverride": { "firstName": format!("v{number}") } });
        let mut profile = [first, last].concat();
        let customer = self.change("POST", "/merge", body, number, Did::Write, profile.clone()).await;
        profile.push(customer);
        self.profiles.push(profile);
    }

    /// Makes a change, and takes it down. Returns the newest of its customers: one that came into being by it, if
    /// any did.
    async fn change(
        &mut self,
        method: &str,
        path: &str,
        body: Value,
        number: u32,
        did: Did,
        mut customers: Vec<Customer>,
    ) -> Customer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let began = self.stage.recorder.now();
        let reply = self.client.send(method, &format!("{CONTACTS}{path}"), &body).await.expect("the sandbox answers");
        let ended = self.stage.recorder.now();
        assert!((200..300).contains(&reply.status), "{}{}", reply.head, reply.body);
        let events = reply.header("sandbox-events").expect("a change has events").split(',');
        let events: Vec<Uuid> = events.map(|event| event.parse().expect("an event's id")).collect();
        if method == "POST" {
            let made: Value = serde_json::from_str(&reply.body).expect("a contact");
            customers.push(self.stage.newcomer(made["id"].as_str().expect("an id").to_owned()));
        }
        self.stage.recorder.announced(&events, &customers);
        let newest = customers[customers.len() - 1];
        self.changes.push(Change { number, did, customers, began, ended, events });
        newest
    }

    fn number(&self) -> u32 {
        self.stage.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

fn pace(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
