//! Readiness: whether this process should get traffic, and what is wrong if it works only in part.
//!
//! A latch for the phases (starting → running → draining), and one flag per dependency, kept by a probe
//! that asks each dependency about once a second. A dependency that is down makes the process degraded,
//! not unready: lookups go on without a store, and without a queue. Only a process none of whose roles
//! can work at all is unready: one that only ingests, without its queue; one that only consumes,
//! without its queue or its store. A tenant whose token at Genesys is refused is named with the reason; the
//! others go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::roles::Roles;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet serving.
    Starting,
    /// Serving.
    Running,
    /// Finishing what is under way.
    Draining,
}

/// The readiness of one process.
#[derive(Debug)]
pub struct Readiness {
    roles: Roles,
    phase: AtomicU8,
    store_up: AtomicBool,
    queue_up: AtomicBool,
    audit_up: AtomicBool,
    refused: Mutex<BTreeMap<String, String>>,
}

impl Readiness {
    /// Makes the readiness of a process that is starting.
    #[must_use]
    pub fn starting(roles: Roles) -> Self {
        let up = || AtomicBool::new(true);
        let (phase, refused) = (AtomicU8::new(Phase::Starting as u8), Mutex::default());
        Self { roles, phase, store_up: up(), queue_up: up(), audit_up: up(), refused }
    }

    /// Enters the next phase; phases never go back.
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

    /// Notes whether the store answered; a change is logged.
    pub fn store(&self, up: bool, metrics: &Metrics) {
        note("store", &self.store_up, up);
        metrics.store_up.set(f64::from(u8::from(up)));
    }

    /// Notes whether the queue answered; a change is logged.
    pub fn queue(&self, up: bool, metrics: &Metrics) {
        note("queue", &self.queue_up, up);
        metrics.queue_up.set(f64::from(u8::from(up)));
    }

    /// Notes whether the audit's sink takes records; whoever found out has logged it.
    pub fn audit(&self, up: bool, metrics: &Metrics) {
        self.audit_up.store(up, Ordering::Release);
        metrics.audit_up.set(f64::from(u8::from(up)));
    }

    /// Notes the tenants whose Genesys may not be asked, and why; whoever found out has logged it.
    pub fn upstreams(&self, refused: impl IntoIterator<Item = (String, String)>) {
        let named = refused.into_iter().map(|(tenant, reason)| (format!("upstream:{tenant}"), reason));
        *self.refused.lock() = named.collect();
    }

    /// Returns the upstreams that may not be asked, as `upstream:{tenant}`, and why.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        self.refused.lock().clone()
    }

    /// Returns the dependencies that are down and that this process' roles use.
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

    /// Tells whether at least one role can work.
    #[must_use]
    pub fn can_work(&self) -> bool {
        let (store, queue) = (self.store_up.load(Ordering::Acquire), self.queue_up.load(Ordering::Acquire));
        self.roles.lookup || (self.roles.ingest && queue) || (self.roles.consumer && queue && store)
    }
}

fn note(dependency: &'static str, flag: &AtomicBool, up: bool) {
    let was = flag.swap(up, Ordering::AcqRel);
    match (was, up) {
        (true, false) => tracing::warn!(dependency, "a dependency does not answer"),
        (false, true) => tracing::info!(dependency, "a dependency answers again"),
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
    fn lookups_stay_ready_without_store_and_queue() {
        let (metrics, readiness) = (Metrics::new(), Readiness::starting(Roles::ALL));
        readiness.store(false, &metrics);
        readiness.queue(false, &metrics);
        assert!(readiness.can_work());
        assert_eq!(readiness.degraded(), ["store", "queue"]);
    }

    #[test]
    fn a_refused_upstream_is_named_until_it_no_longer_is() {
        let readiness = Readiness::starting(Roles::ALL);
        readiness.upstreams([("10001".to_owned(), "it may write".to_owned())]);
        assert_eq!(readiness.refused()["upstream:10001"], "it may write");
        assert!(readiness.can_work());
        readiness.upstreams([]);
        assert!(readiness.refused().is_empty());
    }

    #[test]
    fn a_role_that_cannot_work_alone_is_unready() {
        let metrics = Metrics::new();
        let ingest = Readiness::starting(Roles { ingest: true, consumer: false, lookup: false });
        ingest.store(false, &metrics);
        assert!(ingest.can_work());
        assert!(ingest.degraded().is_empty());
        ingest.queue(false, &metrics);
        assert!(!ingest.can_work());
    }
}
