//! The worker: takes deliveries, applies at most `concurrency` of them at once, settles each, drains.
//!
//! # When something fails
//!
//! Store unavailable: what is held is given back, the subscription ends, and the store is probed with
//! backoff until it answers; then a new subscription begins. Nothing spins and nothing is dead-lettered
//! for that reason. Queue unavailable: subscribing is tried again with backoff. Poison (not decodable,
//! or redelivered more than [`MAX_REDELIVERIES`] times and refused, alone, by a store that answers a
//! probe): dead-lettered with the reason.
//!
//! Effect, then its record in the audit, then the acknowledgement: a crash in between redelivers the event, the store
//! answers `Duplicate`, and the audit knows whether the record is there. Where the audit must have every record
//! (`audit.strict`) and takes none, the worker waits for it as it does for the store.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::audit::{self, Applied, Audit};
use crate::clock::SharedClock;
use crate::domain::{Event, Redelivery, Timestamp};
use crate::faults::{Fault, Faults};
use crate::metrics::{ConsumerOutcome, Metrics, in_progress, observe};
use crate::queue::{self, Delivery, Payload, Queue, Reason, Subscription};
use crate::shutdown::Shutdown;
use crate::spans;
use crate::store::{self, Inspect, Store};
use crate::supervise::Backoff;

use super::{Verdict, apply};

/// How often an event may come back before it is suspected of being poison.
pub const MAX_REDELIVERIES: u32 = 20;

/// What a worker works with.
#[derive(Debug)]
pub struct Worker {
    /// Where events come from.
    pub queue: Arc<dyn Queue>,
    /// Where they take effect.
    pub store: Arc<dyn Store>,
    /// Answers whether the store works.
    pub probe: Arc<dyn Inspect>,
    /// How many are applied at once.
    pub concurrency: usize,
    /// The wall clock, for the lag metric.
    pub clock: SharedClock,
    /// Where applied events are recorded.
    pub audit: Audit,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// Says when to drain; tracks the deliveries.
    pub shutdown: Shutdown,
    /// Named faults.
    pub faults: Faults,
}

/// Why taking deliveries ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Shutdown,
    /// The store, or an audit that must not miss anything.
    Blocked,
    QueueClosed,
}

impl Worker {
    /// Takes and applies deliveries until shutdown, then waits for those under way.
    pub async fn run(self) {
        let worker = Arc::new(self);
        let mut backoff = Backoff::default();
        loop {
            let ended = match worker.queue.subscribe(worker.concurrency).await {
                Ok(mut subscription) => {
                    backoff.reset();
                    worker.take(subscription.as_mut()).await
                }
                Err(error) => {
                    tracing::warn!(%error, "subscribing failed, trying again");
                    Ended::QueueClosed
                }
            };
            match ended {
                Ended::Shutdown => return,
                Ended::Blocked => worker.wait_until_unblocked().await,
                Ended::QueueClosed => backoff.pause(&worker.shutdown).await,
            }
            if worker.shutdown.is_requested() {
                return;
            }
        }
    }

    /// Takes deliveries until something ends it; returns when all that were taken are settled.
    async fn take(self: &Arc<Self>, subscription: &mut dyn Subscription) -> Ended {
        let permits = Arc::new(Semaphore::new(self.concurrency));
        let blocked = CancellationToken::new();
        // Once for all deliveries: to listen takes a lock.
        let (mut shutdown, mut down) = (pin!(self.shutdown.requested()), pin!(blocked.cancelled()));
        let ended = loop {
            let delivery = tokio::select! {
                biased;
                () = &mut shutdown => break Ended::Shutdown,
                () = &mut down => break Ended::Blocked,
                taken = self.next(subscription, &permits) => taken,
            };
            let Some((permit, delivery)) = delivery else { break Ended::QueueClosed };
            let (worker, blocked) = (Arc::clone(self), blocked.clone());
            self.shutdown.spawn(async move {
                let _permit = permit;
                worker.handle(delivery, &blocked).await;
            });
        };
        // All permits back: nothing is under way any more. The drain's deadline bounds this wait.
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
                    "a delivery is no event, kept as a dead letter"
                );
                self.metrics.consumer_undecodable.increment(1);
                if let Err(error) = delivery.dead_letter(reason).await {
                    tracing::warn!(sha256, %error, "a delivery could not be settled, it will come again");
                }
            }
            Payload::Event(event) => {
                let event = Arc::clone(event);
                let span = spans::apply(&event, delivery.redelivered());
                if let Err(error) = self.handle_event(&event, delivery, blocked).instrument(span).await {
                    let (id, tenant, keys) = (&event.id, &event.tenant, &event.keys);
                    tracing::warn!(event = %id, %tenant, ?keys, %error, "an event could not be settled, it will come again");
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
            Ok(verdict) => {
                self.count_verdict(event, verdict, taken_at);
                self.faults.point(Fault::PauseBeforeAudit).await;
                if let Err(error) = self.record(event, verdict).await {
                    tracing::debug!(event = %event.id, tenant = %event.tenant, %error, "the audit takes no records");
                    blocked.cancel();
                    return delivery.retry().await;
                }
                self.faults.point(Fault::PauseBeforeAck).await;
                delivery.ack().await
            }
            Err(error @ store::Error::Rejected { .. }) if self.is_poison(event, delivery.redelivered()).await => {
                tracing::error!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "an event keeps failing, kept as a dead letter");
                self.count(event, ConsumerOutcome::DeadLettered);
                delivery.dead_letter(Reason::RedeliveredTooOften).await
            }
            Err(error) => {
                self.count(event, ConsumerOutcome::Retried);
                if matches!(error, store::Error::Unavailable { .. } | store::Error::Slow { .. }) {
                    // Told once, for all events: see `wait_until_unblocked`.
                    tracing::debug!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "the store is down");
                    blocked.cancel();
                } else {
                    tracing::warn!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, %error, "an event was refused, it will come again");
                }
                delivery.retry().await
            }
        }
    }

    /// Tells whether an event that was refused again is itself at fault: it came back too often, the store
    /// answers, and refuses it once more right after. That a store cannot be reached, or a part of it (one
    /// shard of a cluster), is never an event's fault, however often.
    async fn is_poison(&self, event: &Event, redelivered: u32) -> bool {
        redelivered > MAX_REDELIVERIES
            && self.probe.ping().await.is_ok()
            && matches!(apply(self.store.as_ref(), event).await, Err(store::Error::Rejected { .. }))
    }

    /// Records what an event came to, and waits for that.
    async fn record(&self, event: &Arc<Event>, verdict: Verdict) -> Result<(), audit::Unrecorded> {
        let verdict = match verdict {
            Verdict::Applied => audit::Verdict::Applied,
            Verdict::Outrun => audit::Verdict::Outrun,
            Verdict::Duplicate => audit::Verdict::Duplicate,
        };
        let applied = Applied { event: Arc::clone(event), verdict };
        self.audit.settle(audit::Record::Event(applied)).await
    }

    fn count_verdict(&self, event: &Event, verdict: Verdict, taken_at: Timestamp) {
        let outcome = match verdict {
            Verdict::Applied => ConsumerOutcome::Applied,
            Verdict::Duplicate => ConsumerOutcome::Duplicate,
            Verdict::Outrun => ConsumerOutcome::Outrun,
        };
        self.count(event, outcome);
        // How long ago an event was announced that is handed out once more says nothing of the way.
        if verdict != Verdict::Duplicate && event.again.is_none() {
            observe(&self.metrics.invalidation_lag, self.clock.now().since(event.received_at));
        }
        let (kind, again, taken_at) = (event.kind.as_str(), event.again.map(Redelivery::as_str), taken_at.as_millis());
        tracing::debug!(event = %event.id, tenant = %event.tenant, keys = ?event.keys, kind, again, ?verdict, taken_at, "event applied");
    }

    fn count(&self, event: &Event, outcome: ConsumerOutcome) {
        spans::applied(outcome);
        self.metrics.consumer_events.with(event.kind).with(outcome).increment(1);
    }

    async fn wait_until_unblocked(&self) {
        if self.may_record() {
            tracing::warn!("the store is down, no events are taken until it answers");
        } else {
            tracing::warn!("the audit takes no records, no events are taken until it does");
        }
        let mut backoff = Backoff::default();
        while !self.shutdown.is_requested() {
            backoff.pause(&self.shutdown).await;
            if self.may_record() && self.probe.ping().await.is_ok() {
                tracing::info!("store and audit work, events are taken again");
                return;
            }
        }
    }

    fn may_record(&self) -> bool {
        !self.audit.is_strict() || self.audit.works()
    }
}
