//! The consumer task of a subscription. It owns the channel, and is the only sender of frames on the channel.
//!
//! See [`super::subscription`] for the protocol.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, ReadyChunks, SelectAll, once};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::Redelivery;
use crate::queue::{Error, Payload};
use crate::supervise::Backoff;

use super::channel;
use super::connection::OpenConnection;
use super::context::AmqpContext;
use super::ledger::Ledger;
use super::message::{is_replayed, traceparent};
use super::returned::{ReturnStep, ReturnedDeliveries, ReturnedDelivery};

/// How many deliveries are read, and how many settlements are sent, at once.
const BATCH: usize = 1024;

/// The longest time for a clean close of a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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

/// The settlement of a delivery, by its tag.
#[derive(Debug)]
pub(super) enum DeliverySettlement {
    /// Remove the event from the queue.
    Ack(u64),
    /// Deliver the event again later.
    Return(Box<ReturnedDelivery>),
}

/// Owns the channel.
pub(super) struct ConsumerTask {
    pub(super) context: Arc<AmqpContext>,
    pub(super) deliveries: mpsc::UnboundedSender<ReceivedDelivery>,
    pub(super) settled: mpsc::UnboundedReceiver<(CancellationToken, DeliverySettlement)>,
    pub(super) end: CancellationToken,
}

/// The output of a consumer: the index of its queue and a delivery; `None` when the consumer has ended.
type ConsumerOutput = (usize, Option<lapin::Result<lapin::message::Delivery>>);

/// Why a channel ended.
enum ChannelEnd {
    /// The subscription ended.
    Requested,
    /// The broker cancelled a consumer because its queue is gone.
    Cancelled,
    Failed,
}

impl ConsumerTask {
    /// Serves one channel after the other until the subscription ends.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let context = Arc::clone(&self.context);
        loop {
            let ready = tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                ready = context.consuming().get_eventually() => ready,
            };
            let Ok(ready) = ready else { return };
            let started = Instant::now();
            let alive = CancellationToken::new();
            let ends_with_this = alive.clone().drop_guard();
            let mut ledger = Ledger::new(context.topology.work_queues().len());
            let end = self.serve(&ready.open, &alive, &mut ledger).await;
            drop(ends_with_this);
            context.unsettled.store(0, Ordering::Relaxed);
            context.keep_marks(&ledger.marks());
            let reason = match end {
                Ok(ChannelEnd::Requested) => return,
                Ok(ChannelEnd::Cancelled) => {
                    ready.open.give_up();
                    "the broker cancelled a consumer: its queue is gone".to_owned()
                }
                Ok(ChannelEnd::Failed) => "the connection or the channel ended".to_owned(),
                Err(error) => error.to_string(),
            };
            if !self.end.is_cancelled() {
                tracing::warn!(reason, "restarting the consumer");
            }
            backoff.reset_after(started.elapsed());
            backoff.pause_until(self.end.cancelled()).await;
        }
    }

    /// Serves one channel to its end.
    async fn serve(
        &mut self,
        open: &OpenConnection,
        alive: &CancellationToken,
        ledger: &mut Ledger,
    ) -> Result<ChannelEnd, Error> {
        let (channel, mut consumers) = self.consume(open).await?;
        let mut returned = ReturnedDeliveries::new(&self.context, self.prefetch());
        let mut settlements = Vec::new();
        // Created once, since each registration takes a lock.
        let end = self.end.clone();
        let (mut end, mut ended) = (pin!(end.cancelled()), pin!(open.ended()));
        loop {
            self.context.unsettled.store(ledger.len(), Ordering::Relaxed);
            tokio::select! {
                biased;
                () = &mut end => {
                    self.send_last_settlements(&channel, ledger, &mut settlements).await;
                    return Ok(ChannelEnd::Requested);
                }
                () = &mut ended => return Ok(ChannelEnd::Failed),
                _ = self.settled.recv_many(&mut settlements, BATCH) => {
                    let sent = send_settlements(&channel, ledger, &mut settlements, |delivery| returned.add(delivery));
                    unless_ended(open, sent).await?;
                }
                Some(step) = returned.next(), if !returned.is_empty() => {
                    unless_ended(open, settle_returned(&channel, ledger, step)).await?;
                }
                outputs = consumers.next() => {
                    let Some(outputs) = outputs else { return Ok(ChannelEnd::Failed) };
                    for output in outputs {
                        match output {
                            (queue, Some(Ok(delivery))) => self.pass_on(queue, delivery, alive, ledger),
                            (_, Some(Err(error))) => return Err(channel::unavailable(&error)),
                            (queue, None) if channel.status().connected() => {
                                self.context.consumer_cancelled(queue);
                                return Ok(ChannelEnd::Cancelled);
                            }
                            (_, None) => return Ok(ChannelEnd::Failed),
                        }
                    }
                }
            }
        }
    }

    async fn consume(
        &self,
        open: &OpenConnection,
    ) -> Result<(Channel, ReadyChunks<SelectAll<BoxStream<'static, ConsumerOutput>>>), Error> {
        let channel = channel::open(open.connection()).await?;
        let queues = self.context.topology.work_queues();
        channel::prefetch(&channel, self.prefetch()).await?;
        let mut consumers = SelectAll::new();
        for (shard, queue) in queues.iter().enumerate() {
            let consumer = channel::consume(&channel, queue, FieldTable::default()).await?;
            let deliveries = consumer.map(move |delivery| (shard, Some(delivery)));
            consumers.push(deliveries.chain(once(async move { (shard, None) })).boxed());
        }
        Ok((channel, consumers.ready_chunks(BATCH)))
    }

    /// Returns the prefetch of each queue.
    fn prefetch(&self) -> u16 {
        let shards = u16::try_from(self.context.topology.work_queues().len()).unwrap_or(u16::MAX);
        (self.context.prefetch / shards).max(1)
    }

    fn pass_on(
        &self,
        queue: usize,
        delivery: lapin::message::Delivery,
        alive: &CancellationToken,
        ledger: &mut Ledger,
    ) {
        let payload = match self.context.topology.keys.decode(&delivery.data) {
            Ok(mut event) => {
                // A program that forwards messages may add itself to the trace, in the header only.
                event.traceparent = traceparent(&delivery.properties).or(event.traceparent);
                event.again = event.again.or(is_replayed(&delivery.properties).then_some(Redelivery::Restored));
                Payload::Event(Arc::new(event))
            }
            Err(undecodable) => Payload::Undecodable(undecodable),
        };
        let received_at = match &payload {
            Payload::Event(event) => Some(event.received_at),
            Payload::Undecodable(_) => None,
        };
        ledger.arrived(delivery.delivery_tag, queue, received_at);
        // If the subscription was dropped, the end of the channel returns the event.
        let _ = self.deliveries.send(ReceivedDelivery { queue, delivery, payload, channel: alive.clone() });
    }

    /// Sends the settlements made before the end, then closes the channel, which returns all other events.
    async fn send_last_settlements(
        &mut self,
        channel: &Channel,
        ledger: &mut Ledger,
        settlements: &mut Vec<(CancellationToken, DeliverySettlement)>,
    ) {
        self.settled.close();
        let closing = async {
            while self.settled.recv_many(settlements, BATCH).await > 0 {
                send_settlements(channel, ledger, settlements, |_| ()).await?;
            }
            channel.close(200, "the subscription ended".into()).await
        };
        // The broker redelivers what it did not receive.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// Sends acknowledgements to the broker, and passes returned deliveries to `on_return`.
async fn send_settlements(
    channel: &Channel,
    ledger: &mut Ledger,
    settlements: &mut Vec<(CancellationToken, DeliverySettlement)>,
    mut on_return: impl FnMut(ReturnedDelivery),
) -> lapin::Result<()> {
    let mut tags = Vec::with_capacity(settlements.len());
    for (of, settlement) in settlements.drain(..) {
        match settlement {
            _ if of.is_cancelled() => {}
            DeliverySettlement::Ack(tag) => tags.push(tag),
            DeliverySettlement::Return(delivery) => on_return(*delivery),
        }
    }
    for ack in ledger.acknowledged(tags) {
        channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
    }
    Ok(())
}

/// Waits until a frame is sent or the connection ends. A broker that does not read would block the send forever.
async fn unless_ended(open: &OpenConnection, sending: impl Future<Output = lapin::Result<()>>) -> Result<(), Error> {
    tokio::select! {
        sent = sending => sent.map_err(|error| channel::unavailable(&error)),
        () = open.ended() => Err(Error::Unavailable { reason: "the connection ended".to_owned() }),
    }
}

/// Settles a returned delivery with the broker.
async fn settle_returned(channel: &Channel, ledger: &mut Ledger, step: ReturnStep) -> lapin::Result<()> {
    match step {
        ReturnStep::Requeue(tag) if ledger.returned(tag) => {
            channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await
        }
        ReturnStep::Requeue(_) => Ok(()),
        ReturnStep::Acknowledge(tag) => {
            for ack in ledger.acknowledged(vec![tag]) {
                channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
            }
            Ok(())
        }
    }
}
