//! The worker: takes deliveries, applies at most `concurrency` of them at the same time, settles each, drains.
//!
//! # When something fails
//!
//! An event fails because its part of the store is unavailable: its delivery is returned to the queue, which delivers it
//! again later, behind the others; the subscription continues. Every part is unavailable, by a probe of each: the
//! deliveries under way are returned to the queue, the subscription ends, and the store is probed with backoff until a
//! part works; then the worker subscribes again. It never loops without a pause and never dead-letters an event because
//! the store is unavailable. The queue is unavailable: the worker subscribes again with backoff. A delivery is a poison
//! message: it is dead-lettered with the reason. A poison message cannot be decoded, or the store refused it too often
//! while it took [others](super::refusals), and refuses it again right after every part of the store passed a probe.
//!
//! The order is: effect, audit record, acknowledgement. After a crash in between, the event is redelivered, the store
//! answers `Duplicate`, and the audit knows whether the record exists. If every record is mandatory (`audit.strict`)
//! and the audit accepts none, the worker waits for the audit as it waits for the store.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::audit::{self, Audit, EventEffect, EventRecord};
use crate::clock::SharedClock;
use crate::domain::{Event, Redelivery, Timestamp};
use crate::faults::{Fault, Faults};
use crate::metrics::{ConsumerOutcome, Metrics, in_progress, observe};
use crate::queue::{self, DeadLetterReason, Delivery, Payload, Queue, Subscription};
use crate::shutdown::Shutdown;
use crate::spans;
use crate::store::{self, Inspect, Store};
use crate::supervise::Backoff;

use super::refusals::Refusals;
use super::{AppliedEvent, apply};

/// The least time between two probes because of events that fail.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// How many refused events are logged one by one.
const LOGGED_REFUSALS: usize = 8;

/// The worker and its dependencies.
#[derive(Debug)]
pub struct Worker {
    /// Delivers the events.
    pub queue: Arc<dyn Queue>,
    /// The store in which events take effect.
    pub store: Arc<dyn Store>,
    /// Probes the store.
    pub probe: Arc<dyn Inspect>,
    /// The maximum number of events that are applied at the same time.
    pub concurrency: usize,
    /// The wall clock, for the lag metric.
    pub clock: SharedClock,
    /// Records applied events.
    pub audit: Audit,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
    /// Starts the drain; tracks the deliveries.
    pub shutdown: Shutdown,
    /// Named faults.
    pub faults: Faults,
    /// The events that the store refuses.
    pub refusals: Refusals,
    /// When the store was last probed because an event failed; locked while it is.
    pub probed: tokio::sync::Mutex<Option<Instant>>,
}

/// Why the worker stopped taking deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    Shutdown,
    /// The store is unavailable, or a mandatory audit accepts no records.
    Blocked,
    QueueClosed,
}

impl Worker {
    /// Takes and applies deliveries until shutdown, then drains those under way.
    pub async fn run(self) {
        let worker = Arc::new(self);
        let (mut backoff, mut blocked) = (Backoff::default(), Backoff::default());
        loop {
            let started = Instant::now();
            let ended = match worker.queue.subscribe(worker.concurrency).await {
                Ok(mut subscription) => {
                    backoff.reset();
                    worker.take(subscription.as_mut()).await
                }
                Err(error) => {
                    tracing::warn!(%error, "could not subscribe to the queue, trying again");
                    StopReason::QueueClosed
                }
            };
            match ended {
                StopReason::Shutdown => return,
                StopReason::Blocked => {
                    blocked.reset_after(started.elapsed());
                    worker.wait_until_unblocked(&mut blocked).await;
                }
                StopReason::QueueClosed => backoff.pause(&worker.shutdown).await,
            }
            if worker.shutdown.is_requested() {
                return;
            }
        }
    }

    /// Takes deliveries until there is a reason to stop; returns after all of them are settled.
    async fn take(self: &Arc<Self>, subscription: &mut dyn Subscription) -> StopReason {
        let permits = Arc::new(Semaphore::new(self.concurrency));
        let blocked = CancellationToken::new();
        // Created once, because each subscription to the shutdown takes a lock.
        let (mut shutdown, mut blocking) = (pin!(self.shutdown.requested()), pin!(blocked.cancelled()));
        let ended = loop {
            let delivery = tokio::select! {
                biased;
                () = &mut shutdown => break StopReason::Shutdown,
                () = &mut blocking => break StopReason::Blocked,
                taken = self.next(subscription, &permits) => taken,
            };
            let Some((permit, delivery)) = delivery else { break StopReason::QueueClosed };
            let (worker, blocked) = (Arc::clone(self), blocked.clone());
            self.shutdown.spawn(async move {
                let _permit = permit;
                worker.handle(delivery, &blocked).await;
            });
        };
        // Holding all permits means that no delivery is under way. The deadline of the drain bounds this wait.
        let all = u32::try_from(self.concurrency).unwrap_or(u32::MAX);
        drop(permits.acquire_many(all).await);
        ended
    }

    async fn next(
        &self,
        subscription: &mut dyn Subscription,
        permits: &Arc<Semaphore>,
    ) -> Option<(OwnedSemaphorePermit, Delivery)> {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        Some((permit, subscription.next().await?))
    }

    async fn handle(&self, delivery: Delivery, blocked: &CancellationToken) {
        let _in_flight = in_progress(&self.metrics.consumer_in_flight);
        match delivery.payload() {
            Payload::Undecodable(undecodable) => {
                let (reason, length, sha256) = (undecodable.reason, undecodable.length, undecodable.sha256.clone());
                tracing::error!(
                    reason = reason.as_str(),
                    length,
                    sha256,
                    "moved an invalid delivery to the dead letters"
                );
                self.metrics.consumer_undecodable.increment(1);
                if let Err(error) = delivery.dead_letter(reason).await {
                    tracing::warn!(sha256, %error, "could not settle an invalid delivery, it will be redelivered");
                }
            }
            Payload::Event(event) => {
                let event = Arc::clone(event);
                let span = spans::apply(&event, delivery.redelivered());
                if let Err(error) = self.handle_event(&event, delivery, blocked).instrument(span).await {
                    let (id, tenant, keys) = (&event.id, &event.tenant, &event.keys);
                    tracing::warn!(event = %id, %tenant, ?keys, %error, "could not settle an event, it will be redelivered");
                }
            }
        }
    }

    async fn handle_event(
        &self,
        event: &Arc<Event>,
        delivery: Delivery,
        blocked: &CancellationToken,
    ) -> Result<(), queue::Error> {
        self.faults.point(Fault::PauseBeforeApply).await;
        let taken_at = self.clock.now();
        match apply(self.store.as_ref(), event).await {
            Ok(AppliedEvent { verdict, resumed }) => {
                self.refusals.succeeded(event.mark());
                self.count_verdict(event, verdict);
                self.log_applied(event, verdict, resumed, taken_at);
                self.faults.point(Fault::PauseBeforeAudit).await;
                if let Err(error) = self.record(event, verdict).await {
                    tracing::debug!(event = %event.id, tenant = %event.tenant, %error, "the audit accepts no records");
                    blocked.cancel();
                    return delivery.retry().await;
                }
                self.faults.point(Fault::PauseBeforeAck).await;
                delivery.ack().await
            }
            Err(error @ store::Error::Rejected { .. }) if self.is_poison(event).await => {
                tracing::error!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "moved an event that keeps failing to the dead letters");
                self.count(event, ConsumerOutcome::DeadLettered);
                delivery.dead_letter(DeadLetterReason::RedeliveredTooOften).await?;
                self.refusals.forget(event.mark());
                Ok(())
            }
            Err(error) => {
                self.count(event, ConsumerOutcome::Retried);
                if matches!(error, store::Error::Rejected { .. }) && self.refusals.len() <= LOGGED_REFUSALS {
                    tracing::warn!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "the store rejected an event, it will be redelivered");
                } else {
                    // The probe logs a store that is down, once for all events.
                    tracing::debug!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "the store did not take an event");
                }
                self.block_if_down(blocked).await;
                delivery.retry().await
            }
        }
    }

    /// Probes the store after a failure, unless it was probed just now, and ends the subscription if no part works.
    async fn block_if_down(&self, blocked: &CancellationToken) {
        let Ok(mut probed) = self.probed.try_lock() else { return };
        if probed.is_some_and(|at| at.elapsed() < PROBE_EVERY) {
            return;
        }
        if matches!(self.probe.ping().await, Err(store::Error::Unavailable { .. } | store::Error::Rejected { .. })) {
            blocked.cancel();
        }
        *probed = Some(Instant::now());
    }

    /// Returns whether an event that was refused is a poison message: it was refused too often while others were not,
    /// every part of the store works, and the store refuses it once more right after that.
    async fn is_poison(&self, event: &Event) -> bool {
        self.refusals.refused(event.mark())
            && self.probe.ping().await.is_ok()
            && matches!(apply(self.store.as_ref(), event).await, Err(store::Error::Rejected { .. }))
    }

    /// Writes the audit record of an event, and waits until it is written.
    async fn record(&self, event: &Arc<Event>, verdict: EventEffect) -> Result<(), audit::Unrecorded> {
        let applied = EventRecord { event: Arc::clone(event), verdict };
        self.audit.record_and_wait(audit::AuditRecord::Event(applied)).await
    }

    fn count_verdict(&self, event: &Event, verdict: EventEffect) {
        let outcome = match verdict {
            EventEffect::Applied => ConsumerOutcome::Applied,
            EventEffect::Duplicate => ConsumerOutcome::Duplicate,
            EventEffect::Outrun => ConsumerOutcome::Outrun,
        };
        self.count(event, outcome);
        // The lag of a duplicate or of a replayed event would not measure the way through the queue.
        if verdict != EventEffect::Duplicate && event.again.is_none() {
            observe(&self.metrics.invalidation_lag, self.clock.now().since(event.received_at));
        }
    }

    fn log_applied(&self, event: &Event, verdict: EventEffect, resumed: bool, taken_at: Timestamp) {
        let (kind, again, taken_at) = (event.kind.as_str(), event.again.map(Redelivery::as_str), taken_at.as_millis());
        tracing::debug!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, kind, again, ?verdict, resumed, taken_at, "event applied");
    }

    fn count(&self, event: &Event, outcome: ConsumerOutcome) {
        spans::applied(outcome);
        self.metrics.consumer_events.with(event.kind).with(outcome).increment(1);
    }

    async fn wait_until_unblocked(&self, backoff: &mut Backoff) {
        if self.can_record() {
            let reason = self.probe.ping().await.err().map(|error| error.to_string());
            tracing::warn!(reason, "the store is down; pausing the consumer until it answers");
        } else {
            tracing::warn!("the audit accepts no records; pausing the consumer until it does");
        }
        while !self.shutdown.is_requested() {
            backoff.pause(&self.shutdown).await;
            if self.can_record() && matches!(self.probe.ping().await, Ok(()) | Err(store::Error::Partial { .. })) {
                tracing::info!("store and audit work; resuming the consumer");
                return;
            }
        }
    }

    fn can_record(&self) -> bool {
        !self.audit.is_strict() || self.audit.is_working()
    }
}
