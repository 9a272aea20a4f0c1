//! The readers and writers of an oracle run.

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use super::history::{
    AnswerLabel, ChangeKind, CustomerNumber, InitialState, Observation, ObservedAnswer, ProfileChange, Recorder,
};
use super::http::{OracleClient, OracleReply};
use super::numbers::MovingNumber;
use crate::support::{PATIENCE, Standstill, customer};

pub(crate) const CONTACTS: &str = "/api/v2/externalcontacts/contacts";
pub(crate) const EDITOR: &str = "authorization: Bearer sandbox-editor\r\ncontent-type: application/json\r\n";
pub(crate) const READER: &str = "x-api-key: demo-key\r\n";

/// When writers wait, so that readers on a slow machine and consumers keep up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriterLimits {
    /// How many events may be unapplied; far below the sandbox's own limit.
    pub(crate) most_open: usize,
    /// By how much ten times the number of events may be ahead of the number of answers.
    pub(crate) ahead: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self { most_open: 400, ahead: 5_000 }
    }
}

/// The codes of failures of a process without processor time: it, or the sandbox, answers too late.
const LATE: [&str; 4] = ["deadline", "upstream_timeout", "breaker_open", "shed"];

/// How many customers are read together at the end.
const TOGETHER: usize = 8;

/// The largest number of ids of one merged customer.
const MOST_IDS: usize = 8;

/// The state that the readers and writers of a round share.
#[derive(Debug)]
pub(crate) struct RoundState {
    pub(crate) recorder: Arc<Recorder>,
    /// The id and the initial state of each customer, by its number.
    pub(crate) customers: RwLock<Vec<(String, InitialState)>>,
    pub(crate) numbers: AtomicU32,
    /// The phone numbers and e-mail addresses among the customers; a third of the lookups is by one.
    identifiers: RwLock<Vec<CustomerNumber>>,
    /// The number of answers so far.
    pub(crate) answers: AtomicUsize,
    /// The number of lookups without a usable answer: a 503, or a connection that a kill broke.
    pub(crate) unanswered: AtomicUsize,
    /// Whether the round is over.
    pub(crate) over: AtomicBool,
    pub(crate) limits: WriterLimits,
}

impl RoundState {
    /// Creates the state of a round with this many customers of the sandbox, starting with this one.
    pub(crate) fn new(recorder: &Arc<Recorder>, from: u32, count: u32) -> Self {
        let customers = (from..from + count).map(|n| (customer(n), InitialState::Invented)).collect();
        Self {
            recorder: Arc::clone(recorder),
            customers: RwLock::new(customers),
            numbers: AtomicU32::new(1),
            identifiers: RwLock::default(),
            answers: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            limits: WriterLimits::default(),
        }
    }

    /// Returns whether the round is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Returns whether writers must wait: see [`WriterLimits`].
    fn writers_must_wait(&self) -> bool {
        let (events, open) = self.recorder.event_counts();
        open > self.limits.most_open
            || events * 10 > self.answers.load(Ordering::Relaxed).saturating_add(self.limits.ahead)
    }

    pub(super) fn id(&self, customer: CustomerNumber) -> String {
        self.customers.read()[customer as usize].0.clone()
    }

    /// Adds a phone number or an e-mail address, which is looked up as such and recorded like a customer that nobody has
    /// created yet.
    pub(super) fn add_number(&self, identifier: String) -> CustomerNumber {
        let number = self.add(identifier, InitialState::Number);
        self.identifiers.write().push(number);
        number
    }

    fn add_customer(&self, id: String) -> CustomerNumber {
        self.add(id, InitialState::Absent)
    }

    fn add(&self, id: String, start: InitialState) -> CustomerNumber {
        let mut customers = self.customers.write();
        customers.push((id, start));
        CustomerNumber::try_from(customers.len() - 1).expect("the number of customers fits")
    }
}

/// A lookup without a usable answer.
#[derive(Debug)]
pub(crate) struct FailedLookup {
    /// Whether the service, or Genesys behind it, did not answer in time.
    is_late: bool,
    why: String,
}

/// Ends the round when its task panics, so that no other task waits forever.
struct EndRoundOnPanic(Arc<RoundState>);

impl Drop for EndRoundOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}

/// Reads through both lookups until the round is over.
pub(crate) async fn read(stage: Arc<RoundState>, lookups: [SocketAddr; 2], every: Duration) -> Vec<ObservedAnswer> {
    let mut clients = lookups.map(|address| OracleClient::new(address, READER));
    let (mut answers, mut ticks) = (Vec::new(), pace(every));
    let _alarm = EndRoundOnPanic(Arc::clone(&stage));
    while !stage.is_over() {
        ticks.tick().await;
        let customer = pick(&stage);
        let through = rand::rng().random_range(0..lookups.len());
        let client = &mut clients[through];
        if let Ok(answer) = look_up(&stage, client, customer).await {
            answers.push(answer);
        } else {
            // After a 503 or a failed connection, a reader pauses.
            sleep(Duration::from_millis(20)).await;
        }
    }
    answers
}

/// Reads every customer once through each lookup. On a busy machine an answer may take too long; then the lookup is repeated
/// until it is answered. Nothing else may fail.
pub(crate) async fn read_all(stage: &RoundState, lookups: [SocketAddr; 2]) -> Vec<ObservedAnswer> {
    let count = CustomerNumber::try_from(stage.customers.read().len()).expect("the number of customers fits");
    let customers = Mutex::new(0..count);
    let reader = async || {
        let mut clients = lookups.map(|address| OracleClient::new(address, READER));
        let mut answers = Vec::new();
        loop {
            let Some(customer) = customers.lock().next() else { return answers };
            for client in &mut clients {
                answers.push(look_up_until_answered(stage, client, customer).await);
            }
        }
    };
    join_all((0..TOGETHER).map(|_| reader())).await.concat()
}

/// Repeats a lookup that takes too long, as long as others are answered, and for [`PATIENCE`] after that.
async fn look_up_until_answered(
    stage: &RoundState,
    client: &mut OracleClient,
    customer: CustomerNumber,
) -> ObservedAnswer {
    let mut standstill = Standstill::of(stage.answers.load(Ordering::Relaxed));
    loop {
        let FailedLookup { is_late, why } = match look_up(stage, client, customer).await {
            Ok(answer) => return answer,
            Err(failed) => failed,
        };
        let may_repeat = is_late && standstill.lasts(stage.answers.load(Ordering::Relaxed)) < PATIENCE;
        assert!(may_repeat, "nothing is killed, but a lookup is not answered: {why}");
        println!("a lookup took too long and is repeated: {why}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Picks a customer; half of the lookups go to recently changed ones. A third are by phone or e-mail, if there
/// are numbers.
fn pick(stage: &RoundState) -> CustomerNumber {
    let identifiers = stage.identifiers.read();
    if !identifiers.is_empty() && rand::rng().random_range(0..3) == 0 {
        return identifiers[rand::rng().random_range(0..identifiers.len())];
    }
    drop(identifiers);
    let (recent, any) = (rand::rng().random_range(0..48), rand::rng().random::<u32>());
    let count = u32::try_from(stage.customers.read().len()).expect("the number of customers fits");
    Some(recent).filter(|n| *n < 24).and_then(|n| stage.recorder.recent(n)).unwrap_or(any % count)
}

/// Looks a customer up.
pub(crate) async fn look_up(
    stage: &RoundState,
    client: &mut OracleClient,
    customer: CustomerNumber,
) -> Result<ObservedAnswer, FailedLookup> {
    let id = stage.id(customer);
    let named = match (id.strip_prefix('+'), id.split_once('@')) {
        (Some(digits), _) => format!("phone=%2B{digits}"),
        (None, Some((name, host))) => format!("email={name}%40{host}"),
        (None, None) => format!("customerId={id}"),
    };
    let by_identifier = !named.starts_with("customerId");
    let path = format!("/api/v1/profile?tenantId=10001&{named}");
    let began = stage.recorder.now();
    let reply = client.send("GET", &path, "").await;
    let (ended, port) = (stage.recorder.now(), client.address.port());
    let failed = |is_late, what: String| {
        stage.unanswered.fetch_add(1, Ordering::Relaxed);
        FailedLookup { is_late, why: format!("{path} through {port} after {} ms: {what}", (ended - began) / 1_000) }
    };
    let reply = reply.map_err(|error| failed(error.kind() == ErrorKind::TimedOut, error.to_string()))?;
    let Some(saw) = observe(&reply, by_identifier) else {
        let is_late = after(&reply.body, "\"code\":\"").is_some_and(|code| LATE.contains(&code));
        return Err(failed(is_late, reply.head + &reply.body));
    };
    stage.answers.fetch_add(1, Ordering::Relaxed);
    let status = reply.header("cache-status").unwrap_or_default();
    let label = match status.split_once("detail=").map(|(_, detail)| detail) {
        Some("unsettled" | "negative-unsettled") => AnswerLabel::Unsettled,
        Some("store-unavailable") => AnswerLabel::StoreUnavailable,
        _ => AnswerLabel::None,
    };
    let from_store = ["; hit", "; stored", "; ttl=-"].iter().any(|part| status.contains(part));
    let read_at = after(&reply.body, "\"sandboxReadAt\":").and_then(|at| at.parse().ok());
    let of_owner = (by_identifier && reply.status == 200).then(|| version_in(&reply));
    Ok(ObservedAnswer { customer, port, began, ended, saw, of_owner, label, from_store, read_at })
}

/// Returns what a reply shows, or `None` for a failure. A lookup by an identifier shows the move of it.
fn observe(reply: &OracleReply, by_identifier: bool) -> Option<Observation> {
    match reply.status {
        200 if by_identifier => {
            let moved = after(&reply.body, "\"title\":\"m").and_then(|number| number.parse().ok());
            Some(Observation::Profile(moved.unwrap_or(0)))
        }
        200 => Some(Observation::Profile(version_in(reply))),
        404 => Some(Observation::Absent),
        410 => Some(Observation::Deleted),
        502 | 503 => None,
        other => panic!("{other}: {}{}", reply.head, reply.body),
    }
}

/// Returns the number of the change that a profile shows.
fn version_in(reply: &OracleReply) -> u32 {
    let name = after(&reply.body, "\"firstName\":\"").expect("a profile has a first name");
    name.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Returns the letters, digits and underscores that follow a text.
fn after<'a>(body: &'a str, text: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(text)?;
    rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}

/// A client that changes customers; no other client changes the same ones.
#[derive(Debug)]
pub(crate) struct ProfileWriter {
    pub(super) stage: Arc<RoundState>,
    client: OracleClient,
    /// The customers of each profile, the canonical one last.
    pub(super) profiles: Vec<Vec<CustomerNumber>>,
    pub(super) moving: Option<MovingNumber>,
    changes: Vec<ProfileChange>,
}

impl ProfileWriter {
    pub(crate) fn new(
        stage: &Arc<RoundState>,
        sandbox: SocketAddr,
        customers: impl Iterator<Item = CustomerNumber>,
    ) -> Self {
        let client = OracleClient::new(sandbox, EDITOR);
        let profiles = customers.map(|customer| vec![customer]).collect();
        Self { stage: Arc::clone(stage), client, profiles, moving: None, changes: Vec::new() }
    }

    /// Changes customers until the round is over: mostly updates, some in quick succession.
    pub(crate) async fn write(mut self, every: Duration) -> Vec<ProfileChange> {
        let mut ticks = pace(every);
        let _alarm = EndRoundOnPanic(Arc::clone(&self.stage));
        while !self.stage.is_over() {
            ticks.tick().await;
            if self.stage.writers_must_wait() {
                continue;
            }
            let chosen = rand::rng().random_range(0..self.profiles.len());
            let dice = rand::rng().random_range(0..100);
            match dice {
                0 => self.delete(chosen).await,
                1 | 2 => self.create().await,
                3 => self.merge(chosen).await,
                4..14 if self.moving.is_some() => self.move_number().await,
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
        self.change("PATCH", &format!("/{id}"), body, number, ChangeKind::Write, profile).await;
    }

    async fn create(&mut self) {
        let number = self.number();
        let body = json!({ "firstName": format!("v{number}"), "lastName": "New" });
        let customer = self.change("POST", "", body, number, ChangeKind::Write, Vec::new()).await;
        self.profiles.push(vec![customer]);
    }

    async fn delete(&mut self, chosen: usize) {
        // For a merged customer, Genesys announces the deletion of the canonical id only.
        if self.profiles.len() > 4 && self.profiles[chosen].len() == 1 {
            let profile = self.profiles.swap_remove(chosen);
            let (id, number) = (self.stage.id(profile[0]), self.number());
            self.change("DELETE", &format!("/{id}"), Value::Null, number, ChangeKind::Delete, profile).await;
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
        let customer = self.change("POST", "/merge", body, number, ChangeKind::Write, profile.clone()).await;
        profile.push(customer);
        self.profiles.push(profile);
    }

    /// Makes and records a change. Returns its newest customer: the one that it created, if any.
    pub(super) async fn change(
        &mut self,
        method: &str,
        path: &str,
        body: Value,
        number: u32,
        kind: ChangeKind,
        mut customers: Vec<CustomerNumber>,
    ) -> CustomerNumber {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let began = self.stage.recorder.now();
        let reply = self.client.send(method, &format!("{CONTACTS}{path}"), &body).await.expect("the sandbox answers");
        let ended = self.stage.recorder.now();
        assert!((200..300).contains(&reply.status), "{}{}", reply.head, reply.body);
        // Only events that are posted are named.
        let events = reply.header("sandbox-events").into_iter().flat_map(|events| events.split(','));
        let events: Vec<Uuid> = events.map(|event| event.parse().expect("an event's id")).collect();
        if method == "POST" {
            let created: Value = serde_json::from_str(&reply.body).expect("a contact");
            customers.push(self.stage.add_customer(created["id"].as_str().expect("an id").to_owned()));
        }
        self.stage.recorder.record_events(&events, &customers);
        let newest = customers[customers.len() - 1];
        self.changes.push(ProfileChange { number, kind, customers, began, ended, events });
        newest
    }

    pub(super) fn number(&self) -> u32 {
        self.stage.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

fn pace(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
