//! ConsumerTask: the task behind a subscription, which owns its channel.
//!
//! See [`super::subscription`] for the protocol. Everything that is said to the broker on the channel is
//! said here, in one place and in order: what is out, what was settled, what rests before it goes back.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backoff::backoff::Backoff;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered, ReadyChunks, SelectAll, once};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::Redelivery;
use crate::queue::{Error, Payload, wire};

use super::Shared;
use super::connection::{Live, pauses};
use super::ledger::Ledger;
use super::publisher;
use super::replay;
use super::topology;

/// The first rest of an event that came back; doubled with each return.
const REST: Duration = Duration::from_millis(100);

/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How many deliveries are taken, and how many settlements are told to the broker, at once.
const BATCH: usize = 1024;

/// The longest that a channel may take to be closed in good order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A delivery from the broker, on its way to the consumer.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) delivery: lapin::message::Delivery,
    pub(super) payload: Payload,
    /// Cancelled when the channel that it came on is no more.
    pub(super) channel: CancellationToken,
}

/// What became of a delivery of the present channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settlement {
    /// It is done with.
    Ack(u64),
    /// Comes back after a rest; it has been back so often.
    Return(u64, u32),
}

/// Owns the channel.
pub(super) struct ConsumerTask {
    pub(super) shared: Arc<Shared>,
    pub(super) hand_over: mpsc::UnboundedSender<Arrival>,
    pub(super) settled: mpsc::UnboundedReceiver<(CancellationToken, Settlement)>,
    pub(super) over: CancellationToken,
}

/// What a consumer said: of which queue, and the delivery; `None` once it has ended.
type Said = (usize, Option<lapin::Result<lapin::message::Delivery>>);

/// Why a channel came to its end.
enum End {
    /// The subscription ended.
    Asked,
    /// By the broker, because a queue is gone.
    Cancelled,
    Failed,
}

impl ConsumerTask {
    /// Serves one channel after the other until the subscription is over.
    pub(super) async fn run(mut self) {
        let mut pauses = pauses();
        let shared = Arc::clone(&self.shared);
        let link = shared.consuming();
        loop {
            let up = tokio::select! {
                biased;
                () = self.over.cancelled() => return,
                up = link.up_at_last() => up,
            };
            let Ok(up) = up else { return };
            let began = Instant::now();
            let alive = CancellationToken::new();
            let ends_with_this = alive.clone().drop_guard();
            let mut ledger = Ledger::new(self.shared.topology.work_queues().len());
            let end = self.serve(&up.live, &alive, &mut ledger).await;
            drop(ends_with_this);
            self.shared.out.store(0, Ordering::Relaxed);
            self.shared.keep_marks(&ledger.marks());
            let reason = match end {
                Ok(End::Asked) => return,
                Ok(End::Cancelled) => {
                    up.live.give_up();
                    "the broker cancelled a consumer: its queue is gone".to_owned()
                }
                Ok(End::Failed) => "the connection or the channel ended".to_owned(),
                Err(error) => error.to_string(),
            };
            if !self.over.is_cancelled() {
                tracing::warn!(reason, "consuming begins anew");
            }
            if began.elapsed() > LONGEST_REST {
                pauses.reset();
            }
            let pause = pauses.next_backoff().unwrap_or(pauses.max_interval);
            // Either way it is time to go on.
            let _ = timeout(pause, self.over.cancelled()).await;
        }
    }

    /// Serves one channel to its end.
    async fn serve(&mut self, live: &Live, alive: &CancellationToken, ledger: &mut Ledger) -> Result<End, Error> {
        let (channel, mut said) = self.consume(live).await?;
        let mut resting = FuturesUnordered::new();
        let mut settlements = Vec::new();
        // Once for all turns: to listen takes a lock.
        let over = self.over.clone();
        let (mut over, mut ended) = (pin!(over.cancelled()), pin!(live.ended()));
        loop {
            self.shared.out.store(ledger.len(), Ordering::Relaxed);
            tokio::select! {
                biased;
                () = &mut over => {
                    self.last_settlements(&channel, ledger, &mut settlements).await;
                    return Ok(End::Asked);
                }
                () = &mut ended => return Ok(End::Failed),
                _ = self.settled.recv_many(&mut settlements, BATCH) => {
                    let told = tell(&channel, ledger, &mut settlements, |tag, back| resting.push(rest(tag, back)));
                    unless_ended(live, told).await?;
                }
                Some(tag) = resting.next(), if !resting.is_empty() => {
                    if ledger.returned(tag) {
                        let again = BasicNackOptions { requeue: true, multiple: false };
                        unless_ended(live, channel.basic_nack(tag, again)).await?;
                    }
                }
                said = said.next() => {
                    let Some(said) = said else { return Ok(End::Failed) };
                    for said in said {
                        match said {
                            (queue, Some(Ok(delivery))) => self.arrived(queue, delivery, alive, ledger),
                            (_, Some(Err(error))) => return Err(topology::unavailable(&error)),
                            (queue, None) if channel.status().connected() => {
                                self.shared.was_cancelled(queue);
                                return Ok(End::Cancelled);
                            }
                            (_, None) => return Ok(End::Failed),
                        }
                    }
                }
            }
        }
    }

    async fn consume(&self, live: &Live) -> Result<(Channel, ReadyChunks<SelectAll<BoxStream<'static, Said>>>), Error> {
        let channel = topology::open(live.connection()).await?;
        let queues = self.shared.topology.work_queues();
        let shards = u16::try_from(queues.len()).unwrap_or(u16::MAX);
        let prefetch = (self.shared.prefetch / shards).max(1);
        let failed = |error: lapin::Error| topology::unavailable(&error);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
        let mut said = SelectAll::new();
        for (shard, queue) in queues.iter().enumerate() {
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await;
            let deliveries = consumer.map_err(failed)?.map(move |delivery| (shard, Some(delivery)));
            said.push(deliveries.chain(once(async move { (shard, None) })).boxed());
        }
        Ok((channel, said.ready_chunks(BATCH)))
    }

    fn arrived(
        &self,
        queue: usize,
        delivery: lapin::message::Delivery,
        alive: &CancellationToken,
        ledger: &mut Ledger,
    ) {
        let payload = match wire::decode(&delivery.data) {
            Ok(mut event) => {
                // Who passes messages on may have made itself a part of the trace, in the header only.
                event.traceparent = publisher::traceparent(&delivery.properties).or(event.traceparent);
                event.again = event.again.or(replay::is_restored(&delivery.properties).then_some(Redelivery::Restored));
                Payload::Event(Arc::new(event))
            }
            Err(undecodable) => Payload::Undecodable(undecodable),
        };
        let received_at = match &payload {
            Payload::Event(event) => Some(event.received_at),
            Payload::Undecodable(_) => None,
        };
        ledger.arrived(delivery.delivery_tag, queue, received_at);
        // Nobody is there to take it once the subscription is dropped; the channel's end returns it.
        let _ = self.hand_over.send(Arrival { delivery, payload, channel: alive.clone() });
    }

    /// Tells the broker what was settled before the end was asked for, then closes the channel, which
    /// returns the rest.
    async fn last_settlements(
        &mut self,
        channel: &Channel,
        ledger: &mut Ledger,
        settlements: &mut Vec<(CancellationToken, Settlement)>,
    ) {
        self.settled.close();
        let closing = async {
            while self.settled.recv_many(settlements, BATCH).await > 0 {
                tell(channel, ledger, settlements, |_, _| ()).await?;
            }
            channel.close(200, "the subscription ended".into()).await
        };
        // What the broker did not hear it delivers again.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// Tells the broker what was acknowledged, and gives what comes back to `rest`.
async fn tell(
    channel: &Channel,
    ledger: &mut Ledger,
    settlements: &mut Vec<(CancellationToken, Settlement)>,
    rest: impl Fn(u64, u32),
) -> lapin::Result<()> {
    let mut tags = Vec::with_capacity(settlements.len());
    for (of, settlement) in settlements.drain(..) {
        match settlement {
            _ if of.is_cancelled() => {}
            Settlement::Ack(tag) => tags.push(tag),
            Settlement::Return(tag, back) => rest(tag, back),
        }
    }
    for ack in ledger.acknowledged(tags) {
        channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
    }
    Ok(())
}

/// Waits for something to be sent, unless the connection ends first: a broker that does not read would
/// hold it back for good.
async fn unless_ended(live: &Live, sending: impl Future<Output = lapin::Result<()>>) -> Result<(), Error> {
    tokio::select! {
        sent = sending => sent.map_err(|error| topology::unavailable(&error)),
        () = live.ended() => Err(Error::Unavailable { reason: "the connection ended".to_owned() }),
    }
}

async fn rest(tag: u64, returns: u32) -> u64 {
    sleep(REST.saturating_mul(2_u32.saturating_pow(returns)).min(LONGEST_REST)).await;
    tag
}
