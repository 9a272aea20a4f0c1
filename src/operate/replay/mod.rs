//! Replay: events of the journal take effect again, or those that the audits of Genesys hold and no webhook has reported.
//!
//! # Guarantees
//!
//! Every kept event that was received from `since` until `until` is published again, with the id of the replay; so is one
//! that was received earlier and came to the journal within the period (see `source`). Because of that id the dedup
//! window does not drop it, and its redelivery has no second effect. It evicts its customers, and keeps what later events
//! announced (see [`fence::repeat`](crate::store::fence::repeat)). A repeated or partial replay does no harm.
//!
//! From Genesys, every audited change of a contact between `since` and `until` is published in the same way (see
//! `audit_trail`).
//!
//! # Steps
//!
//! [`Replays::prepare`] checks that the replay is possible and takes the one slot; [`PreparedReplay::begin`] starts the
//! task. The task reads a page of the `source`, selects events, waits for the rate and for a short queue, so that new
//! events do not wait behind old ones, and publishes durably. The holder of [`RunningReplay`] sees the progress. When it
//! is dropped, or the service drains, the replay stops between two publishes.
//!
//! # After an early end
//!
//! Everything up to `reached` is published. Later entries of the journal may have a slightly earlier time, and audits may
//! arrive late, so the next replay starts one minute before.

mod audit_trail;
mod progress;
pub mod request;
mod source;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::SharedClock;
use crate::domain::{Event, Redelivery, ReplayId, Timestamp};
use crate::ingest::audits::AuditEvents;
use crate::metrics::Metrics;
use crate::queue::{self, Publisher, Queue};
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;
use crate::upstream::audit_reader::AuditReader;

use super::actions::Error;

use audit_trail::AuditTrail;
pub use progress::{Progress, Status};
use request::{Origin, ReplayRequest};
use source::Source;

/// The maximum number of events in one publish.
const CHUNK: usize = 256;

/// A replay waits while the queue holds more events than this.
const BACKLOG: u64 = 5_000;

/// How often a replay checks the length of the queue.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long a publish is retried.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// Replays, one at a time.
#[derive(Debug)]
pub struct Replays {
    /// The queue with the journal; `None` in a process without a role that uses the queue.
    pub queue: Option<Arc<dyn Queue>>,
    /// Publishes the events; `None` in a process without a role that uses the queue.
    pub publisher: Option<Arc<dyn Publisher>>,
    /// Reads the audits of Genesys.
    pub audits: AuditReader,
    /// Turns audits into events.
    pub audit_events: AuditEvents,
    /// The wall clock, which is also the clock of the journal.
    pub clock: SharedClock,
    /// Counts replayed events, and queries to Genesys.
    pub metrics: Arc<Metrics>,
    /// Ends and tracks the task of a replay.
    pub shutdown: Shutdown,
    /// Held by the one replay that may run.
    pub slot: Arc<Mutex<()>>,
}

/// A replay that is ready to begin.
#[must_use = "nothing is replayed until it begins"]
#[derive(Debug)]
pub struct PreparedReplay {
    /// The id, which the audit records too.
    pub id: ReplayId,
    task: ReplayTask,
    shutdown: Shutdown,
    slot: OwnedMutexGuard<()>,
}

/// A replay in progress; dropping this stops it.
#[derive(Debug)]
pub struct RunningReplay {
    /// The progress.
    pub progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

impl Replays {
    /// Opens the journal, or asks Genesys whether it answers, and takes the one slot.
    ///
    /// # Errors
    ///
    /// There is no queue or no journal, another replay is in progress, the queue failed, or Genesys refuses its audits.
    pub async fn prepare(&self, request: ReplayRequest) -> Result<PreparedReplay, Error> {
        let (queue, publisher) = self.queue.as_ref().zip(self.publisher.as_ref()).ok_or(Error::NoQueue)?;
        let slot = Arc::clone(&self.slot).try_lock_owned().map_err(|_| Error::Busy)?;
        let source = match request.origin {
            Origin::Journal => {
                let journal = queue.journal(request.since).await?.ok_or(Error::NoJournal)?;
                Source::Journal { journal, begun: false }
            }
            Origin::Genesys => {
                let (reader, events) = (self.audits.clone(), self.audit_events.clone());
                let (clock, metrics) = (Arc::clone(&self.clock), Arc::clone(&self.metrics));
                Source::Genesys(Box::new(AuditTrail::open(reader, events, clock, metrics, &request).await?))
            }
        };
        let id = ReplayId::fresh();
        let progress = Progress::of(&request, id);
        let task = ReplayTask {
            id,
            request,
            source,
            queue: Arc::clone(queue),
            publisher: Arc::clone(publisher),
            metrics: Arc::clone(&self.metrics),
            progress: watch::Sender::new(progress),
            reached: None,
            turn: Instant::now(),
            checked: None,
        };
        Ok(PreparedReplay { id, task, shutdown: self.shutdown.clone(), slot })
    }
}

impl PreparedReplay {
    /// Starts the task.
    #[must_use]
    pub fn begin(self) -> RunningReplay {
        let Self { mut task, shutdown, slot, .. } = self;
        let stop = CancellationToken::new();
        let running = RunningReplay { progress: task.progress.subscribe(), _stop: stop.clone().drop_guard() };
        let draining = shutdown.clone();
        shutdown.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Err((Status::Stopped, "the client closed the connection".to_owned())),
                () = draining.requested() => Err((Status::Stopped, "the service drains".to_owned())),
                done = task.run() => done.map_err(|error| (Status::Failed, error.to_string())),
            };
            // Before the end is known: who has seen it may order the next replay.
            drop(slot);
            task.end(ended);
        });
        running
    }
}

/// The state of the task.
#[derive(Debug)]
struct ReplayTask {
    id: ReplayId,
    request: ReplayRequest,
    source: Source,
    queue: Arc<dyn Queue>,
    publisher: Arc<dyn Publisher>,
    metrics: Arc<Metrics>,
    progress: watch::Sender<Progress>,
    reached: Option<Timestamp>,
    /// When the rate allows the next publish.
    turn: Instant,
    /// When the length of the queue was checked last.
    checked: Option<Instant>,
}

impl ReplayTask {
    async fn run(&mut self) -> Result<(), Error> {
        let (id, request) = (self.id, &self.request);
        let (tenant, rate, dry_run) =
            (request.tenant.as_ref().map(tracing::field::display), request.rate, request.dry_run);
        tracing::info!(replay = %id, since = %request.since, until = %request.until, origin = ?request.origin, tenant, rate, dry_run, "a replay started");
        while let Some(page) = self.source.next(&self.request, &self.progress).await? {
            self.progress.send_modify(|progress| progress.count(page.read, page.unreadable, &page.events));
            let at_once = usize::try_from(self.request.rate / 10).map_or(CHUNK, |tenth| tenth.clamp(1, CHUNK));
            for chunk in page.events.chunks(at_once) {
                self.replay(chunk).await?;
            }
            self.reach(page.complete_until);
        }
        Ok(())
    }

    /// Publishes some events again, as soon as the rate and the queue allow it.
    async fn replay(&mut self, chunk: &[Event]) -> Result<(), Error> {
        let mut replayed = 0;
        if !self.request.dry_run {
            self.give_way().await;
            sleep_until(self.turn).await;
            let share = Duration::from_secs(1).saturating_mul(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            self.turn = self.turn.max(Instant::now()) + share / self.request.rate;
            let again = Some(Redelivery::Replayed(self.id));
            let events: Vec<Event> = chunk.iter().map(|event| Event { again, ..event.clone() }).collect();
            self.publish(&events).await?;
            replayed = events.len() as u64;
            self.metrics.replayed_events.increment(replayed);
        }
        self.progress.send_modify(|progress| progress.replayed += replayed);
        self.reach(self.source.reached(chunk));
        Ok(())
    }

    /// Shows that everything before a time is published.
    fn reach(&mut self, time: Option<Timestamp>) {
        self.reached = self.reached.max(time);
        if let Some(reached) = self.reached {
            self.progress.send_modify(|progress| progress.advance(reached, &self.request));
        }
    }

    /// Waits while the queue is so long that new events would wait long.
    async fn give_way(&mut self) {
        while self.checked.is_none_or(|checked| checked.elapsed() >= CHECK_EVERY) {
            self.checked = Some(Instant::now());
            // If the length is unknown, publishing finds out what is wrong.
            let is_long = self.queue.depth().await.is_ok_and(|depth| depth.events > BACKLOG);
            self.progress.send_modify(|progress| {
                progress.status = if is_long { Status::Waiting } else { Status::Running };
            });
            if is_long {
                sleep(CHECK_EVERY).await;
            }
        }
    }

    /// Publishes, and retries until the events are durable; a repeated publish has the same ids, so it has no second effect.
    async fn publish(&mut self, events: &[Event]) -> Result<(), queue::Error> {
        let (mut backoff, give_up) = (Backoff::default(), Instant::now() + RETRY_FOR);
        loop {
            let error = match self.publisher.publish(events).await {
                Ok(()) => return Ok(()),
                Err(error @ (queue::Error::Closed | queue::Error::Misconfigured { .. })) => return Err(error),
                Err(
                    error @ (queue::Error::Unavailable { .. }
                    | queue::Error::Full { .. }
                    | queue::Error::DiskFull { .. }),
                ) => error,
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
        self.progress.send_modify(|progress| progress.end(&ended));
        let progress = self.progress.borrow();
        let (matched, replayed, resume_since) = (progress.matched, progress.replayed, &progress.resume_since);
        match ended {
            Ok(()) => tracing::info!(replay = %self.id, matched, replayed, "a replay is complete"),
            Err((_, reason)) => {
                tracing::warn!(replay = %self.id, matched, replayed, reason, resume_since, "a replay ended early")
            }
        }
    }
}
