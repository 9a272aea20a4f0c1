//! Load: lookups and events at a steady rate while something happens, with a record of every answer.
//!
//! The rate does not depend on the answers (an open loop), so slow requests accumulate as in production. Each event
//! follows a change at Genesys. So there are two ways to see that it was applied: its mark in Redis, and the answer of
//! the next lookup, which must equal the profile at Genesys.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use profile_edge::domain::{KeyHasher, TenantId, Timestamp};
use profile_edge::ingest::shapes::{self, PostedEvent};
use rand::RngExt;
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::edge::Edge;
use super::{PATIENCE, customer, eventually};

/// The lookups, and the events, per second.
const RATE: u32 = 200;

/// The number of customers.
const CUSTOMERS: u32 = 400;

/// How long an Architect flow waits for a lookup.
const PATIENCE_OF_A_CALLER: Duration = Duration::from_secs(2);

/// A webhook waits for the broker for `queue.amqp.publish_timeout`, two seconds.
const PATIENCE_OF_A_SENDER: Duration = Duration::from_secs(3);

/// An answer that takes this long is a failure.
const LOST: Duration = Duration::from_secs(10);

/// Lookups and events against one process.
pub(crate) struct Load<'a> {
    edge: &'a Edge,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    lookups: Vec<Lookup>,
    events: Vec<Event>,
}

/// The answer of a lookup.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    pub(crate) status: u16,
    pub(crate) took: Duration,
    /// The header, or the problem.
    pub(crate) reply: String,
}

/// A posted event and its answer.
#[derive(Clone, Debug)]
struct Event {
    customer: u32,
    number: u32,
    status: u16,
    took: Duration,
    /// The problem, if it was not accepted.
    reply: String,
}

impl Event {
    fn body(customer: u32, number: u32) -> Value {
        json!({ "tenantId": "10001", "customerId": super::customer(customer), "eventId": format!("load-{number}") })
    }

    fn is_accepted(&self) -> bool {
        self.status == 202
    }

    /// The key in Redis that marks this event as applied.
    fn mark(&self) -> String {
        let body = Self::body(self.customer, self.number).to_string();
        let Ok(PostedEvent::Announced(announced)) =
            shapes::read_flat(body.as_bytes()).map(|mut posted| posted.items.remove(0))
        else {
            panic!("{body} is an event");
        };
        let tenant: TenantId = "10001".parse().unwrap();
        let event = announced.into_event(&tenant, &[KeyHasher::Sha256], Timestamp::from_millis(0));
        format!("seen:{{{}}}:{}", event.keys().next().unwrap(), event.dedup_digest())
    }
}

impl<'a> Load<'a> {
    /// Prepares a load: every customer is in the cache, and the sandbox posts no events itself.
    pub(crate) async fn on(edge: &'a Edge) -> Self {
        edge.behave(json!({ "events": false })).await;
        let load = Self { edge, record: Mutex::default() };
        for chunk in (1..=CUSTOMERS).collect::<Vec<_>>().chunks(50) {
            // Cold lookups may miss their deadline on a busy machine.
            let cached = |n: &u32| {
                let n = *n;
                let load = &load;
                eventually(
                    "a customer is cached",
                    move || async move { (load.ask(n).await.status == 200).then_some(()) },
                )
            };
            join_all(chunk.iter().map(cached)).await;
        }
        load
    }

    /// Sends the load until the scenario ends, then waits for all open answers.
    pub(crate) async fn during(&self, story: impl Future<Output = ()>) {
        let mut story = std::pin::pin!(story);
        let mut ticks = interval(Duration::from_secs(1) / RATE);
        // After a pause of the machine the missed requests are not sent: thousands at once would be another test.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut flights = FuturesUnordered::new();
        let mut number = 0;
        loop {
            tokio::select! {
                () = &mut story => break,
                Some(()) = flights.next(), if !flights.is_empty() => {}
                _ = ticks.tick() => {
                    flights.push(self.round(number));
                    number += 1;
                }
            }
        }
        while flights.next().await.is_some() {}
    }

    async fn round(&self, number: u32) {
        let asked = rand::rng().random_range(1..=CUSTOMERS);
        let (answer, event) = tokio::join!(self.ask(asked), self.change(number));
        let mut record = self.record.lock();
        record.lookups.push(answer);
        record.events.push(event);
    }

    async fn ask(&self, n: u32) -> Lookup {
        let started = Instant::now();
        let looked = timeout(LOST, self.edge.look_up(&customer(n))).await.expect("a lookup is answered");
        let reply = if looked.status == 200 { looked.cache_status } else { looked.text };
        Lookup { status: looked.status, took: started.elapsed(), reply }
    }

    /// Changes a customer at Genesys, and posts the event.
    async fn change(&self, number: u32) -> Event {
        let customer = number % CUSTOMERS + 1;
        self.edge.change(&super::customer(customer), json!({ "firstName": format!("Name {number}") })).await;
        let started = Instant::now();
        let body = Event::body(customer, number);
        let answer = timeout(LOST, self.edge.post_event(&body)).await.expect("a webhook is answered");
        let (status, took) = (answer.status().as_u16(), started.elapsed());
        assert!(status != 503 || answer.headers().contains_key("retry-after"));
        let reply = if status == 202 { String::new() } else { answer.text().await.unwrap_or_default() };
        Event { customer, number, status, took, reply }
    }

    /// Returns how many events were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.record.lock().events.iter().filter(|event| event.is_accepted()).count()
    }

    /// Waits until this many more events have been accepted.
    pub(crate) async fn accepts(&self, more: usize) {
        let (before, enough) = (self.accepted(), self.accepted() + more);
        let waiting = eventually("", || async { (self.accepted() >= enough).then_some(()) });
        if timeout(PATIENCE.mul_f32(0.9), waiting).await.is_err() {
            let accepted = self.accepted() - before;
            let last = self.record.lock().events.last().map(|event| (event.status, event.reply.clone()));
            panic!("of {more} events {accepted} were accepted; the last sender was reply: {last:?}");
        }
    }

    /// Returns every lookup's answer so far.
    pub(crate) fn lookups(&self) -> Vec<Lookup> {
        self.record.lock().lookups.clone()
    }

    /// Checks that every lookup was answered with a profile. On a busy machine one in fifty may miss its deadline; no other
    /// failure is allowed.
    pub(crate) fn lookups_were_served(&self) {
        let lookups = self.lookups();
        let (late, refused): (Vec<_>, Vec<_>) = lookups
            .iter()
            .filter(|lookup| lookup.status != 200)
            .partition(|lookup| lookup.reply.contains("\"deadline\""));
        assert!(refused.is_empty(), "{:?}", refused[0]);
        assert!(late.len() * 50 <= lookups.len(), "{} of {} lookups missed their deadline", late.len(), lookups.len());
    }

    /// Checks that every lookup and every event was answered, or refused with 503, within the time that a caller waits. On
    /// a busy machine one answer in fifty may be later, but none may be missing: the limit of the service is
    /// `lookup.deadline`.
    pub(crate) fn all_were_answered_in_time(&self) {
        let record = self.record.lock();
        let lookups = record.lookups.iter().map(|lookup| (lookup.took, PATIENCE_OF_A_CALLER));
        let events = record.events.iter().map(|event| (event.took, PATIENCE_OF_A_SENDER));
        let late = lookups.chain(events).filter(|(took, patience)| took > patience).count();
        assert!(late * 50 <= record.lookups.len() + record.events.len(), "{late} answers were late");
        for lookup in &record.lookups {
            assert!(matches!(lookup.status, 200 | 503), "{lookup:?}");
        }
        for event in &record.events {
            assert!(matches!(event.status, 202 | 503), "{event:?}");
        }
    }

    /// Checks that no sender was asked to post an event again.
    pub(crate) fn all_were_accepted(&self) {
        let refused: Vec<Event> =
            self.record.lock().events.iter().filter(|event| !event.is_accepted()).cloned().collect();
        assert!(refused.is_empty(), "{} events were refused, first {:?}", refused.len(), refused[0]);
    }

    /// Waits until every accepted event has left its mark in Redis.
    pub(crate) async fn accepted_are_applied(&self, redis: &MultiplexedConnection) {
        let mut missing: Vec<String> =
            self.record.lock().events.iter().filter(|event| event.is_accepted()).map(Event::mark).collect();
        let count = missing.len();
        while !missing.is_empty() {
            let looked = missing.len();
            // The time limit starts again with every mark that is found.
            missing = eventually(&format!("{looked} of {count} accepted events are applied"), || async {
                let mut there = redis::pipe();
                for mark in &missing {
                    there.exists(mark);
                }
                let there: Vec<bool> = there.query_async(&mut redis.clone()).await.ok()?;
                let left: Vec<_> =
                    missing.iter().zip(there).filter(|(_, there)| !there).map(|(m, _)| m.clone()).collect();
                (left.len() < looked).then_some(left)
            })
            .await;
        }
    }

    /// Checks that lookups return the profile at Genesys for every customer whose last event was accepted.
    pub(crate) async fn answers_are_current(&self) {
        let mut last = BTreeMap::new();
        for event in &self.record.lock().events {
            let of = last.entry(event.customer).or_insert((event.number, event.is_accepted()));
            *of = (*of).max((event.number, event.is_accepted()));
        }
        let settled: Vec<u32> = last.iter().filter(|(_, (_, accepted))| *accepted).map(|(n, _)| *n).collect();
        assert!(!settled.is_empty());
        for n in settled {
            let path = format!("/api/v2/externalcontacts/contacts/{}", customer(n));
            let there = self.edge.sandbox(Method::GET, &path).send().await.unwrap();
            let there: Value = there.json().await.unwrap();
            let answer = self.edge.look_up(&customer(n)).await;
            assert_eq!(answer.json()["firstName"], there["firstName"], "customer {n}: {}", answer.cache_status);
        }
    }

    /// Prints a summary.
    pub(crate) fn summary(&self) -> String {
        let record = self.record.lock();
        let mut lookups = BTreeMap::<String, u32>::new();
        for lookup in &record.lookups {
            let kind = lookup.reply.split("; ttl=").next().unwrap_or_default();
            let kind = if lookup.status == 200 { kind } else { "refused" };
            *lookups.entry(format!("{} {kind}", lookup.status)).or_default() += 1;
        }
        let slowest = record.lookups.iter().map(|lookup| lookup.took).max().unwrap_or_default();
        let accepted = record.events.iter().filter(|event| event.is_accepted()).count();
        let slowest_event = record.events.iter().map(|event| event.took).max().unwrap_or_default();
        format!(
            "{} lookups {lookups:?}, slowest {slowest:?}; {} events, {accepted} accepted, slowest {slowest_event:?}",
            record.lookups.len(),
            record.events.len()
        )
    }
}
