//! Gates: every step of a lookup or an event that touches what others see waits at one, until the schedule lets
//! it through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use profile_edge::domain::Key;
use profile_edge::store::{Applied, Base, Change, Entry, Error, Filled, Lease, LeaseAnswer, Record, Store, Token};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The step with which a lookup begins.
pub(super) const BEGIN: &str = "begin";

/// The gates of one run, and who stands before them.
#[derive(Debug, Default)]
pub(super) struct Gates {
    waiting: Mutex<Vec<Waiting>>,
    /// How many have been let through: the time of a run.
    step: Mutex<usize>,
    /// A lookup has begun: its first look belongs to that step.
    begun: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    actor: usize,
    step: &'static str,
    pass: oneshot::Sender<usize>,
}

impl Gates {
    /// Waits to be let through; returns the time.
    pub(super) async fn pass(&self, actor: usize, step: &'static str) -> usize {
        let (pass, passed) = oneshot::channel();
        self.waiting.lock().push(Waiting { actor, step, pass });
        passed.await.expect("a run lets everyone through")
    }

    /// Waits to begin a lookup; returns the time.
    pub(super) async fn begin(&self, actor: usize) -> usize {
        let now = self.pass(actor, BEGIN).await;
        self.begun.store(true, Ordering::Relaxed);
        now
    }

    /// Who stands before a gate, in an order that does not depend on who came first.
    pub(super) fn waiting(&self) -> Vec<(usize, &'static str)> {
        let mut waiting = self.waiting.lock();
        waiting.sort_by_key(|waiting| (waiting.actor, waiting.step));
        waiting.iter().map(|waiting| (waiting.actor, waiting.step)).collect()
    }

    /// Lets through one that stands before this gate.
    pub(super) fn release(&self, actor: usize, step: &'static str) {
        let mut waiting = self.waiting.lock();
        let found = waiting.iter().position(|waiting| (waiting.actor, waiting.step) == (actor, step));
        let waiting = waiting.remove(found.expect("someone stands there"));
        let now = self.tick();
        // Whoever was cancelled at its gate needs no pass.
        let _ = waiting.pass.send(now);
    }

    /// Lets time go on by a step of something else.
    pub(super) fn tick(&self) -> usize {
        let mut step = self.step.lock();
        *step += 1;
        *step
    }
}

/// A store each of whose steps is a gate of one actor's; what comes back waits once more, so that the world can
/// change while an answer is under way.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) store: Arc<dyn Store>,
    pub(super) gates: Arc<Gates>,
    pub(super) actor: usize,
    /// Fills without asking whether its lease still stands: the fault that everybody builds first.
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

    async fn invalidate(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.gates.pass(self.actor, "invalidate").await;
        self.store.invalidate(key, change).await
    }

    async fn write_tombstone(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.gates.pass(self.actor, "write_tombstone").await;
        self.store.write_tombstone(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.store.wait(key, seen, deadline).await;
    }
}
