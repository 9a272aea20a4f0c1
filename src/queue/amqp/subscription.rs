//! Subscription: deliveries from the work queues, and settlements back.
//!
//! # Protocol
//!
//! One task, the [`pump`](super::pump), owns a channel on the consuming connection and a consumer per work queue. It
//! hands arrivals over in memory (the broker's prefetch bounds them) and takes settlements back, many at a time. When
//! the channel or the connection fails it begins anew on the next: whatever was out is delivered again by the broker,
//! and what its holders say about it then is refused.
//!
//! An event that comes back rests here before it is returned, for 100 ms, doubling with every return to 5 s,
//! so that others go first. While it rests it is not counted as out.
//!
//! # What each end leaves behind
//!
//! - The subscription is dropped or the queue closes: settlements that were given are sent, then the channel
//!   is closed in good order; the rest goes back to the work queues.
//! - The broker cancels a consumer: its queue is gone. The marks of what was settled are left for the
//!   replay (see [`super::replay`]), and the connection is made again, which makes the queue again.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::queue::{Delivery, Error, Payload, Reason, Settle};

use super::Shared;
use super::consumer_task::{Arrival, ConsumerTask, Settlement};
use super::dead_letters;
use super::headers::header;

/// Hands deliveries out.
#[derive(Debug)]
pub(super) struct Subscription {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    settlements: mpsc::UnboundedSender<(CancellationToken, Settlement)>,
    permits: Arc<Semaphore>,
    shared: Arc<Shared>,
    over: CancellationToken,
}

impl Subscription {
    /// Starts taking deliveries until `over`, at most `prefetch` handed out at once.
    pub(super) fn start(shared: &Arc<Shared>, prefetch: usize, over: &CancellationToken) -> (Self, JoinHandle<()>) {
        // The broker's prefetch bounds both.
        let (hand_over, arrivals) = mpsc::unbounded_channel();
        let (settlements, settled) = mpsc::unbounded_channel();
        let pump = ConsumerTask { shared: Arc::clone(shared), hand_over, settled, over: over.clone() };
        let pump = shared.tasks.spawn(pump.run());
        let permits = Arc::new(Semaphore::new(prefetch.clamp(1, Semaphore::MAX_PERMITS)));
        (Self { arrivals, settlements, permits, shared: Arc::clone(shared), over: over.clone() }, pump)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

#[async_trait]
impl crate::queue::Subscription for Subscription {
    async fn next(&mut self) -> Option<Delivery> {
        let permit = tokio::select! {
            permit = Arc::clone(&self.permits).acquire_owned() => permit.ok()?,
            () = self.over.cancelled() => return None,
        };
        loop {
            let Arrival { delivery, payload, channel } = self.arrivals.recv().await?;
            if channel.is_cancelled() {
                continue;
            }
            let redelivered = delivery_count(&delivery.properties);
            let out = Out {
                tag: delivery.delivery_tag,
                redelivered,
                body: delivery.data,
                payload: payload.clone(),
                channel,
                settlements: self.settlements.clone(),
                shared: Arc::clone(&self.shared),
                settled: false,
                _permit: permit,
            };
            return Some(Delivery::new(payload, redelivered, Box::new(out)));
        }
    }
}

/// One delivery that is out. Dropped unsettled, it goes to rest and comes again.
#[derive(Debug)]
struct Out {
    tag: u64,
    redelivered: u32,
    body: Vec<u8>,
    payload: Payload,
    /// Cancelled when the channel that it came on is no more.
    channel: CancellationToken,
    settlements: mpsc::UnboundedSender<(CancellationToken, Settlement)>,
    shared: Arc<Shared>,
    settled: bool,
    _permit: OwnedSemaphorePermit,
}

impl Out {
    fn acknowledge(&mut self) -> Result<(), Error> {
        if self.shared.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        let gone = || Error::Unavailable { reason: "the channel that it came on is no more".to_owned() };
        if self.channel.is_cancelled() {
            return Err(gone());
        }
        self.settled = true;
        self.settlements.send((self.channel.clone(), Settlement::Ack(self.tag))).map_err(|_| gone())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if !self.settled {
            let back = Settlement::Return(self.tag, self.redelivered);
            // Without a pump the channel is closed, which returns it as well.
            let _ = self.settlements.send((self.channel.clone(), back));
        }
    }
}

#[async_trait]
impl Settle for Out {
    async fn ack(mut self: Box<Self>) -> Result<(), Error> {
        self.acknowledge()
    }

    async fn retry(self: Box<Self>) -> Result<(), Error> {
        drop(self);
        Ok(())
    }

    async fn dead_letter(mut self: Box<Self>, reason: Reason) -> Result<(), Error> {
        let queue = &self.shared.topology.dead_letters;
        let now = self.shared.clock.now();
        let letter = dead_letters::message(queue, &self.payload, &self.body, reason, self.redelivered, now);
        self.shared.publisher.publish(vec![letter]).await?;
        self.acknowledge()
    }
}

/// Returns how often a delivery has come back, as the broker counts it.
fn delivery_count(properties: &BasicProperties) -> u32 {
    let count = match header(properties, "x-delivery-count") {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
        // Absent, or no number: it has not been out.
        None | Some(_) => 0,
    };
    u32::try_from(count).unwrap_or(if count > 0 { u32::MAX } else { 0 })
}
