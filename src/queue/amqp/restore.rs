//! Restore: publishes events of the journal to work queues again, after a work queue was lost (with events that it may
//! never have delivered) or after the store may have lost the effects of events.
//!
//! # Protocol
//!
//! 1. A process that finds a work queue missing while the journal exists, or whose consumer the broker cancels, **orders**
//!    a restore: it publishes a [`RestoreState`], the range of offsets in the [journal](super::journal), to the queue of
//!    restores. The order is confirmed *before* the work queue is declared again, so there is never a new work queue
//!    without an order for it. The range has no end yet: whoever carries it out first binds the work queue, and then ends
//!    the range with what the journal holds. What is published later reaches the new work queue directly.
//! 2. The queue of restores has a single active consumer: one process carries out restores. It merges the states that
//!    wait into one, with the state after its last step, so an order that comes during a restore extends it.
//! 3. Step by step it publishes the next events of the range again, together with the state after them, confirmed, and
//!    then acknowledges the state before them. So no delivery is held for longer than a step, whatever the broker's
//!    `consumer_timeout`, and another process continues where this one ends. At most the events of one step are repeated.
//! 4. A step begins while at most [`RESTORE_BELOW`] events wait in the work queues, so that live events do not wait long.
//!
//! An order for lost effects starts at step 2. A header marks what is published again
//! ([`Redelivery::Restored`](crate::domain::Redelivery::Restored)). Applying an event twice has one effect.
//!
//! # Failures
//!
//! The state stays in its queue; this process or another continues after a pause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Connection;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::FieldTable;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::metrics::Metrics;
use crate::queue::Error;
use crate::supervise::Backoff;

use super::channel;
use super::connection::OpenConnection;
use super::journal::{self, StreamReader};
use super::message::{Message, mark_replayed, nears_delivery_limit};
use super::publisher::ConfirmedPublisher;
use super::restore_state::RestoreState;
use super::routing_key::{routing_key, shard_in};
use super::topology::{Declarer, Topology};

/// How many events may wait in the work queues when a step begins.
const RESTORE_BELOW: u64 = 512;

/// The interval between two counts of the events that wait.
const RESTORE_PAUSE: Duration = Duration::from_millis(50);

/// The longest that a step waits for the work queues, and for the state after the last step.
const STEP_WAIT: Duration = Duration::from_secs(1);

/// How many states are merged at once.
const MAX_STATES: u16 = 64;

/// Orders restores, and carries them out on one connection.
#[derive(Clone, Debug)]
pub(super) struct Restorer {
    pub(super) topology: Topology,
    pub(super) publisher: Arc<ConfirmedPublisher>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: SharedClock,
}

/// The request of an earlier version, whose times are ignored.
#[derive(Deserialize)]
struct EarlierRequest {
    since: BTreeMap<String, Option<i64>>,
}

impl Restorer {
    /// Orders a restore into some work queues of what was published since a time; `None`: of the whole journal. Returns
    /// when the order is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the order may be durable.
    pub(super) async fn order(
        &self,
        connection: &Connection,
        queues: BTreeSet<String>,
        since: Option<Timestamp>,
    ) -> Result<(), Error> {
        // A time in the future has no age, so the whole journal is read.
        let now = self.clock.now();
        let age = since.filter(|since| *since <= now).map(|since| now.since(since));
        let range = journal::range(connection, &self.topology, &self.publisher, age).await?;
        // Until the work queue is bound again, events reach the journal alone. So the end is determined after that.
        let order = RestoreState::new(queues, range.start..RestoreState::OPEN);
        tracing::warn!(%order, "ordering a restore from the journal");
        self.publisher.publish(vec![order.message(&self.topology)]).await
    }

    /// Carries out restores until the connection ends, or another takes its place, on which they continue.
    pub(super) async fn run(self, open: OpenConnection) {
        let mut backoff = Backoff::default();
        loop {
            let served = tokio::select! {
                biased;
                () = open.ended() => return,
                () = open.replaced() => return,
                served = self.serve(open.connection()) => served,
            };
            let reason = served.err().map_or_else(|| "the channel ended".to_owned(), |error| error.to_string());
            tracing::warn!(reason, "restores from the journal are interrupted, retrying");
            backoff.pause_until(open.ended()).await;
        }
    }

    async fn serve(&self, connection: &Connection) -> Result<(), Error> {
        self.take_over(connection).await?;
        let channel = channel::open(connection).await?;
        channel::prefetch(&channel, MAX_STATES).await?;
        let states = channel::consume(&channel, &self.topology.restores, FieldTable::default()).await?;
        let mut states = states.ready_chunks(MAX_STATES.into());
        let (mut reader, mut merged, mut taken, mut last) = (None, None::<RestoreState>, 0, 0);
        let mut is_renewed = false;
        // The state after the last step, until it comes back.
        let mut own = None::<RestoreState>;
        loop {
            let received = match own {
                Some(_) => timeout(STEP_WAIT, states.next()).await,
                None => Ok(states.next().await),
            };
            let Some(received) = received.unwrap_or_else(|_| {
                // Somebody has purged the queue.
                own = None;
                Some(Vec::new())
            }) else {
                return Ok(());
            };
            for delivery in received {
                let delivery = delivery.map_err(|error| channel::unavailable(&error))?;
                (taken, last) = (taken + 1, delivery.delivery_tag);
                is_renewed |= nears_delivery_limit(&delivery.properties);
                match serde_json::from_slice::<RestoreState>(&delivery.data) {
                    Ok(state) => {
                        own = own.filter(|own| *own != state);
                        merged = Some(match merged.take() {
                            Some(merged) => state.merge(merged),
                            None => state,
                        });
                    }
                    Err(error) => tracing::error!(%error, "discarding an invalid order of a restore"),
                }
            }
            // Orders that came during the last step are in front of the state after it. If they were carried out without it,
            // each would be a restore of its own.
            if own.is_some() && taken < MAX_STATES {
                continue;
            }
            if let Some(state) = merged.take() {
                own = self.step(connection, state, is_renewed, &mut reader).await?;
            }
            if taken > 0 {
                channel::acknowledge_up_to(&channel, last).await?;
                (taken, is_renewed) = (0, false);
            }
        }
    }

    /// Carries out a step. Returns the state after it, if something is left, when its events and that state are durable.
    /// `is_renewed`: the state nears a delivery limit, because steps failed, so it is only republished.
    async fn step(
        &self,
        connection: &Connection,
        mut state: RestoreState,
        is_renewed: bool,
        reader: &mut Option<StreamReader>,
    ) -> Result<Option<RestoreState>, Error> {
        let mut messages = Vec::new();
        if is_renewed || !self.has_room(connection).await? {
            // Messages that the broker has sent ahead must not be held while this waits.
            *reader = None;
        } else if let Some(read) = self.read(connection, &mut state, reader).await? {
            messages.extend(read.into_iter().filter_map(|delivery| self.redelivery(&state, delivery)));
        }
        let moved = messages.len() as u64;
        let next = reader.as_ref().map_or(state.left().start, StreamReader::next_offset);
        state.advance(next, moved);
        if !state.is_complete() {
            messages.push(state.message(&self.topology));
        }
        self.publisher.publish(messages).await?;
        self.metrics.replayed_events.increment(moved);
        if state.is_complete() {
            *reader = None;
            let events = state.moved();
            tracing::info!(events, "the restore from the journal is complete: these events are applied again");
            return Ok(None);
        }
        Ok(Some(state))
    }

    /// Reads the next messages of the range; `None` if nothing is left.
    async fn read(
        &self,
        connection: &Connection,
        state: &mut RestoreState,
        reader: &mut Option<StreamReader>,
    ) -> Result<Option<Vec<Delivery>>, Error> {
        let left = state.left();
        if reader.as_ref().is_none_or(|reader| !reader.is_of(&left)) {
            *reader = None;
            // What is published before the work queues are bound is part of the range, what is published after it is not needed.
            self.bind(connection, state).await?;
            // The journal may have been deleted since the order.
            state.limit(journal::range(connection, &self.topology, &self.publisher, None).await?.end);
            if state.is_complete() {
                return Ok(None);
            }
            *reader = Some(StreamReader::of_range(connection, &self.topology, state.left()).await?);
        }
        match reader {
            Some(reader) => reader.messages().await,
            None => Ok(None),
        }
    }

    /// Binds the work queues that get events, also those of processes with more shards; fails if one does not exist.
    async fn bind(&self, connection: &Connection, state: &RestoreState) -> Result<(), Error> {
        let declarer = Declarer::new(connection).await?;
        for queue in state.queues() {
            if let Some(shard) = self.topology.shard_of(queue) {
                declarer.bind(queue, &self.topology.exchange, &routing_key(shard)).await?;
            }
        }
        channel::close(declarer.channel).await;
        Ok(())
    }

    /// Waits until few events wait in the work queues, for the time of a step; returns whether that is so.
    async fn has_room(&self, connection: &Connection) -> Result<bool, Error> {
        let deadline = Instant::now() + STEP_WAIT;
        while self.topology.count(connection).await?.0 > RESTORE_BELOW {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(RESTORE_PAUSE).await;
        }
        Ok(true)
    }

    /// Creates the message that brings an event of the journal to its work queue, if the restore includes that queue.
    fn redelivery(&self, state: &RestoreState, delivery: Delivery) -> Option<Message> {
        let key = delivery.routing_key.as_str();
        let shard = shard_in(key)?;
        // The order names the queue of the shard, or the journal is from a time with another number of shards.
        let exact = state.queues().iter().find(|queue| self.topology.shard_of(queue) == Some(shard));
        let queue =
            exact.map(String::as_str).or_else(|| self.topology.queue_of(key).filter(|queue| state.includes(queue)))?;
        let mut headers = delivery.properties.headers().clone().unwrap_or_default();
        mark_replayed(&mut headers);
        Some(Message {
            exchange: String::new(),
            routing_key: queue.to_owned(),
            properties: delivery.properties.with_headers(headers),
            body: delivery.data.into(),
        })
    }

    /// Orders the restores that processes of an earlier version requested and did not carry out.
    async fn take_over(&self, connection: &Connection) -> Result<(), Error> {
        loop {
            let channel = channel::open(connection).await?;
            let got = channel.basic_get(self.topology.earlier_requests.as_str().into(), BasicGetOptions::default());
            let request = match got.await {
                Ok(Some(request)) => request,
                Ok(None) => {
                    channel::close(channel).await;
                    return Ok(());
                }
                Err(error) if channel::is_absent(&error) => return Ok(()),
                Err(error) => return Err(channel::unavailable(&error)),
            };
            if let Ok(EarlierRequest { since }) = serde_json::from_slice(&request.data) {
                self.order(connection, since.into_keys().collect(), None).await?;
            }
            let acknowledged = request.acker.ack(BasicAckOptions::default()).await;
            acknowledged.map_err(|error| channel::unavailable(&error))?;
            channel::close(channel).await;
        }
    }
}
