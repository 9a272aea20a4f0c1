//! Replay: events of the journal take effect once more.
//!
//! # What it promises
//!
//! Every event that was received from `since` up to `until`, and is kept, is published again under the id of this
//! replay; so the dedup window does not swallow it, and a redelivery of it has no second effect. It evicts its
//! customers and leaves alone what later events announced (see [`fence::repeat`](crate::store::fence::repeat)). Doing
//! it again, or in part, harms nobody.
//!
//! # The steps
//!
//! [`Replays::prepare`] checks that it can be done and holds the one place; [`Prepared::begin`] starts the task. That
//! reads a page of the journal, picks, waits its turn (the rate; and while much waits in the queue, so that what is
//! announced now does not wait behind it), and publishes, durably. Whoever holds the [`Running`] sees how far it is;
//! when that is dropped, or the service drains, it stops between two publishes.
//!
//! # What each end leaves behind
//!
//! Everything up to `reached` is published. What comes later in the journal may be of a slightly earlier time, so going
//! on begins a minute before.

pub mod order;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::SharedClock;
use crate::domain::{Event, Redelivery, ReplayId, Timestamp};
use crate::metrics::Metrics;
use crate::queue::{self, Journal, Publisher, Queue};
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::actions::Error;

use order::Order;

/// How many events are published at once at most.
const CHUNK: usize = 256;

/// With more than this waiting in the queue, a replay waits too.
const BACKLOG: u64 = 5_000;

/// How often it looks at what waits.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a queue that takes nothing is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much earlier than what was reached one goes on.
const OVERLAP: Duration = Duration::from_secs(60);

/// Replays, one at a time.
#[derive(Debug)]
pub struct Replays {
    /// What keeps a journal; `None` in a process without the roles that use the queue.
    pub queue: Option<Arc<dyn Queue>>,
    /// Where events are published; `None` likewise.
    pub publisher: Option<Arc<dyn Publisher>>,
    /// The wall clock, which the journal's times are of.
    pub clock: SharedClock,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// Ends a replay; tracks it.
    pub shutdown: Shutdown,
    /// The one place.
    pub place: Arc<Mutex<()>>,
}

/// A replay that can begin.
#[must_use = "nothing is replayed before it begins"]
#[derive(Debug)]
pub struct Prepared {
    /// Its id, which the audit names too.
    pub id: ReplayId,
    work: Work,
    shutdown: Shutdown,
    place: OwnedMutexGuard<()>,
}

/// A replay that is under way; dropping this stops it.
#[derive(Debug)]
pub struct Running {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

/// How far a replay is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    replay_id: String,
    /// How it is.
    pub status: Status,
    dry_run: bool,
    since: String,
    until: String,
    /// Events of the journal that were looked at.
    read: u64,
    /// Those of them that are meant.
    matched: u64,
    /// Those of them that were published again.
    pub replayed: u64,
    /// Those that are meant, by kind.
    kinds: BTreeMap<&'static str, u64>,
    /// The time of receipt that it has come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<String>,
    /// The part of the time that it has come through, from 0 to 1.
    fraction: f64,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Where to go on, if it ends early.
    resume_since: String,
}

/// How a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It goes on.
    Running,
    /// It gives way to what waits in the queue.
    Waiting,
    /// All is done.
    Done,
    /// Somebody stopped it.
    Stopped,
    /// Something that it needs does not work.
    Failed,
}

impl Status {
    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Tells whether it is over.
    #[must_use]
    pub const fn is_over(self) -> bool {
        match self {
            Self::Running | Self::Waiting => false,
            Self::Done | Self::Stopped | Self::Failed => true,
        }
    }
}

impl Replays {
    /// Begins to read the journal, and holds the one place.
    ///
    /// # Errors
    ///
    /// There is no queue or no journal, another replay is under way, or the queue failed.
    pub async fn prepare(&self, order: Order) -> Result<Prepared, Error> {
        let (queue, publisher) = self.queue.as_ref().zip(self.publisher.as_ref()).ok_or(Error::NoQueue)?;
        let place = Arc::clone(&self.place).try_lock_owned().map_err(|_| Error::Busy)?;
        let journal = queue.journal(order.since).await?.ok_or(Error::NoJournal)?;
        let id = ReplayId::fresh();
        let progress = Progress::of(&order, id);
        let work = Work {
            id,
            order,
            journal,
            queue: Arc::clone(queue),
            publisher: Arc::clone(publisher),
            metrics: Arc::clone(&self.metrics),
            progress: watch::Sender::new(progress),
            reached: None,
            turn: Instant::now(),
            looked: None,
        };
        Ok(Prepared { id, work, shutdown: self.shutdown.clone(), place })
    }
}

impl Prepared {
    /// Begins.
    #[must_use]
    pub fn begin(self) -> Running {
        let Self { mut work, shutdown, place, .. } = self;
        let stop = CancellationToken::new();
        let running = Running { progress: work.progress.subscribe(), _stop: stop.clone().drop_guard() };
        let draining = shutdown.clone();
        shutdown.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Err((Status::Stopped, "whoever asked for it went away".to_owned())),
                () = draining.requested() => Err((Status::Stopped, "the service drains".to_owned())),
                done = work.run() => done.map_err(|error| (Status::Failed, error.to_string())),
            };
            work.end(ended);
            drop(place);
        });
        running
    }
}

impl Progress {
    fn of(order: &Order, id: ReplayId) -> Self {
        Self {
            replay_id: id.to_string(),
            status: Status::Running,
            dry_run: order.dry_run,
            since: order.since.to_string(),
            until: order.until.to_string(),
            read: 0,
            matched: 0,
            replayed: 0,
            kinds: BTreeMap::new(),
            reached: None,
            fraction: 0.0,
            reason: None,
            resume_since: order.since.to_string(),
        }
    }
}

/// The task's own state.
#[derive(Debug)]
struct Work {
    id: ReplayId,
    order: Order,
    journal: Box<dyn Journal>,
    queue: Arc<dyn Queue>,
    publisher: Arc<dyn Publisher>,
    metrics: Arc<Metrics>,
    progress: watch::Sender<Progress>,
    reached: Option<Timestamp>,
    /// When the rate allows the next publish.
    turn: Instant,
    /// When it looked at what waits.
    looked: Option<Instant>,
}

impl Work {
    async fn run(&mut self) -> Result<(), queue::Error> {
        let (id, order) = (self.id, &self.order);
        let (tenant, rate, dry_run) = (order.tenant.as_ref().map(tracing::field::display), order.rate, order.dry_run);
        tracing::info!(replay = %id, since = %order.since, until = %order.until, tenant, rate, dry_run, "a replay begins");
        while let Some(events) = self.journal.next().await? {
            self.progress.send_modify(|progress| progress.read += events.len() as u64);
            let meant: Vec<Event> = events.into_iter().filter(|event| self.order.wants(event)).collect();
            let at_once = usize::try_from(self.order.rate / 10).map_or(CHUNK, |tenth| tenth.clamp(1, CHUNK));
            for chunk in meant.chunks(at_once) {
                self.replay(chunk).await?;
            }
        }
        Ok(())
    }

    /// Publishes some events again, when it is their turn.
    async fn replay(&mut self, chunk: &[Event]) -> Result<(), queue::Error> {
        let mut replayed = 0;
        if !self.order.dry_run {
            self.give_way().await;
            sleep_until(self.turn).await;
            let share = Duration::from_secs(1).saturating_mul(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            self.turn = self.turn.max(Instant::now()) + share / self.order.rate;
            let again = Some(Redelivery::Replayed(self.id));
            let events: Vec<Event> = chunk.iter().map(|event| Event { again, ..event.clone() }).collect();
            self.publish(&events).await?;
            replayed = events.len() as u64;
            self.metrics.replayed_events.increment(replayed);
        }
        self.reached = self.reached.max(chunk.iter().map(|event| event.received_at).max());
        self.progress.send_modify(|progress| {
            progress.matched += chunk.len() as u64;
            progress.replayed += replayed;
            for event in chunk {
                *progress.kinds.entry(event.kind.as_str()).or_default() += 1;
            }
            if let Some(reached) = self.reached {
                progress.reached = Some(reached.to_string());
                progress.resume_since = resume_since(reached, &self.order).to_string();
                progress.fraction = self.order.fraction(reached);
            }
        });
        Ok(())
    }

    /// Waits while so much waits in the queue that what is announced now would wait long.
    async fn give_way(&mut self) {
        while self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            // A queue that does not tell is none to wait for; publishing says more.
            let is_long = self.queue.depth().await.is_ok_and(|depth| depth.events > BACKLOG);
            self.progress.send_modify(|progress| {
                progress.status = if is_long { Status::Waiting } else { Status::Running };
            });
            if is_long {
                sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Publishes until it is durable: what was durable in vain before is the same replay of the same events.
    async fn publish(&mut self, events: &[Event]) -> Result<(), queue::Error> {
        let (mut backoff, give_up) = (Backoff::default(), Instant::now() + PATIENCE);
        loop {
            let error = match self.publisher.publish(events).await {
                Ok(()) => return Ok(()),
                Err(error @ (queue::Error::Closed | queue::Error::Misconfigured { .. })) => return Err(error),
                Err(error @ (queue::Error::Unavailable { .. } | queue::Error::Full { .. })) => error,
            };
            let pause = backoff.next_delay();
            if Instant::now() + pause > give_up {
                return Err(error);
            }
            tracing::debug!(replay = %self.id, %error, "a replay waits for the queue");
            sleep(pause).await;
        }
    }

    fn end(self, ended: Result<(), (Status, String)>) {
        self.progress.send_modify(|progress| match &ended {
            Ok(()) => {
                progress.status = Status::Done;
                progress.fraction = 1.0;
            }
            Err((status, reason)) => {
                progress.status = *status;
                progress.reason = Some(reason.clone());
            }
        });
        let Progress { matched, replayed, ref resume_since, .. } = *self.progress.borrow();
        match ended {
            Ok(()) => tracing::info!(replay = %self.id, matched, replayed, "a replay is done"),
            Err((_, reason)) => {
                tracing::warn!(replay = %self.id, matched, replayed, reason, resume_since, "a replay ended early")
            }
        }
    }
}

/// Returns where one goes on who has come to a time.
fn resume_since(reached: Timestamp, order: &Order) -> Timestamp {
    let overlap = i64::try_from(OVERLAP.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(reached.as_millis().saturating_sub(overlap)).max(order.since)
}
