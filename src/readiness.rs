//! Readiness: whether this process should get traffic, and which dependencies are down.
//!
//! It has a latch for the phases (starting → running → draining) and a flag for each dependency. A probe updates the
//! flags about once a second. A dependency that is down makes the process degraded, not unready: lookups work without a
//! store and without a queue. A process is unready only if none of its roles can work: an ingest process without its
//! queue and an outbox that accepts events, or a consumer process without its queue or its store. A tenant whose Genesys gives no answers is listed
//! with the reason; other tenants are not affected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::roles::Roles;

/// A phase of the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does not serve yet.
    Starting,
    /// It serves.
    Running,
    /// It finishes the requests in progress.
    Draining,
}

/// The readiness of one process.
#[derive(Debug)]
pub struct Readiness {
    roles: Roles,
    phase: AtomicU8,
    store_up: AtomicBool,
    /// The codes of the store's errors that were logged since it works no more.
    store_codes: Mutex<BTreeSet<String>>,
    /// Whether at least a part of the store works.
    store_usable: AtomicBool,
    queue_up: AtomicBool,
    /// Why the queue does not work.
    queue_reason: Mutex<Option<String>>,
    /// Whether an outbox takes events that the queue does not.
    outbox_accepts: AtomicBool,
    /// What waits in the outbox, if anything does.
    outbox: Mutex<Option<String>>,
    /// How many other processes take events from our queue to another store.
    foreign_consumers: AtomicUsize,
    audit_up: AtomicBool,
    awaited: Mutex<BTreeSet<&'static str>>,
    refused: Mutex<BTreeMap<String, String>>,
    sources: Mutex<BTreeMap<String, String>>,
}

impl Readiness {
    /// Creates the readiness of a starting process.
    #[must_use]
    pub fn starting(roles: Roles) -> Self {
        let up = || AtomicBool::new(true);
        let phase = AtomicU8::new(Phase::Starting as u8);
        Self {
            roles,
            phase,
            store_up: up(),
            store_usable: up(),
            queue_up: up(),
            queue_reason: Mutex::default(),
            outbox_accepts: AtomicBool::new(false),
            outbox: Mutex::default(),
            store_codes: Mutex::default(),
            foreign_consumers: AtomicUsize::new(0),
            audit_up: up(),
            awaited: Mutex::default(),
            refused: Mutex::default(),
            sources: Mutex::default(),
        }
    }

    /// Enters a phase; an earlier phase than the current one has no effect.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Returns the phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Acquire);
        [Phase::Starting, Phase::Running]
            .into_iter()
            .find(|candidate| *candidate as u8 == phase)
            .unwrap_or(Phase::Draining)
    }

    /// Waits for a dependency of the start, and lists it as awaited until then.
    pub async fn awaiting<T>(&self, dependency: &'static str, opening: impl Future<Output = T>) -> T {
        self.awaited.lock().insert(dependency);
        let opened = opening.await;
        self.awaited.lock().remove(dependency);
        opened
    }

    /// Returns the dependencies that the start waits for.
    #[must_use]
    pub fn awaited(&self) -> Vec<&'static str> {
        self.awaited.lock().iter().copied().collect()
    }

    /// Stores whether every part of the store works, or else the reason, and logs a change, and each code of the server
    /// once; `usable`: whether at least one part works.
    pub fn store(&self, answer: Result<(), String>, usable: bool, metrics: &Metrics) {
        let up = answer.is_ok();
        self.store_usable.store(usable, Ordering::Release);
        let reason = answer.err();
        let is_new = match reason.as_deref().map(code) {
            None => {
                self.store_codes.lock().clear();
                false
            }
            Some(code) => code.is_some_and(|code| self.store_codes.lock().insert(code.to_owned())),
        };
        if is_new && !self.store_up.load(Ordering::Acquire) {
            tracing::warn!(dependency = "store", reason, "dependency does not work, for another reason now");
        }
        update("store", &self.store_up, up, reason);
        metrics.store_up.set(f64::from(u8::from(up)));
    }

    /// Stores whether the queue works, or else the reason, and logs a change.
    pub fn queue(&self, answer: Result<(), String>, metrics: &Metrics) {
        let (up, reason) = (answer.is_ok(), answer.err());
        self.queue_reason.lock().clone_from(&reason);
        update("queue", &self.queue_up, up, reason);
        metrics.queue_up.set(f64::from(u8::from(up)));
    }

    /// Stores how many other processes take events from our queue to another store; the consumer logs it.
    pub fn foreign_consumers(&self, count: usize) {
        self.foreign_consumers.store(count, Ordering::Release);
    }

    /// Stores why the outbox accepts no events, if so, how many wait in it, and the age of the oldest; it logs changes itself.
    pub fn outbox(&self, refusal: Option<String>, events: u64, oldest_age: Duration) {
        self.outbox_accepts.store(refusal.is_none(), Ordering::Release);
        let waits = || format!("{events} events wait for the broker, the oldest for {} s", oldest_age.as_secs());
        let reasons: Vec<String> = (events > 0).then(waits).into_iter().chain(refusal).collect();
        *self.outbox.lock() = (!reasons.is_empty()).then(|| reasons.join("; "));
    }

    /// Stores whether the audit sink accepts records; the audit logs a change itself.
    pub fn audit(&self, up: bool, metrics: &Metrics) {
        self.audit_up.store(up, Ordering::Release);
        metrics.audit_up.set(f64::from(u8::from(up)));
    }

    /// Stores the tenants whose Genesys gives no answers, and why; the upstream logs it.
    pub fn upstreams(&self, refused: impl IntoIterator<Item = (String, String)>) {
        let named = refused.into_iter().map(|(tenant, reason)| (format!("upstream:{tenant}"), reason));
        *self.refused.lock() = named.collect();
    }

    /// Stores the tenants whose source of events misses changes, since when and why; the source logs it.
    pub fn sources(&self, missing: impl IntoIterator<Item = (String, String)>) {
        let named = missing.into_iter().map(|(tenant, reason)| (format!("source:{tenant}"), reason));
        *self.sources.lock() = named.collect();
    }

    /// Returns the refused upstreams, as `upstream:{tenant}`, and the sources that miss changes, as `source:{tenant}`, each
    /// with the reason; a `queue` that does not work, or from which others take events to another store; and an `outbox` in
    /// which events wait, or that accepts none.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        let mut reasons = self.refused.lock().clone();
        reasons.extend(self.sources.lock().clone());
        let foreign = self.foreign_consumers.load(Ordering::Acquire);
        let shared = || format!("{foreign} of the processes that take its events use another store");
        let queue = self.queue_reason.lock().clone().filter(|_| self.roles.use_the_queue());
        let queue = queue.or_else(|| (foreign > 0).then(shared));
        reasons.extend(queue.map(|reason| ("queue".to_owned(), reason)));
        reasons.extend(self.outbox.lock().clone().map(|waits| ("outbox".to_owned(), waits)));
        reasons
    }

    /// Returns the dependencies that are down and used by the roles of this process.
    #[must_use]
    pub fn degraded(&self) -> Vec<&'static str> {
        let mut down = Vec::new();
        if self.roles.use_the_store() && !self.store_up.load(Ordering::Acquire) {
            down.push("store");
        }
        if self.roles.use_the_queue() && !self.queue_up.load(Ordering::Acquire) {
            down.push("queue");
        }
        if !self.audit_up.load(Ordering::Acquire) {
            down.push("audit");
        }
        down
    }

    /// Returns whether at least one role can work.
    #[must_use]
    pub fn can_work(&self) -> bool {
        let (store, queue) = (self.store_usable.load(Ordering::Acquire), self.queue_up.load(Ordering::Acquire));
        let ingest = queue || self.outbox_accepts.load(Ordering::Acquire);
        self.roles.lookup || (self.roles.ingest && ingest) || (self.roles.consumer && queue && store)
    }
}

/// Returns the code of a server in the text of an error: an upper-case word in brackets at the end.
fn code(reason: &str) -> Option<&str> {
    let (_, code) = reason.strip_suffix(')')?.rsplit_once('(')?;
    (!code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase())).then_some(code)
}

fn update(dependency: &'static str, flag: &AtomicBool, up: bool, reason: Option<String>) {
    let was = flag.swap(up, Ordering::AcqRel);
    match (was, up) {
        (true, false) => tracing::warn!(dependency, reason, "dependency does not work"),
        (false, true) => tracing::info!(dependency, "dependency works again"),
        (true, true) | (false, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_never_go_back() {
        let readiness = Readiness::starting(Roles::ALL);
        assert_eq!(readiness.phase(), Phase::Starting);
        readiness.enter(Phase::Running);
        readiness.enter(Phase::Draining);
        readiness.enter(Phase::Running);
        assert_eq!(readiness.phase(), Phase::Draining);
    }

    #[test]
    fn the_code_of_a_server_ends_the_text_of_its_error() {
        assert_eq!(code("store unavailable: not connected: busy loading (LOADING)"), Some("LOADING"));
        for none in ["Connection refused (os error 111)", "it does not answer (CLIENT PAUSE)", "", "()"] {
            assert_eq!(code(none), None, "{none}");
        }
    }

    #[test]
    fn lookups_stay_ready_without_store_and_queue() {
        let (metrics, readiness) = (Metrics::new(), Readiness::starting(Roles::ALL));
        readiness.store(Err("OOM".to_owned()), false, &metrics);
        readiness.queue(Err("the disk is full".to_owned()), &metrics);
        assert!(readiness.can_work());
        assert_eq!(readiness.degraded(), ["store", "queue"]);
        assert_eq!(readiness.refused()["queue"], "the disk is full");
        readiness.queue(Ok(()), &metrics);
        assert!(readiness.refused().is_empty());
        readiness.foreign_consumers(1);
        assert!(readiness.refused()["queue"].starts_with("1 of the processes"));
        assert!(readiness.can_work());
    }

    #[test]
    fn a_refused_upstream_is_listed_until_it_recovers() {
        let readiness = Readiness::starting(Roles::ALL);
        readiness.upstreams([("10001".to_owned(), "it may write".to_owned())]);
        assert_eq!(readiness.refused()["upstream:10001"], "it may write");
        assert!(readiness.can_work());
        readiness.upstreams([]);
        assert!(readiness.refused().is_empty());
    }

    #[test]
    fn a_process_is_unready_when_none_of_its_roles_can_work() {
        let metrics = Metrics::new();
        let ingest = Readiness::starting(Roles { ingest: true, consumer: false, lookup: false });
        ingest.store(Err("OOM".to_owned()), false, &metrics);
        assert!(ingest.can_work());
        assert!(ingest.degraded().is_empty());
        ingest.queue(Err("no route".to_owned()), &metrics);
        assert!(!ingest.can_work());
        ingest.outbox(None, 3, Duration::from_secs(7));
        assert!(ingest.can_work());
        assert_eq!(ingest.refused()["outbox"], "3 events wait for the broker, the oldest for 7 s");
        ingest.outbox(Some("it is full".to_owned()), 0, Duration::ZERO);
        assert!(!ingest.can_work());
        assert_eq!(ingest.refused()["outbox"], "it is full");
    }

    #[test]
    fn a_consumer_with_a_part_of_its_store_is_degraded_and_ready() {
        let metrics = Metrics::new();
        let consumer = Readiness::starting(Roles { ingest: false, consumer: true, lookup: false });
        consumer.store(Err("one shard: OOM".to_owned()), true, &metrics);
        assert!(consumer.can_work());
        assert_eq!(consumer.degraded(), ["store"]);
        consumer.store(Err("OOM".to_owned()), false, &metrics);
        assert!(!consumer.can_work());
    }
}
