//! Topology: what stands on the broker, and the names that are a contract (DESIGN section 4).
//!
//! All of it is durable: a topic exchange; one quorum queue per shard bound with `shard.{n}`; a stream,
//! the journal, bound with `#`; a quorum queue of dead letters; a quorum queue of replays that are due.
//!
//! # Who makes what
//!
//! The journal is declared last, so where it stands, the work queues have stood. A work queue that is
//! missing beside a journal was lost, and events may stand in the journal that it never got. Only the
//! consuming side makes such a queue again, because only it has the journal replayed into it (see
//! [`super::replay`]); until then the journal keeps what is published. On a new broker either side makes
//! everything.
//!
//! # Delivery limit
//!
//! None: a limit counts returns and closed connections, and so dead-letters good events in an outage.
//! RabbitMQ 4 has one of 20 unless it is told that there is none, as -1. Older ones have none, take that
//! for a limit below zero, and drop every event that comes back (seen on 3.10). So it is told to those that
//! say that they are 4 or newer, and left out for all others. A queue that was made by an older broker keeps
//! the default of the newer one: that is warned of, a policy sets it right.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use crate::domain::Digest;
use crate::queue::Error;

use super::config::Config;

/// The argument that says how often an event may be delivered.
const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// What all names on the broker begin with.
const NAMESPACE: &str = "profile-edge";

/// The names on the broker, and what is declared under them.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    /// The topic exchange that events are published to.
    pub(super) exchange: String,
    /// The stream of all events.
    pub(super) journal: String,
    /// The queue of dead letters.
    pub(super) dead_letters: String,
    /// The queue of replays that are due.
    pub(super) replays: String,
    work: Vec<String>,
    max_age: String,
}

impl Topology {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            exchange: format!("{NAMESPACE}.events"),
            journal: format!("{NAMESPACE}.journal"),
            dead_letters: format!("{NAMESPACE}.dead-letters"),
            replays: format!("{NAMESPACE}.replays"),
            work: (0..config.shards).map(|shard| format!("{NAMESPACE}.invalidations.{shard}")).collect(),
            max_age: max_age(config.journal_retention),
        }
    }

    /// Returns the names of the work queues, in order of their shards.
    pub(super) fn work_queues(&self) -> &[String] {
        &self.work
    }

    /// Returns the shard of an event by the first key that it names.
    pub(super) fn shard(&self, keys: &[Digest]) -> usize {
        let mut head = [0; 8];
        if let Some(key) = keys.first() {
            head.copy_from_slice(&key.as_bytes()[..8]);
        }
        self.wrap(u64::from_be_bytes(head))
    }

    /// Returns the work queue that a routing key of the exchange stands for, also where there were more
    /// shards when it was written; `None` of a key that is none of ours.
    pub(super) fn queue_of(&self, routing_key: &str) -> Option<&str> {
        let shard = routing_key.strip_prefix("shard.")?.parse().ok()?;
        Some(&self.work[self.wrap(shard)])
    }

    fn wrap(&self, shard: u64) -> usize {
        let shards = self.work.len() as u64;
        // A remainder is below the number of queues, which is one of this machine's sizes.
        usize::try_from(shard % shards).expect("a remainder of a length is an index")
    }

    /// Returns the work queues that are missing beside a journal that may hold what they never got.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the broker fails.
    pub(super) async fn lost(&self, connection: &Connection) -> Result<Vec<String>, Error> {
        let mut declarer = Declarer::new(connection).await?;
        let mut lost = Vec::new();
        if declarer.exists(&self.journal).await? {
            for queue in &self.work {
                if !declarer.exists(queue).await? {
                    lost.push(queue.clone());
                }
            }
        }
        declarer.done().await;
        Ok(lost)
    }

    /// Declares what is missing but for the queues of `leave`, and checks what is there.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] with the broker's words when something stands there that differs;
    /// [`Error::Unavailable`] when the broker fails.
    pub(super) async fn declare(
        &self,
        connection: &Connection,
        major: Option<u32>,
        leave: &[String],
    ) -> Result<(), Error> {
        let mut declarer = Declarer::new(connection).await?;
        declarer.unlimited = major.is_some_and(|major| major >= 4);
        declarer.exchange(&self.exchange).await?;
        for (shard, queue) in self.work.iter().enumerate() {
            if !leave.contains(queue) {
                declarer.quorum(queue).await?;
                declarer.bind(queue, &self.exchange, &format!("shard.{shard}")).await?;
            }
        }
        declarer.quorum(&self.dead_letters).await?;
        declarer.quorum(&self.replays).await?;
        declarer.queue(&self.journal, journal_arguments(&self.max_age)).await?;
        declarer.bind(&self.journal, &self.exchange, "#").await?;
        declarer.done().await;
        Ok(())
    }

    /// Answers if the broker does.
    pub(super) async fn answers(&self, connection: &Connection) -> Result<(), Error> {
        let channel = open(connection).await?;
        count(&channel, &self.dead_letters).await?;
        // What is not closed in good order here is closed when it is dropped.
        let _ = channel.close(200, "answered".into()).await;
        Ok(())
    }

    /// Returns how many messages wait in the work queues, and how many dead letters there are.
    pub(super) async fn count(&self, connection: &Connection) -> Result<(u64, u64), Error> {
        let channel = open(connection).await?;
        let mut waiting = 0;
        for queue in &self.work {
            waiting += count(&channel, queue).await?;
        }
        let dead_letters = count(&channel, &self.dead_letters).await?;
        // What is not closed in good order here is closed when it is dropped.
        let _ = channel.close(200, "counted".into()).await;
        Ok((waiting, dead_letters))
    }
}

/// Declares one thing after the other. A refusal closes a channel, so another takes its place.
struct Declarer<'a> {
    connection: &'a Connection,
    channel: Channel,
    /// Whether the broker has a delivery limit unless it is told that there is none.
    unlimited: bool,
}

impl<'a> Declarer<'a> {
    async fn new(connection: &'a Connection) -> Result<Self, Error> {
        Ok(Self { connection, channel: open(connection).await?, unlimited: false })
    }

    async fn done(self) {
        // What is not closed in good order here is closed when it is dropped.
        let _ = self.channel.close(200, "declared".into()).await;
    }

    async fn exchange(&self, name: &str) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let arguments = FieldTable::default();
        let declared = self.channel.exchange_declare(name.into(), ExchangeKind::Topic, options, arguments).await;
        declared.map_err(|error| refused(&error))
    }

    async fn exists(&mut self, queue: &str) -> Result<bool, Error> {
        match passive(&self.channel, queue).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => {
                self.channel = open(self.connection).await?;
                Ok(false)
            }
            Err(error) => Err(refused(&error)),
        }
    }

    async fn quorum(&mut self, queue: &str) -> Result<(), Error> {
        if self.unlimited {
            let mut arguments = quorum_arguments();
            arguments.insert(DELIVERY_LIMIT.into(), AMQPValue::LongLongInt(-1));
            match self.try_queue(queue, arguments).await {
                Ok(()) => return Ok(()),
                Err(error) if is_about_the_limit(&error) => {
                    tracing::warn!(
                        queue,
                        "an older broker made this queue: set a policy for it with \"delivery-limit\": -1, or outages \
                         may dead-letter good events"
                    );
                    self.channel = open(self.connection).await?;
                }
                Err(error) => return Err(refused(&error)),
            }
        }
        self.queue(queue, quorum_arguments()).await
    }

    async fn queue(&self, queue: &str, arguments: FieldTable) -> Result<(), Error> {
        self.try_queue(queue, arguments).await.map_err(|error| refused(&error))
    }

    async fn try_queue(&self, queue: &str, arguments: FieldTable) -> lapin::Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await.map(drop)
    }

    async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), Error> {
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, arguments).await;
        bound.map_err(|error| refused(&error))
    }
}

/// Opens a channel.
pub(super) async fn open(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.map_err(|error| unavailable(&error))
}

/// Waits so long for an answer of the broker.
pub(super) async fn within<T>(patience: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = |_elapsed| Error::Unavailable { reason: "the broker did not answer in time".to_owned() };
    timeout(patience, answer).await.map_err(silent)?
}

/// Says that the broker failed, in the words of the library: none of them is of an event or a link.
pub(super) fn unavailable(error: &lapin::Error) -> Error {
    Error::Unavailable { reason: error.to_string() }
}

/// Tells a declaration that can never work from one that may work later.
fn refused(error: &lapin::Error) -> Error {
    match soft(error) {
        Some(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::ACCESSREFUSED) => {
            Error::Misconfigured { reason: message(error) }
        }
        Some(_) | None => unavailable(error),
    }
}

/// Tells a queue that is not there from one whose node is down, which the broker answers alike.
fn is_absent(error: &lapin::Error) -> bool {
    soft(error) == Some(AMQPSoftError::NOTFOUND) && message(error).contains("no queue")
}

fn is_about_the_limit(error: &lapin::Error) -> bool {
    soft(error) == Some(AMQPSoftError::PRECONDITIONFAILED) && message(error).contains(DELIVERY_LIMIT)
}

fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

fn message(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}

async fn passive(channel: &Channel, queue: &str) -> lapin::Result<u64> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(found.message_count().into())
}

/// Returns how many messages wait in a queue.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<u64, Error> {
    passive(channel, queue).await.map_err(|error| unavailable(&error))
}

fn quorum_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

fn journal_arguments(max_age: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-age".into(), AMQPValue::LongString(max_age.into()));
    arguments
}

/// Writes a time as the broker does: a number with the largest unit that fits it.
fn max_age(retention: Duration) -> String {
    let seconds = retention.as_secs().max(1);
    let units = [(86_400, 'D'), (3_600, 'h'), (60, 'm')];
    let fits = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
    let (unit, name) = fits.unwrap_or((1, 's'));
    format!("{}{name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_written_in_the_largest_unit_that_fits() {
        for (seconds, written) in [(7 * 86_400, "7D"), (3_600, "1h"), (90 * 60, "90m"), (61, "61s"), (1, "1s")] {
            assert_eq!(max_age(Duration::from_secs(seconds)), written);
        }
    }
}
