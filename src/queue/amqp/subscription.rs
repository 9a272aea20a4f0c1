//! The subscription: deliveries from the work queues, and settlements back.
//!
//! # Protocol
//!
//! One task, the [consumer task](super::consumer_task), owns a channel on the consuming connection, with a consumer per
//! work queue. It passes deliveries on in memory, where the broker's prefetch limits their number, and takes settlements
//! back, many at a time. When the channel or the connection fails, the task continues on a new one: the broker redelivers
//! every unsettled event, and the late settlements of the old channel are refused.
//!
//! A returned event is delayed here before it goes back to the broker, so that other events are delivered first: 100 ms,
//! doubled with every return up to 5 s. A delayed event does not count against the prefetch of the subscription. Where too
//! many are delayed, the others go to the end of their queue (see [`super::returned`]).
//!
//! When another connection takes the place of the consuming one, the task ends its consumers, waits a moment for the
//! settlements of what was delivered, and continues on the new connection.
//!
//! # Failures
//!
//! - The subscription is dropped or the queue closes: the task sends the settlements that it has got, then closes the
//!   channel; all other events go back to the work queues.
//! - The broker cancels a consumer: its queue is gone. The task keeps the marks of what was settled for the restore (see
//!   [`super::restore`]), and the connection is opened again, which declares the queue.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::BasicProperties;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::queue::{DeadLetterReason, Delivery, Error, Payload, Settle};

use super::consumer_task::ConsumerTask;
use super::context::AmqpContext;
use super::dead_letter_message;
use super::message::redelivered;
use super::returned::{ReceivedDelivery, ReturnedDelivery};
use super::settlements::DeliverySettlement;

/// The subscription of the AMQP queue.
#[derive(Debug)]
pub(super) struct AmqpSubscription {
    received: mpsc::UnboundedReceiver<ReceivedDelivery>,
    settlements: mpsc::UnboundedSender<(CancellationToken, DeliverySettlement)>,
    permits: Arc<Semaphore>,
    context: Arc<AmqpContext>,
    end: CancellationToken,
}

impl AmqpSubscription {
    /// Starts a subscription that lasts until `end`, with at most `prefetch` unsettled deliveries.
    pub(super) fn start(
        context: &Arc<AmqpContext>,
        prefetch: usize,
        end: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        // The broker's prefetch limits both.
        let (deliveries, received) = mpsc::unbounded_channel();
        let (settlements, settled) = mpsc::unbounded_channel();
        let task = ConsumerTask { context: Arc::clone(context), deliveries, settled, end: end.clone() };
        let task = context.tasks.spawn(task.run());
        let permits = Arc::new(Semaphore::new(prefetch.clamp(1, Semaphore::MAX_PERMITS)));
        (Self { received, settlements, permits, context: Arc::clone(context), end: end.clone() }, task)
    }
}

impl Drop for AmqpSubscription {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[async_trait]
impl crate::queue::Subscription for AmqpSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        let permit = tokio::select! {
            permit = Arc::clone(&self.permits).acquire_owned() => permit.ok()?,
            () = self.end.cancelled() => return None,
        };
        loop {
            let ReceivedDelivery { queue, delivery, payload, channel } = self.received.recv().await?;
            if channel.is_cancelled() {
                continue;
            }
            let redelivered = redelivered(&delivery.properties);
            let unsettled = AmqpDelivery {
                tag: delivery.delivery_tag,
                queue,
                redelivered,
                properties: delivery.properties,
                body: delivery.data,
                payload: payload.clone(),
                channel,
                settlements: self.settlements.clone(),
                context: Arc::clone(&self.context),
                settled: false,
                _permit: permit,
            };
            return Some(Delivery::new(payload, redelivered, Box::new(unsettled)));
        }
    }
}

/// The settlement of one event. Dropped unsettled, it returns the event, which is delayed and redelivered.
#[derive(Debug)]
struct AmqpDelivery {
    tag: u64,
    queue: usize,
    redelivered: u32,
    properties: BasicProperties,
    body: Vec<u8>,
    payload: Payload,
    /// Cancelled when the channel of the delivery ends.
    channel: CancellationToken,
    settlements: mpsc::UnboundedSender<(CancellationToken, DeliverySettlement)>,
    context: Arc<AmqpContext>,
    settled: bool,
    _permit: OwnedSemaphorePermit,
}

impl AmqpDelivery {
    fn acknowledge(&mut self) -> Result<(), Error> {
        if self.context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        let ended = || Error::Unavailable { reason: "the channel of the delivery has ended".to_owned() };
        if self.channel.is_cancelled() {
            return Err(ended());
        }
        self.settled = true;
        self.settlements.send((self.channel.clone(), DeliverySettlement::Ack(self.tag))).map_err(|_| ended())
    }
}

impl Drop for AmqpDelivery {
    fn drop(&mut self) {
        if !self.settled {
            let returned = DeliverySettlement::Return(Box::new(ReturnedDelivery {
                tag: self.tag,
                queue: self.queue,
                redelivered: self.redelivered,
                received_at: self.payload.received_at(),
                properties: std::mem::take(&mut self.properties),
                body: std::mem::take(&mut self.body),
            }));
            // Without the task the channel is closed, which returns the event too.
            let _ = self.settlements.send((self.channel.clone(), returned));
        }
    }
}

#[async_trait]
impl Settle for AmqpDelivery {
    async fn ack(mut self: Box<Self>) -> Result<(), Error> {
        self.acknowledge()
    }

    async fn retry(self: Box<Self>) -> Result<(), Error> {
        drop(self);
        Ok(())
    }

    async fn dead_letter(mut self: Box<Self>, reason: DeadLetterReason) -> Result<(), Error> {
        let queue = &self.context.topology.dead_letters;
        let now = self.context.clock.now();
        let letter = dead_letter_message::message(queue, &self.payload, &self.body, reason, self.redelivered, now);
        self.context.publisher.publish(vec![letter]).await?;
        self.acknowledge()
    }
}
