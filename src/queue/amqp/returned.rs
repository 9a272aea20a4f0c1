//! Returned deliveries: the events whose part of the store fails.
//!
//! A returned event waits here, so that other events are delivered first, and then goes back to the broker, which
//! delivers it again. But the broker counts it as delivered meanwhile: if the waiting events took the whole prefetch, a
//! part of the store that fails would stop the events of all others. So at most half of the prefetch of each queue waits.
//! An event beyond it is published to the end of its queue with the count of its returns, and acknowledged once the
//! broker has confirmed that. If the broker does not confirm, the event waits like the others.
//!
//! The journal gets no second copy, because the message goes to the queue and not through the exchange.
//!
//! A delivery that [nears a delivery limit](super::message::nears_delivery_limit) is renewed before it reaches the
//! consumer: republished to the end of its queue, and acknowledged. If the broker does not confirm, the consumer gets it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::BasicProperties;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::domain::Timestamp;
use crate::queue::Payload;
use crate::queue::delivery::redelivery_delay;

use super::context::AmqpContext;
use super::message::{Message, redelivered};

/// How long an event waits before it is published to the end of its queue. It limits how fast the events of a failing
/// part circulate: with the default prefetch, 2,560 per second.
const MOVE_AFTER: Duration = Duration::from_millis(100);

/// A delivery from the broker, on its way to the consumer.
#[derive(Debug)]
pub(super) struct ReceivedDelivery {
    /// The number of its queue.
    pub(super) queue: usize,
    pub(super) delivery: lapin::message::Delivery,
    pub(super) payload: Payload,
    /// Cancelled when the channel of the delivery ends.
    pub(super) channel: CancellationToken,
}

/// A delivery that was not applied.
#[derive(Debug)]
pub(super) struct ReturnedDelivery {
    pub(super) tag: u64,
    /// The number of its queue.
    pub(super) queue: usize,
    /// How often it was delivered before.
    pub(super) redelivered: u32,
    pub(super) received_at: Option<Timestamp>,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
}

/// What is due for a returned delivery, by its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReturnStep {
    /// The broker gets it back.
    Requeue(u64),
    /// It was published again, so it is acknowledged.
    Acknowledge(u64),
    /// The consumer has it.
    HandedOn,
}

/// The returned deliveries of one channel.
pub(super) struct ReturnedDeliveries {
    context: Arc<AmqpContext>,
    deliveries: mpsc::UnboundedSender<ReceivedDelivery>,
    /// How many of each queue may wait.
    share: usize,
    /// How many of each queue wait.
    waiting: Vec<usize>,
    steps: FuturesUnordered<BoxFuture<'static, (Option<usize>, ReturnStep)>>,
}

impl ReturnedDeliveries {
    /// Creates an empty set; `prefetch` is that of each queue, and the consumer reads `deliveries`.
    pub(super) fn new(
        context: &Arc<AmqpContext>,
        prefetch: u16,
        deliveries: mpsc::UnboundedSender<ReceivedDelivery>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            deliveries,
            share: usize::from(prefetch / 2).max(1),
            waiting: vec![0; context.topology.work_queues().len()],
            steps: FuturesUnordered::new(),
        }
    }

    /// Returns how many deliveries are here.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Adds a delivery.
    pub(super) fn add(&mut self, delivery: ReturnedDelivery) {
        let (queue, tag) = (delivery.queue, delivery.tag);
        if self.waiting[queue] < self.share {
            self.waiting[queue] += 1;
            self.steps.push(Box::pin(async move {
                sleep(redelivery_delay(delivery.redelivered)).await;
                (Some(queue), ReturnStep::Requeue(tag))
            }));
        } else {
            self.steps.push(Box::pin(move_to_the_end(Arc::clone(&self.context), delivery)));
        }
    }

    /// Renews a delivery that nears a delivery limit.
    pub(super) fn renew(&mut self, received: ReceivedDelivery) {
        self.steps.push(Box::pin(renew(Arc::clone(&self.context), received, self.deliveries.clone())));
    }

    /// Waits for the next step that is due; `None` if there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<ReturnStep> {
        let (waited, step) = self.steps.next().await?;
        if let Some(queue) = waited {
            self.waiting[queue] -= 1;
        }
        Some(step)
    }
}

async fn move_to_the_end(context: Arc<AmqpContext>, delivery: ReturnedDelivery) -> (Option<usize>, ReturnStep) {
    let ReturnedDelivery { tag, queue, redelivered, received_at, properties, body } = delivery;
    sleep(MOVE_AFTER).await;
    if publish_again(&context, (queue, received_at), properties, body, redelivered.saturating_add(1)).await {
        return (None, ReturnStep::Acknowledge(tag));
    }
    sleep(redelivery_delay(redelivered)).await;
    (None, ReturnStep::Requeue(tag))
}

async fn renew(
    context: Arc<AmqpContext>,
    received: ReceivedDelivery,
    deliveries: mpsc::UnboundedSender<ReceivedDelivery>,
) -> (Option<usize>, ReturnStep) {
    let (of, delivery) = ((received.queue, received.payload.received_at()), &received.delivery);
    let (properties, body) = (delivery.properties.clone(), delivery.data.clone());
    let count = redelivered(&properties);
    if publish_again(&context, of, properties, body, count).await {
        return (None, ReturnStep::Acknowledge(received.delivery.delivery_tag));
    }
    // If the subscription was dropped, the end of the channel returns the event.
    let _ = deliveries.send(received);
    (None, ReturnStep::HandedOn)
}

/// Publishes a message to the end of its queue; returns whether the broker has confirmed it.
async fn publish_again(
    context: &AmqpContext,
    (queue, received_at): (usize, Option<Timestamp>),
    properties: BasicProperties,
    body: Vec<u8>,
    redelivered: u32,
) -> bool {
    let Some(name) = context.topology.work_queues().get(queue) else { return false };
    // Before the original is acknowledged: its mark must not pass the copy.
    context.moved_to_the_end(name, received_at);
    let published = context.publisher.publish(vec![Message::once_more(name, properties, body, redelivered)]).await;
    if let Err(error) = &published {
        tracing::debug!(%error, "an event could not be published to the end of its queue again");
    }
    published.is_ok()
}
