//! Gates: every step of a lookup or an event that accesses shared state waits at a gate until the schedule opens it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use profile_edge::domain::Key;
use profile_edge::store::{Applied, Base, Change, Entry, Error, Filled, Lease, LeaseAnswer, Record, Store, Token};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The first step of a lookup.
pub(super) const BEGIN: &str = "begin";

/// The gates of one run, and the actors that wait at them.
#[derive(Debug, Default)]
pub(super) struct Gates {
    waiting: Mutex<Vec<Waiting>>,
    /// How many steps have passed: the time of a run.
    step: Mutex<usize>,
    /// A lookup has started: its first read belongs to that step.
    begun: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    actor: usize,
    step: &'static str,
    pass: oneshot::Sender<usize>,
}

impl Gates {
    /// Waits until the gate opens. Returns the time.
    pub(super) async fn pass(&self, actor: usize, step: &'static str) -> usize {
        let (pass, passed) = oneshot::channel();
        self.waiting.lock().push(Waiting { actor, step, pass });
        passed.await.expect("a run lets everyone through")
    }

    /// Waits to start a lookup. Returns the time.
    pub(super) async fn begin(&self, actor: usize) -> usize {
        let now = self.pass(actor, BEGIN).await;
        self.begun.store(true, Ordering::Relaxed);
        now
    }

    /// Returns the actors that wait, in an order that does not depend on their arrival.
    pub(super) fn waiting(&self) -> Vec<(usize, &'static str)> {
        let mut waiting = self.waiting.lock();
        waiting.sort_by_key(|waiting| (waiting.actor, waiting.step));
        waiting.iter().map(|waiting| (waiting.actor, waiting.step)).collect()
    }

    /// Opens this gate for one actor.
    pub(super) fn release(&self, actor: usize, step: &'static str) {
        let mut waiting = self.waiting.lock();
        let found = waiting.iter().position(|waiting| (waiting.actor, waiting.step) == (actor, step));
        let waiting = waiting.remove(found.expect("an actor waits there"));
        let now = self.tick();
        // An actor that was cancelled at its gate is skipped.
        let _ = waiting.pass.send(now);
    }

    /// Advances the time by a step of another part.
    pub(super) fn tick(&self) -> usize {
        let mut step = self.step.lock();
        *step += 1;
        *step
    }
}

/// A store whose every step is a gate of one actor. The answer waits at a second gate, so that the state can change
/// while it is under way.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) store: Arc<dyn Store>,
    pub(super) gates: Arc<Gates>,
    pub(super) actor: usize,
    /// Fills without a check of its lease: a common fault.
    pub(super) fills_anyway: bool,
}

#[async_trait]
impl Store for Gated {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        if !self.gates.begun.swap(false, Ordering::Relaxed) {
            self.gates.pass(self.actor, "get").await;
        }
        let entry = self.store.get(key).await;
        self.gates.pass(self.actor, "got").await;
        entry
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        self.gates.pass(self.actor, "lease").await;
        self.store.lease(key, base, token, ttl).await
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        self.gates.pass(self.actor, "fill").await;
        let key = lease.key().clone();
        let filled = self.store.fill(lease, record.clone()).await?;
        if self.fills_anyway && filled == Filled::Refused {
            let again = self.store.lease(&key, &Base::Absent, Token::draw(), Duration::from_secs(2)).await?;
            if let LeaseAnswer::Granted(lease) = again {
                let record = Record { token: lease.token(), ..record };
                return self.store.fill(lease, record).await;
            }
        }
        Ok(filled)
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        self.gates.pass(self.actor, "release").await;
        self.store.release(lease).await
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.gates.pass(self.actor, "apply").await;
        self.store.apply(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.store.wait(key, seen, deadline).await;
    }
}
