//! Dead letters: listing, redriving and purging them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::{Channel, Connection};
use tokio::time::{Instant, sleep, timeout};

use crate::queue::{DeadLetter, DeadLetterSelection, Error, MAX_SEARCHED, Payload, Redriven};

use super::channel;
use super::dead_letter_message::read_message;
use super::message::{Message, nears_delivery_limit};
use super::publisher::ConfirmedPublisher;
use super::topology::Topology;

/// How many dead letters are redriven or purged at once.
const CHUNK: usize = 256;

/// How many requests for a dead letter are in flight at once.
const CONCURRENT_GETS: u64 = 32;

/// How many acknowledgements are in flight at once. A broker keeps those beyond 32 of a quorum queue back, and forgets them if
/// the channel is closed then (observed on 3.10).
const CONCURRENT_ACKS: usize = 16;

/// The longest wait for an answer of the broker.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for another operation on the dead letters.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest wait until returned dead letters are visible again. Another process may have taken some.
const RETURN_TIMEOUT: Duration = Duration::from_millis(500);

/// Returns the oldest dead letters, at most `limit`, and keeps them.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails.
pub(super) async fn read(
    connection: &Connection,
    topology: &Topology,
    publisher: &ConfirmedPublisher,
    limit: usize,
) -> Result<Vec<DeadLetter>, Error> {
    let mut letters = DeadLetterCursor::open(connection, topology, publisher, limit).await?;
    let mut found = Vec::new();
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        found.extend(chunk.iter().map(|(_, letter)| letter.clone()));
    }
    letters.return_rest().await?;
    Ok(found)
}

/// Publishes the selected dead letters again. Each is acknowledged after the broker has confirmed the event. Dead letters
/// that are not selected or cannot be decoded are held until the end and then returned.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails. Some events are published then; their dead letters may still exist and
/// can be redriven again.
pub(super) async fn redrive(
    connection: &Connection,
    topology: &Topology,
    publisher: &ConfirmedPublisher,
    which: &DeadLetterSelection,
) -> Result<Redriven, Error> {
    let mut redriven = Redriven::default();
    let mut letters = DeadLetterCursor::open(connection, topology, publisher, searched(which)).await?;
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        let (mut tags, mut messages) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
        for (tag, letter) in chunk.iter().filter(|(_, letter)| which.holds(&letter.id)) {
            match &letter.payload {
                Payload::Event(event) => {
                    messages.push(Message::of_event(&event.redriven(), topology));
                    tags.push(*tag);
                }
                Payload::Undecodable(_) => redriven.kept += 1,
            }
        }
        publisher.publish(messages).await?;
        letters.acknowledge(&tags).await?;
        redriven.events += tags.len() as u64;
    }
    letters.return_rest().await?;
    Ok(redriven)
}

/// Deletes the selected dead letters; returns how many.
///
/// # Errors
///
/// [`Error::Unavailable`] when the broker fails: some may be deleted.
pub(super) async fn purge(
    connection: &Connection,
    topology: &Topology,
    publisher: &ConfirmedPublisher,
    which: &DeadLetterSelection,
) -> Result<u64, Error> {
    let mut purged = 0;
    let mut letters = DeadLetterCursor::open(connection, topology, publisher, searched(which)).await?;
    while let chunk @ [_, ..] = &letters.next().await?[..] {
        let selected = chunk.iter().filter(|(_, letter)| which.holds(&letter.id));
        let tags: Vec<u64> = selected.map(|(tag, _)| *tag).collect();
        letters.acknowledge(&tags).await?;
        purged += tags.len() as u64;
    }
    letters.return_rest().await?;
    Ok(purged)
}

/// Returns how many dead letters are searched.
const fn searched(which: &DeadLetterSelection) -> usize {
    match which {
        DeadLetterSelection::All => usize::MAX,
        DeadLetterSelection::Ids(_) => MAX_SEARCHED,
    }
}

/// The dead letters at the time of its creation, oldest first. They are held until they are acknowledged or returned.
struct DeadLetterCursor<'a> {
    channel: Channel,
    topology: &'a Topology,
    publisher: &'a ConfirmedPublisher,
    left: u64,
    chunk: Vec<(u64, DeadLetter)>,
    held: u64,
    /// Copies of those held that near a delivery limit, by their tags.
    copies: BTreeMap<u64, Message>,
}

impl<'a> DeadLetterCursor<'a> {
    async fn open(
        connection: &Connection,
        topology: &'a Topology,
        publisher: &'a ConfirmedPublisher,
        limit: usize,
    ) -> Result<Self, Error> {
        let channel = answer(channel::open(connection)).await?;
        let left = answer(channel::count(&channel, &topology.dead_letters)).await?.min(limit as u64);
        let (chunk, copies) = (Vec::new(), BTreeMap::new());
        Ok(Self { channel, topology, publisher, left, chunk, held: 0, copies })
    }

    /// Takes more dead letters; none at the end.
    async fn next(&mut self) -> Result<Vec<(u64, DeadLetter)>, Error> {
        while self.left > 0 && self.chunk.len() < CHUNK {
            self.take(self.left.min(CONCURRENT_GETS)).await?;
        }
        Ok(std::mem::take(&mut self.chunk))
    }

    async fn take(&mut self, asked: u64) -> Result<(), Error> {
        let (topology, is_wanted) = (self.topology, self.left > 0);
        let got = try_join_all((0..asked).map(|_| answer(get(&self.channel, &topology.dead_letters)))).await?;
        let found = got.iter().flatten().count() as u64;
        // Another process may have taken some.
        self.left = if found < asked { 0 } else { self.left.saturating_sub(asked) };
        self.held += found;
        for BasicGetMessage { delivery, .. } in got.into_iter().flatten().filter(|_| is_wanted) {
            let tag = delivery.delivery_tag;
            self.chunk.push((tag, read_message(&topology.keys, &delivery.properties, &delivery.data)));
            if nears_delivery_limit(&delivery.properties) {
                let copy = Message::once_more(&topology.dead_letters, delivery.properties, delivery.data, 0);
                self.copies.insert(tag, copy);
            }
        }
        Ok(())
    }

    /// Acknowledges dead letters, and waits until the broker has removed them.
    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), Error> {
        for some in tags.chunks(CONCURRENT_ACKS) {
            for tag in some {
                answer(channel::acknowledge(&self.channel, *tag)).await?;
                self.copies.remove(tag);
                self.held -= 1;
            }
            // The queue carries out its commands in order, so the answer to this one comes after the others.
            self.take(1).await?;
        }
        Ok(())
    }

    /// Returns what was not acknowledged, and waits briefly until it is visible to the next operation.
    async fn return_rest(mut self) -> Result<(), Error> {
        let (tags, copies): (Vec<_>, Vec<_>) = std::mem::take(&mut self.copies).into_iter().unzip();
        // A broker that accepts no messages gets them back as they are.
        if self.publisher.publish(copies).await.is_ok() {
            self.acknowledge(&tags).await?;
        }
        if self.held > 0 {
            let all = BasicNackOptions { multiple: true, requeue: true };
            answer(async { self.channel.basic_nack(0, all).await.map_err(|error| channel::unavailable(&error)) })
                .await?;
            let deadline = Instant::now() + RETURN_TIMEOUT;
            while answer(channel::count(&self.channel, &self.topology.dead_letters)).await? < self.held
                && Instant::now() < deadline
            {
                sleep(RETURN_TIMEOUT / 100).await;
            }
        }
        // A channel that cannot be closed cleanly is closed when it is dropped.
        let _ = timeout(ANSWER_TIMEOUT, channel::close(self.channel)).await;
        Ok(())
    }
}

/// Takes the oldest message, if there is one.
async fn get(channel: &Channel, queue: &str) -> Result<Option<BasicGetMessage>, Error> {
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
    got.map_err(|error| channel::unavailable(&error))
}

/// Waits for an answer of the broker, for a limited time.
async fn answer<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    channel::within(ANSWER_TIMEOUT, answer).await
}
