//! The relay: hands the events of the log on to the broker, oldest first.
//!
//! # Protocol
//!
//! 1. Take the oldest events of the log, up to [`WINDOW`], each into the queue of its lane.
//! 2. Publish the oldest of each lane. An event is removed from the log after the broker has confirmed it.
//! 3. If the broker does not confirm, keep them in front of their lane, pause as [`Backoff`] says, and try with one event,
//!    so that few are published twice. The number grows again with each success.
//!
//! A lane whose shard fails delays the others only when its events fill the window. The relay hands `rate` events a second
//! more on than arrive in the log, so the log always becomes shorter while the broker answers, and the broker is not
//! flooded when it returns.
//!
//! # Failures
//!
//! A kill between the confirm and the removal, and a confirm that was lost, publish an event twice: applying it twice has
//! one effect. Bytes that are not an event become dead letters of the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use crate::domain::{Event, Timestamp};
use crate::queue::{Delivery, Error, Payload, Subscription};
use crate::supervise::Backoff;

use super::lanes::{FEW, Handover};
use super::shared::Shared;

/// How many events the relay holds at most.
pub(super) const WINDOW: usize = 2_048;

/// How many events one publish has at most; and no more than the rate allows in a tenth of a second, so that the pause
/// after it is short.
const CHUNK: usize = 256;

/// How much more events a publish has after each success.
const GROWTH: usize = 4;

/// The delays between attempts while the broker does not confirm.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// The state of the relay.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    subscription: Box<dyn Subscription>,
    lanes: BTreeMap<usize, LaneQueue>,
    held: usize,
    pace: Pace,
}

/// The events of a lane that the relay holds.
#[derive(Debug)]
struct LaneQueue {
    waiting: VecDeque<Delivery>,
    /// When the oldest event of the publish in progress was received.
    in_flight: Option<Timestamp>,
    size: usize,
    backoff: Backoff,
    due: Instant,
}

/// The end of a publish.
struct Published {
    shard: usize,
    outcome: Result<usize, (Vec<Delivery>, Error)>,
}

impl Relay {
    pub(super) fn new(shared: Arc<Shared>, subscription: Box<dyn Subscription>, rate: u32) -> Self {
        let pace = Pace { rate, free_at: Instant::now() };
        Self { shared, subscription, lanes: BTreeMap::new(), held: 0, pace }
    }

    /// Runs until the outbox closes, then waits for the publishes in progress, which are bounded.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut publishing = FuturesUnordered::new();
        loop {
            let next = self.start(&mut publishing);
            self.shared.set_oldest(self.oldest());
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => break,
                Some(published) = publishing.next(), if !publishing.is_empty() => self.ended(published),
                delivery = self.subscription.next(), if self.held < WINDOW => match delivery {
                    Some(delivery) => self.take(delivery).await,
                    None => break,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                () = shared.hurried.notified() => {}
            }
        }
        while let Some(published) = publishing.next().await {
            self.ended(published);
        }
    }

    async fn take(&mut self, delivery: Delivery) {
        let shard = match delivery.payload() {
            Payload::Event(event) => self.shared.shards.of(event),
            Payload::Undecodable(undecodable) => {
                let (length, sha256, reason) = (undecodable.length, undecodable.sha256.clone(), undecodable.reason);
                tracing::error!(
                    length,
                    sha256,
                    ?reason,
                    "the outbox has something that is not an event, it is set aside"
                );
                // A failure of the disk is logged where it is handled, and the delivery comes again.
                let _ = delivery.dead_letter(reason).await;
                return;
            }
        };
        self.held += 1;
        self.lanes.entry(shard).or_insert_with(LaneQueue::new).waiting.push_back(delivery);
    }

    /// Starts the publishes that are due; returns when the next one is.
    fn start(&mut self, publishing: &mut FuturesUnordered<BoxFuture<'static, Published>>) -> Option<Instant> {
        let (now, hurry) = (Instant::now(), self.shared.is_hurried());
        let free_at = if hurry { now } else { self.pace.free_at };
        let mut next: Option<Instant> = None;
        for (shard, lane) in &mut self.lanes {
            let Some(oldest) = lane.waiting.front().filter(|_| lane.in_flight.is_none()) else { continue };
            let due = lane.due.max(free_at);
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            lane.in_flight = Some(received_at(oldest));
            let deliveries = lane.waiting.drain(..lane.size.min(lane.waiting.len())).collect();
            publishing.push(Box::pin(publish(Arc::clone(&self.shared), *shard, deliveries)));
        }
        next
    }

    fn ended(&mut self, Published { shard, outcome }: Published) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        lane.in_flight = None;
        let (shared, left) = (&self.shared, || self.shared.log.size().events);
        match outcome {
            Ok(events) => {
                self.held -= events;
                let tenth = usize::try_from(self.pace.rate / 10).unwrap_or(CHUNK);
                lane.size = (lane.size * GROWTH).min(tenth.clamp(1, CHUNK));
                lane.backoff.reset();
                let handed = events as u64;
                if left() > FEW {
                    self.pace.handed_on(Instant::now(), handed, shared.lanes.take_arrived());
                }
                match shared.lanes.handed_on(shard, handed, left) {
                    Handover::Continues => {}
                    Handover::Resumed => {
                        tracing::info!(
                            shard,
                            waiting = left(),
                            "the broker takes events again, the outbox is handed on"
                        );
                    }
                    Handover::Complete(events) => {
                        tracing::info!(events, "the outbox is empty, new events go to the broker directly");
                    }
                }
            }
            Err((deliveries, error)) => {
                shared.broker_failed(&[shard], &error);
                lane.size = 1;
                lane.due = Instant::now() + lane.backoff.next_delay();
                deliveries.into_iter().rev().for_each(|delivery| lane.waiting.push_front(delivery));
            }
        }
    }

    /// Returns when the oldest event in the log was received; `None` if the relay holds none.
    fn oldest(&self) -> Option<Timestamp> {
        let oldest = |lane: &LaneQueue| lane.in_flight.or_else(|| lane.waiting.front().map(received_at));
        self.lanes.values().filter_map(oldest).min()
    }
}

impl LaneQueue {
    fn new() -> Self {
        let backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        Self { waiting: VecDeque::new(), in_flight: None, size: 1, backoff, due: Instant::now() }
    }
}

/// Publishes events; after the broker's confirm removes them from the log.
async fn publish(shared: Arc<Shared>, shard: usize, deliveries: Vec<Delivery>) -> Published {
    let events: Vec<Event> = deliveries.iter().filter_map(|delivery| event(delivery).cloned()).collect();
    let outcome = match shared.broker.publish(&events).await {
        Ok(()) => {
            // A removal that fails is logged by the log, which delivers the event again.
            join_all(deliveries.into_iter().map(Delivery::ack)).await;
            Ok(events.len())
        }
        Err(error) => Err((deliveries, error)),
    };
    Published { shard, outcome }
}

fn event(delivery: &Delivery) -> Option<&Event> {
    match delivery.payload() {
        Payload::Event(event) => Some(event),
        Payload::Undecodable(_) => None,
    }
}

fn received_at(delivery: &Delivery) -> Timestamp {
    delivery.payload().received_at().unwrap_or(Timestamp::from_millis(0))
}

/// The rate limit.
#[derive(Debug)]
struct Pace {
    /// Events per second, beyond those that arrive.
    rate: u32,
    /// When the next event may be handed on.
    free_at: Instant,
}

impl Pace {
    /// Counts events that were handed on, and those that arrived in the log since the last call.
    fn handed_on(&mut self, now: Instant, events: u64, arrived: u64) {
        let time = Duration::from_secs(events.saturating_sub(arrived)) / self.rate;
        self.free_at = self.free_at.max(now) + time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_counts_what_is_handed_on_beyond_what_arrives() {
        let now = Instant::now();
        let mut pace = Pace { rate: 100, free_at: now };
        pace.handed_on(now, 50, 0);
        assert_eq!(pace.free_at - now, Duration::from_millis(500));
        pace.handed_on(now, 50, 40);
        assert_eq!(pace.free_at - now, Duration::from_millis(600));
        pace.handed_on(now, 50, 60);
        assert_eq!(pace.free_at - now, Duration::from_millis(600));
        let later = now + Duration::from_secs(10);
        pace.handed_on(later, 100, 0);
        assert_eq!(pace.free_at - later, Duration::from_secs(1));
    }
}
