//! Publisher: events to the broker, and the broker's confirms back.
//!
//! # Protocol
//!
//! One task owns the one confirm channel. It begins publishes in the order in which it numbers them, which
//! several tasks on one channel could not (the number of a confirm would then be another's); every publish
//! is mandatory and persistent. A publish is durable when each of its messages was confirmed and none was
//! returned.
//!
//! A returned message tells only that some message of those in flight reached no queue: the library hands
//! it to any confirm of the same frame. So when one comes, every publish in flight fails, and the link is
//! made again, topology included.
//!
//! A broker may go on refusing, or not confirming, everything on one connection while all is well on others: a
//! quorum queue's leader that was lost is not always found again by a channel that knew it (seen on RabbitMQ 3.10).
//! So a connection on which nothing was confirmed for twice as long as a publish may take is made again, on the
//! next node, unless the broker says that it takes no publishes.
//!
//! # Bounds
//!
//! At most [`WINDOW`] messages are unconfirmed at once. A caller waits until its deadline, for its
//! place included, and not at all while the broker is blocked or the link is down for longer than
//! [`GRACE`]. Giving up frees no place: what was sent is still unconfirmed.
//!
//! # What a failure leaves behind
//!
//! An unknown outcome is an error; the messages may be on the broker all the same.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, interval, timeout_at};

use crate::domain::{Event, Traceparent};
use crate::queue::{Error, wire};
use crate::shutdown::Shutdown;

use super::connection::{self, Link, Live, Prepare};
use super::headers;
use super::replay::REPLAYED;
use super::topology::{self, Topology};

/// How many messages may be unconfirmed at once.
const WINDOW: usize = 4096;

/// How many messages are published as one.
const CHUNK: usize = WINDOW / 4;

/// How long a link that is being made again is waited for.
const GRACE: Duration = Duration::from_millis(250);

/// The header of the trace context (W3C).
const TRACEPARENT: &str = "traceparent";

/// One message, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// The exchange; the default one where it is empty.
    pub(super) exchange: String,
    /// The routing key; of the default exchange, a queue's name.
    pub(super) routing_key: String,
    /// What it says besides its body.
    pub(super) properties: BasicProperties,
    /// Its body.
    pub(super) body: Bytes,
}

impl Message {
    /// Makes the message of an event.
    pub(super) fn of_event(event: &Event, topology: &Topology) -> Self {
        let seconds = u64::try_from(event.received_at.as_millis() / 1000).unwrap_or(0);
        let mut properties = json_properties()
            .with_message_id(event.id.as_str().into())
            .with_type(event.kind.as_str().into())
            .with_timestamp(seconds);
        let mut headers = FieldTable::default();
        if let Some(traceparent) = &event.traceparent {
            headers.insert(TRACEPARENT.into(), AMQPValue::LongString(traceparent.to_string().into()));
        }
        if event.again.is_some() {
            // Consumers of an earlier version know only this.
            headers.insert(REPLAYED.into(), AMQPValue::Boolean(true));
        }
        if !headers.inner().is_empty() {
            properties = properties.with_headers(headers);
        }
        Self {
            exchange: topology.exchange.clone(),
            routing_key: format!("shard.{}", topology.shard(&event.keys)),
            properties,
            body: wire::encode(event),
        }
    }
}

/// Returns the trace context that a message's header names, if it is one.
pub(super) fn traceparent(properties: &BasicProperties) -> Option<Traceparent> {
    headers::text(properties, TRACEPARENT)?.parse().ok()
}

/// Returns the properties of a durable message in JSON.
pub(super) fn json_properties() -> BasicProperties {
    const PERSISTENT: u8 = 2;
    BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT)
}

/// Publishes on whichever connection is up.
#[derive(Debug)]
pub(super) struct Publisher {
    link: Link<Outlet>,
    timeout: Duration,
}

impl Publisher {
    pub(super) fn new(link: Link<Outlet>, timeout: Duration) -> Self {
        Self { link, timeout }
    }

    /// Returns the link, for whoever opens, probes or closes it.
    pub(super) fn link(&self) -> &Link<Outlet> {
        &self.link
    }

    /// Returns when every message is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: some may be durable all the same.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let mut rest = messages;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(CHUNK));
            self.publish_chunk(std::mem::replace(&mut rest, later), deadline).await?;
        }
        Ok(())
    }

    async fn publish_chunk(&self, messages: Vec<Message>, deadline: Instant) -> Result<(), Error> {
        let up = self.link.up(deadline.min(Instant::now() + GRACE)).await?;
        up.live.takes_publishes()?;
        tokio::select! {
            biased;
            sent = up.made.send(messages) => sent,
            () = up.live.ended() => Err(unavailable("the connection ended before the broker confirmed")),
            reason = up.live.until_blocked() => Err(connection::blocked(&reason)),
            () = tokio::time::sleep_until(deadline) => Err(unavailable("the broker did not confirm in time")),
        }
    }

    /// Waits until nothing is unconfirmed, at most as long as a publish may take.
    pub(super) async fn flush(&self) {
        let deadline = Instant::now() + self.timeout;
        if let Ok(up) = self.link.up(Instant::now()).await {
            let all = u32::try_from(WINDOW).unwrap_or(u32::MAX);
            // What is unconfirmed by then has been answered with an error.
            let _ = timeout_at(deadline, up.made.places.acquire_many(all)).await;
        }
    }
}

fn unavailable(reason: &str) -> Error {
    Error::Unavailable { reason: reason.to_owned() }
}

/// Messages that are published as one, and who waits for them.
struct Job {
    messages: Vec<Message>,
    reply: oneshot::Sender<Result<(), Error>>,
    places: OwnedSemaphorePermit,
}

/// The way to the task that owns the channel.
#[derive(Debug)]
pub(super) struct Outlet {
    jobs: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
}

impl Outlet {
    async fn send(&self, messages: Vec<Message>) -> Result<(), Error> {
        let ended = || unavailable("the connection ended before the broker confirmed");
        let wanted = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.places).acquire_many_owned(wanted).await.map_err(|_| ended())?;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { messages, reply, places }).map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// Makes the outlet of a new connection.
#[derive(Debug)]
pub(super) struct Publishing {
    /// What is declared.
    pub(super) topology: Topology,
    /// Tracks the task that owns the channel.
    pub(super) tasks: Shutdown,
    /// How long the broker may confirm nothing of what it was sent.
    pub(super) patience: Duration,
}

#[async_trait]
impl Prepare for Publishing {
    type Made = Outlet;
    const PURPOSE: &'static str = "publish";

    async fn prepare(&self, live: &Live) -> Result<Outlet, Error> {
        let lost = self.topology.lost(live.connection()).await?;
        self.topology.declare(live.connection(), live.major(), &lost).await?;
        let channel = topology::open(live.connection()).await?;
        let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
        selected.map_err(|error| topology::unavailable(&error))?;
        // The places bound how many jobs there are.
        let (jobs, taken) = mpsc::unbounded_channel();
        self.tasks.spawn(serve(channel, taken, live.clone(), self.patience));
        Ok(Outlet { jobs, places: Arc::new(Semaphore::new(WINDOW)) })
    }
}

/// Who waits for a job, and what became of it.
type Done = (oneshot::Sender<Result<(), Error>>, Outcome);

/// What the broker said to a job's messages, in order of gravity.
#[derive(Debug)]
enum Outcome {
    Confirmed,
    Refused,
    Returned(String),
    Failed(String),
}

async fn serve(channel: Channel, mut jobs: mpsc::UnboundedReceiver<Job>, live: Live, patience: Duration) {
    let mut flights = FuturesUnordered::new();
    let mut taken = Vec::new();
    let mut ended = pin!(live.ended());
    // Since when something was sent and nothing confirmed.
    let mut unanswered: Option<Instant> = None;
    let mut looks = interval(patience / 4);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => return,
            Some(done) = flights.next(), if !flights.is_empty() => {
                let done = with_all_that_are_ready(done, &channel, &mut flights);
                match conclude(done) {
                    Concluded::Confirmed => unanswered = (!flights.is_empty()).then(Instant::now),
                    Concluded::Refused => {}
                    Concluded::Broken => return live.give_up(),
                }
            }
            _ = looks.tick() => match unanswered {
                // It said why, and will say when that is over.
                Some(_) if live.takes_publishes().is_err() => unanswered = Some(Instant::now()),
                Some(since) if since.elapsed() >= patience => {
                    tracing::warn!(?patience, "the broker confirms nothing on this connection, it is made again");
                    return live.give_up();
                }
                Some(_) | None => {}
            },
            count = jobs.recv_many(&mut taken, WINDOW) => {
                if count == 0 {
                    return;
                }
                unanswered.get_or_insert_with(Instant::now);
                flights.extend(taken.drain(..).map(|job| fly(channel.clone(), job)));
            }
        }
    }
}

async fn fly(channel: Channel, job: Job) -> Done {
    let Job { messages, reply, places } = job;
    let outcomes = join_all(messages.into_iter().map(|message| publish_one(&channel, message))).await;
    drop(places);
    let gravest = outcomes.into_iter().max_by_key(|outcome| match outcome {
        Outcome::Confirmed => 0,
        Outcome::Refused => 1,
        Outcome::Failed(_) => 2,
        Outcome::Returned(_) => 3,
    });
    (reply, gravest.unwrap_or(Outcome::Confirmed))
}

async fn publish_one(channel: &Channel, message: Message) -> Outcome {
    let Message { exchange, routing_key, properties, body } = message;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key): (ShortString, ShortString) = (exchange.into(), routing_key.into());
    let confirmed = match channel.basic_publish(exchange, key, options, &body, properties).await {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    match confirmed {
        Ok(Confirmation::Ack(None)) => Outcome::Confirmed,
        Ok(Confirmation::Nack(None)) => Outcome::Refused,
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
            Outcome::Returned(returned.reply_text.to_string())
        }
        Ok(Confirmation::NotRequested) => Outcome::Failed("the channel does not confirm".to_owned()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Collects every job that the same frame of the broker ended: a returned message may belong to any.
fn with_all_that_are_ready<F: Future<Output = Done>>(
    first: Done,
    channel: &Channel,
    flights: &mut FuturesUnordered<F>,
) -> Vec<Done> {
    // The library resolves all confirms of one frame under a lock, which this call takes as well: when it
    // returns, they are resolved. What it would wait for does not matter.
    let _ = channel.wait_for_confirms().now_or_never();
    let mut done = vec![first];
    while let Some(Some(next)) = flights.next().now_or_never() {
        done.push(next);
    }
    done
}

/// What some jobs came to, for the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concluded {
    /// Some of them are durable.
    Confirmed,
    /// None of them is, by the broker's own word.
    Refused,
    /// The channel cannot go on.
    Broken,
}

/// Answers jobs.
fn conclude(done: Vec<Done>) -> Concluded {
    let returned = done.iter().find_map(|(_, outcome)| match outcome {
        Outcome::Returned(reason) => Some(reason.clone()),
        Outcome::Confirmed | Outcome::Refused | Outcome::Failed(_) => None,
    });
    let mut concluded = if returned.is_some() { Concluded::Broken } else { Concluded::Refused };
    for (reply, outcome) in done {
        let answer = match (&returned, outcome) {
            (Some(reason), _) => Err(unavailable(&format!("a message reached no queue: {reason}"))),
            (None, Outcome::Confirmed) => {
                if concluded == Concluded::Refused {
                    concluded = Concluded::Confirmed;
                }
                Ok(())
            }
            (None, Outcome::Refused) => Err(unavailable("the broker refused to confirm")),
            (None, Outcome::Failed(reason) | Outcome::Returned(reason)) => {
                concluded = Concluded::Broken;
                Err(unavailable(&reason))
            }
        };
        // Whoever asked may have given up.
        let _ = reply.send(answer);
    }
    concluded
}

#[cfg(test)]
mod tests {
    use crate::config;
    use crate::domain::{Redelivery, ReplayId};

    use super::*;

    #[test]
    fn what_is_handed_out_once_more_says_so_to_consumers_of_an_earlier_version() {
        let topology = Topology::new(&config::from_toml("").unwrap().config.queue.amqp);
        for again in [
            None,
            Some(Redelivery::Redriven),
            Some(Redelivery::Restored),
            Some(Redelivery::Replayed(ReplayId::fresh())),
        ] {
            let event = Event { again, ..Event::example() };
            let message = Message::of_event(&event, &topology);
            assert_eq!(crate::queue::amqp::replay::is_restored(&message.properties), again.is_some(), "{again:?}");
        }
    }

    #[test]
    fn a_trace_context_is_read_from_the_header_and_anything_else_there_is_none() {
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |value: AMQPValue| {
            let mut headers = FieldTable::default();
            headers.insert(TRACEPARENT.into(), value);
            traceparent(&json_properties().with_headers(headers)).map(|read| read.to_string())
        };
        for given in [AMQPValue::LongString(context.into()), AMQPValue::ShortString(context.into())] {
            assert_eq!(read(given).as_deref(), Some(context));
        }
        for none in [AMQPValue::LongString("planted".into()), AMQPValue::LongString(vec![0xff; 55].into())] {
            assert_eq!(read(none), None);
        }
        assert_eq!(read(AMQPValue::Boolean(true)), None);
        assert_eq!(traceparent(&json_properties()), None);
    }
}
