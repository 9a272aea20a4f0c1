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
use lapin::options::BasicCancelOptions;
use lapin::types::{FieldTable, ShortString};
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
use super::message::{is_replayed, nears_delivery_limit, traceparent};
use super::returned::{ReceivedDelivery, ReturnedDeliveries};
use super::settlements::{DeliverySettlement, send_settlements, settle_returned, unless_ended};

/// How many deliveries are read, and how many settlements are sent, at once.
const BATCH: usize = 1024;

/// The longest time for a clean close of a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the deliveries of a connection that was replaced may take.
const HANDOVER: Duration = Duration::from_secs(1);

/// Owns the channel.
pub(super) struct ConsumerTask {
    pub(super) context: Arc<AmqpContext>,
    pub(super) deliveries: mpsc::UnboundedSender<ReceivedDelivery>,
    pub(super) settled: mpsc::UnboundedReceiver<(CancellationToken, DeliverySettlement)>,
    pub(super) end: CancellationToken,
}

/// The output of a consumer: the index of its queue and a delivery; `None` when the consumer has ended.
type ConsumerOutput = (usize, Option<lapin::Result<lapin::message::Delivery>>);

/// A channel, and the consumers on it.
struct Consumers {
    channel: Channel,
    tags: Vec<ShortString>,
    outputs: ReadyChunks<SelectAll<BoxStream<'static, ConsumerOutput>>>,
}

/// Why a channel ended.
enum ChannelEnd {
    /// The subscription ended.
    Requested,
    /// Another connection has taken the place of this one.
    Replaced,
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
                Ok(ChannelEnd::Replaced) => continue,
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
        let mut consumers = self.consume(open).await?;
        let channel = consumers.channel.clone();
        let mut returned = ReturnedDeliveries::new(&self.context, self.prefetch(), self.deliveries.clone());
        let mut settlements = Vec::new();
        // Created once, since each registration takes a lock.
        let end = self.end.clone();
        let (mut end, mut ended, mut replaced) = (pin!(end.cancelled()), pin!(open.ended()), pin!(open.replaced()));
        loop {
            self.context.unsettled.store(ledger.len(), Ordering::Relaxed);
            tokio::select! {
                biased;
                () = &mut end => {
                    self.send_last_settlements(&channel, ledger, &mut settlements).await;
                    return Ok(ChannelEnd::Requested);
                }
                () = &mut ended => return Ok(ChannelEnd::Failed),
                () = &mut replaced => {
                    self.hand_over(consumers, alive, ledger, returned).await;
                    return Ok(ChannelEnd::Replaced);
                }
                _ = self.settled.recv_many(&mut settlements, BATCH) => {
                    let sent = send_settlements(&channel, ledger, &mut settlements, |delivery| returned.add(delivery));
                    unless_ended(open, sent).await?;
                }
                Some(step) = returned.next(), if returned.len() > 0 => {
                    unless_ended(open, settle_returned(&channel, ledger, step)).await?;
                }
                outputs = consumers.outputs.next() => {
                    let Some(outputs) = outputs else { return Ok(ChannelEnd::Failed) };
                    for output in outputs {
                        match output {
                            (queue, Some(Ok(delivery))) => self.pass_on(queue, delivery, alive, ledger, &mut returned),
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

    async fn consume(&self, open: &OpenConnection) -> Result<Consumers, Error> {
        let channel = channel::open(open.connection()).await?;
        let queues = self.context.topology.work_queues();
        channel::prefetch(&channel, self.prefetch()).await?;
        let (mut consumers, mut tags) = (SelectAll::new(), Vec::new());
        for (shard, queue) in queues.iter().enumerate() {
            let consumer = channel::consume(&channel, queue, FieldTable::default()).await?;
            tags.push(consumer.tag());
            let deliveries = consumer.map(move |delivery| (shard, Some(delivery)));
            consumers.push(deliveries.chain(once(async move { (shard, None) })).boxed());
        }
        Ok(Consumers { channel, tags, outputs: consumers.ready_chunks(BATCH) })
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
        returned: &mut ReturnedDeliveries,
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
        ledger.arrived(delivery.delivery_tag, queue, payload.received_at());
        let is_renewed = nears_delivery_limit(&delivery.properties);
        let received = ReceivedDelivery { queue, delivery, payload, channel: alive.clone() };
        if is_renewed {
            returned.renew(received);
        } else {
            // If the subscription was dropped, the end of the channel returns the event.
            let _ = self.deliveries.send(received);
        }
    }

    /// Ends the consumers of a connection that was replaced, settles what it has delivered, and closes its channel, which
    /// returns what is left: events that fail, and those of a consumer that is behind.
    async fn hand_over(
        &mut self,
        consumers: Consumers,
        alive: &CancellationToken,
        ledger: &mut Ledger,
        mut returned: ReturnedDeliveries,
    ) {
        let Consumers { channel, tags, mut outputs } = consumers;
        let settling = async {
            for tag in tags {
                channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            }
            let (mut settlements, mut has_outputs) = (Vec::new(), true);
            while has_outputs || ledger.len() > returned.len() {
                tokio::select! {
                    received = self.settled.recv_many(&mut settlements, BATCH) => {
                        if received == 0 {
                            break;
                        }
                        send_settlements(&channel, ledger, &mut settlements, |delivery| returned.add(delivery)).await?;
                    }
                    some = outputs.next(), if has_outputs => {
                        has_outputs = some.is_some();
                        for output in some.into_iter().flatten() {
                            if let (queue, Some(Ok(delivery))) = output {
                                self.pass_on(queue, delivery, alive, ledger, &mut returned);
                            }
                        }
                    }
                }
            }
            Ok::<(), lapin::Error>(())
        };
        // The broker redelivers what it did not receive.
        let _ = timeout(HANDOVER, settling).await;
        let _ = timeout(CLOSE_TIMEOUT, channel.close(200, "the connection is replaced".into())).await;
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
