//! The task that owns a confirm channel: publishes batches and evaluates the broker's confirms.
//!
//! See [`super::publisher`] for the protocol.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, interval};

use crate::queue::Error;

use super::connection::OpenConnection;
use super::message::Message;

/// How many messages may be unconfirmed at once.
pub(super) const MAX_UNCONFIRMED: usize = 4096;

/// Messages that are published together.
pub(super) struct PublishBatch {
    pub(super) messages: Vec<Message>,
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
    pub(super) permits: OwnedSemaphorePermit,
}

/// A batch whose messages are all answered, and where to send its result.
type AnsweredBatch = (oneshot::Sender<Result<(), Error>>, PublishOutcome);

/// The broker's answer to the messages of a batch, from the mildest to the most severe.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PublishOutcome {
    Confirmed,
    Nacked,
    Failed(String),
    Returned(String),
}

impl PublishOutcome {
    /// Returns whether the messages are durable, for who published them.
    fn result(self) -> Result<(), Error> {
        match self {
            Self::Confirmed => Ok(()),
            Self::Nacked => Err(unavailable("the broker refused to confirm")),
            Self::Failed(reason) => Err(unavailable(&reason)),
            Self::Returned(reason) => Err(unrouted(&reason)),
        }
    }
}

/// What the answers of some batches mean for the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelHealth {
    /// At least one batch is durable.
    Confirming,
    /// The broker refused all of them.
    Refusing,
    /// The channel cannot be used any more.
    Broken,
}

/// Publishes batches until the connection ends or the channel breaks, or the broker confirms nothing for `patience`.
pub(super) async fn run(
    channel: Channel,
    mut batches: mpsc::UnboundedReceiver<PublishBatch>,
    connection: OpenConnection,
    patience: Duration,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut received = Vec::new();
    let mut ended = pin!(connection.ended());
    // Since when messages are unconfirmed without any confirm.
    let mut unanswered: Option<Instant> = None;
    let mut checks = interval(patience / 4);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => return,
            Some(answered) = in_flight.next(), if !in_flight.is_empty() => {
                let answered = with_all_answered(answered, &channel, &mut in_flight);
                match reply(answered) {
                    ChannelHealth::Confirming => unanswered = (!in_flight.is_empty()).then(Instant::now),
                    ChannelHealth::Refusing => {}
                    ChannelHealth::Broken => return connection.give_up(),
                }
            }
            _ = checks.tick() => match unanswered {
                // A blocked broker has sent the reason and will unblock.
                Some(_) if connection.accepts_messages().is_err() => unanswered = Some(Instant::now()),
                Some(since) if since.elapsed() >= patience => {
                    tracing::warn!(?patience, "the broker confirms nothing on this connection, reconnecting");
                    return connection.give_up();
                }
                Some(_) | None => {}
            },
            count = batches.recv_many(&mut received, MAX_UNCONFIRMED) => {
                if count == 0 {
                    return;
                }
                unanswered.get_or_insert_with(Instant::now);
                in_flight.extend(received.drain(..).map(|batch| publish(channel.clone(), batch)));
            }
        }
    }
}

async fn publish(channel: Channel, batch: PublishBatch) -> AnsweredBatch {
    let PublishBatch { messages, reply, permits } = batch;
    let outcomes = join_all(messages.into_iter().map(|message| publish_one(&channel, message))).await;
    drop(permits);
    (reply, outcomes.into_iter().max().unwrap_or(PublishOutcome::Confirmed))
}

/// Publishes a message on a channel that nothing else uses yet.
///
/// # Errors
///
/// [`Error::Unavailable`]: it is not durable.
pub(super) async fn publish_alone(channel: &Channel, message: Message) -> Result<(), Error> {
    publish_one(channel, message).await.result()
}

async fn publish_one(channel: &Channel, message: Message) -> PublishOutcome {
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key): (ShortString, ShortString) = (exchange.into(), routing_key.into());
    let confirmed = match channel.basic_publish(exchange, key, options, &body, properties).await {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    match confirmed {
        Ok(Confirmation::Ack(None)) => PublishOutcome::Confirmed,
        Ok(Confirmation::Nack(None)) => PublishOutcome::Nacked,
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
            PublishOutcome::Returned(returned.reply_text.to_string())
        }
        Ok(Confirmation::NotRequested) => PublishOutcome::Failed("the channel does not confirm".to_owned()),
        Err(error) => PublishOutcome::Failed(error.to_string()),
    }
}

/// Collects every batch that the same frame of the broker answered: a returned message may belong to any of them.
fn with_all_answered<F: Future<Output = AnsweredBatch>>(
    first: AnsweredBatch,
    channel: &Channel,
    in_flight: &mut FuturesUnordered<F>,
) -> Vec<AnsweredBatch> {
    // The library resolves all confirms of a frame under a lock that this call takes too: when it returns, they are
    // resolved. Its own result does not matter.
    let _ = channel.wait_for_confirms().now_or_never();
    let mut answered = vec![first];
    while let Some(Some(next)) = in_flight.next().now_or_never() {
        answered.push(next);
    }
    answered
}

/// Sends the results of batches to their publishers.
fn reply(answered: Vec<AnsweredBatch>) -> ChannelHealth {
    let returned = answered.iter().find_map(|(_, outcome)| match outcome {
        PublishOutcome::Returned(reason) => Some(reason.clone()),
        PublishOutcome::Confirmed | PublishOutcome::Nacked | PublishOutcome::Failed(_) => None,
    });
    let mut health = if returned.is_some() { ChannelHealth::Broken } else { ChannelHealth::Refusing };
    for (reply, outcome) in answered {
        match &outcome {
            PublishOutcome::Confirmed if health == ChannelHealth::Refusing => health = ChannelHealth::Confirming,
            PublishOutcome::Failed(_) => health = ChannelHealth::Broken,
            PublishOutcome::Confirmed | PublishOutcome::Nacked | PublishOutcome::Returned(_) => {}
        }
        let result = returned.as_deref().map_or_else(|| outcome.result(), |reason| Err(unrouted(reason)));
        // The publisher may have given up.
        let _ = reply.send(result);
    }
    health
}

fn unrouted(reason: &str) -> Error {
    unavailable(&format!("a message reached no queue: {reason}"))
}

pub(super) fn unavailable(reason: &str) -> Error {
    Error::Unavailable { reason: reason.to_owned() }
}
