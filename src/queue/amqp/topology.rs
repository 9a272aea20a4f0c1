//! The topology: what exists on the broker. Its names are a contract between versions.
//!
//! Everything is durable: a topic exchange; one quorum queue per shard, bound with `shard.{n}`; a stream as journal,
//! bound with `#`; a quorum queue of dead letters; a quorum queue of restores, with a single active consumer.
//!
//! # Who declares what
//!
//! The journal is declared last, so if the journal exists, all work queues existed before. A work queue that is missing
//! while the journal exists was lost, and the journal may contain events that the queue never got. Only the consuming
//! side declares such a queue again, because it also restores the queue from the journal (see [`super::restore`]). Until
//! then the journal keeps what is published. On a new broker either side declares everything.
//!
//! A user without the permission to declare (`configure`) uses what an operator has declared, as it is.
//!
//! # Delivery limit
//!
//! There should be none: a limit counts returns and closed connections, so an outage would dead-letter good events. One that
//! is set nevertheless is not reached while the broker accepts messages (see [`nears_delivery_limit`](super::message::nears_delivery_limit)).
//! RabbitMQ 4 has a default limit of 20, and -1 disables it. Older versions have no limit, read -1 as a limit below zero,
//! and drop every returned event (observed on 3.10). So the argument is set for brokers that report version 4 or newer,
//! and omitted for all others. A queue that an older broker created keeps the default limit of the newer one; a warning
//! in the log names the policy that disables it. Since version 4.3 a broker counts no returns, only consumers that end.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use crate::queue::Error;
use crate::queue::shards::Shards;

use super::authenticity::MessageKeys;
use super::channel::{self, declare_passive, is_absent, refused};
use super::config::Config;
use super::routing_key::{routing_key, shard_in};

/// The argument for the delivery limit.
const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// The names on the broker and the arguments of their declarations.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    /// The topic exchange for events.
    pub(super) exchange: String,
    /// The stream of all events.
    pub(super) journal: String,
    /// The queue of dead letters.
    pub(super) dead_letters: String,
    /// The queue of restores that are due.
    pub(super) restores: String,
    /// The exchange for notices of the processes that consume, see [`super::notices`].
    pub(super) notices: String,
    /// The queue of restores that earlier versions requested.
    pub(super) earlier_requests: String,
    /// How the events in all of these are signed and verified.
    pub(super) keys: Arc<MessageKeys>,
    /// How the events are distributed over the work queues.
    pub(super) shards: Shards,
    work: Vec<String>,
    max_age: String,
}

impl Topology {
    pub(super) fn new(config: &Config) -> Self {
        let prefix = &config.name;
        Self {
            exchange: format!("{prefix}.events"),
            journal: format!("{prefix}.journal"),
            dead_letters: format!("{prefix}.dead-letters"),
            restores: format!("{prefix}.restores"),
            notices: format!("{prefix}.consumers"),
            earlier_requests: format!("{prefix}.replays"),
            keys: Arc::new(MessageKeys::new(config)),
            shards: Shards::new(config.shards),
            work: (0..config.shards).map(|shard| format!("{prefix}.invalidations.{shard}")).collect(),
            max_age: max_age(config.journal_retention),
        }
    }

    /// Returns the names of the work queues, in the order of their shards.
    pub(super) fn work_queues(&self) -> &[String] {
        &self.work
    }

    /// Returns the work queue for a routing key of the exchange; `None` for an unknown key. The key may come from a time
    /// with more shards.
    pub(super) fn queue_of(&self, routing_key: &str) -> Option<&str> {
        let shard = shard_in(routing_key)?.parse().ok()?;
        Some(&self.work[self.shards.index(shard)])
    }

    /// Returns the number of a work queue's shard, also of one that only processes with more shards have.
    pub(super) fn shard_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(self.work[0].trim_end_matches('0'))
    }

    /// Returns the arguments of the journal.
    pub(super) fn journal_arguments(&self) -> FieldTable {
        journal_arguments(&self.max_age)
    }

    /// Returns the work queues that are missing while the journal exists.
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
        channel::close(declarer.channel).await;
        Ok(lost)
    }

    /// Declares what is missing, except the work queues in `except`, and checks what exists.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] with the broker's text when something exists that differs; [`Error::Unavailable`] when
    /// the broker fails.
    pub(super) async fn declare(
        &self,
        connection: &Connection,
        major: Option<u32>,
        except: &[String],
    ) -> Result<(), Error> {
        let mut declarer = Declarer::new(connection).await?;
        declarer.has_default_limit = major.is_some_and(|major| major >= 4);
        declarer.exchange(&self.exchange).await?;
        for (shard, queue) in self.work.iter().enumerate() {
            if !except.contains(queue) {
                declarer.quorum(queue, false).await?;
                declarer.bind(queue, &self.exchange, &routing_key(shard)).await?;
            }
        }
        declarer.quorum(&self.dead_letters, false).await?;
        declarer.quorum(&self.restores, true).await?;
        declarer.queue(&self.journal, self.journal_arguments()).await?;
        declarer.bind(&self.journal, &self.exchange, "#").await?;
        channel::close(declarer.channel).await;
        Ok(())
    }

    /// Returns the first of the queues that does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the broker fails.
    pub(super) async fn missing(&self, connection: &Connection) -> Result<Option<String>, Error> {
        let mut declarer = Declarer::new(connection).await?;
        for queue in self.work.iter().chain([&self.journal, &self.dead_letters, &self.restores]) {
            if !declarer.exists(queue).await? {
                return Ok(Some(queue.clone()));
            }
        }
        channel::close(declarer.channel).await;
        Ok(None)
    }

    /// Returns the number of messages that wait in the work queues, and the number of dead letters.
    pub(super) async fn count(&self, connection: &Connection) -> Result<(u64, u64), Error> {
        let channel = channel::open(connection).await?;
        let mut waiting = 0;
        for queue in &self.work {
            waiting += channel::count(&channel, queue).await?;
        }
        let dead_letters = channel::count(&channel, &self.dead_letters).await?;
        channel::close(channel).await;
        Ok((waiting, dead_letters))
    }
}

/// Makes declarations one after the other. A refusal closes the channel; the next declaration uses a new one.
pub(super) struct Declarer<'a> {
    connection: &'a Connection,
    pub(super) channel: Channel,
    /// Whether the broker limits deliveries by default.
    pub(super) has_default_limit: bool,
}

impl<'a> Declarer<'a> {
    pub(super) async fn new(connection: &'a Connection) -> Result<Self, Error> {
        Ok(Self { connection, channel: channel::open(connection).await?, has_default_limit: false })
    }

    async fn exchange(&mut self, name: &str) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare = async |channel: &Channel, options| {
            channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await
        };
        let declared = match declare(&self.channel, options).await {
            Err(error) if channel::is_forbidden(&error) => {
                self.channel = channel::open(self.connection).await?;
                declare(&self.channel, ExchangeDeclareOptions { passive: true, ..options }).await
            }
            declared => declared,
        };
        declared.map_err(|error| refused(&error))
    }

    async fn exists(&mut self, queue: &str) -> Result<bool, Error> {
        match declare_passive(&self.channel, queue).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => {
                self.channel = channel::open(self.connection).await?;
                Ok(false)
            }
            Err(error) => Err(refused(&error)),
        }
    }

    pub(super) async fn quorum(&mut self, queue: &str, single_active: bool) -> Result<(), Error> {
        if self.has_default_limit {
            let mut arguments = quorum_arguments(single_active);
            arguments.insert(DELIVERY_LIMIT.into(), AMQPValue::LongLongInt(-1));
            match self.try_queue(queue, arguments).await {
                Ok(()) => return Ok(()),
                Err(error) if differs_in_limit(&error) => {
                    tracing::warn!(
                        queue,
                        "an older broker created this queue, so it has a delivery limit; set a policy for it with \
                         \"delivery-limit\": -1: while the broker accepts no messages, the limit drops events"
                    );
                    self.channel = channel::open(self.connection).await?;
                }
                Err(error) if channel::is_forbidden(&error) => return self.must_exist(queue).await,
                Err(error) => return Err(refused(&error)),
            }
        }
        self.queue(queue, quorum_arguments(single_active)).await
    }

    pub(super) async fn queue(&mut self, queue: &str, arguments: FieldTable) -> Result<(), Error> {
        match self.try_queue(queue, arguments).await {
            Err(error) if channel::is_forbidden(&error) => self.must_exist(queue).await,
            declared => declared.map_err(|error| refused(&error)),
        }
    }

    /// Checks that an operator has declared a queue, where our user may not.
    async fn must_exist(&mut self, queue: &str) -> Result<(), Error> {
        self.channel = channel::open(self.connection).await?;
        if self.exists(queue).await? {
            return Ok(());
        }
        let reason =
            format!("the queue {queue} does not exist, and the user may not declare it (permission configure)");
        Err(Error::Misconfigured { reason })
    }

    async fn try_queue(&self, queue: &str, arguments: FieldTable) -> lapin::Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await.map(drop)
    }

    pub(super) async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), Error> {
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, arguments).await;
        bound.map_err(|error| refused(&error))
    }
}

/// Returns whether a declaration differs from an existing queue in its delivery limit.
fn differs_in_limit(error: &lapin::Error) -> bool {
    channel::soft_error(error) == Some(AMQPSoftError::PRECONDITIONFAILED)
        && channel::error_text(error).contains(DELIVERY_LIMIT)
}

fn quorum_arguments(single_active: bool) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    if single_active {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

fn journal_arguments(max_age: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-age".into(), AMQPValue::LongString(max_age.into()));
    arguments
}

/// Formats a duration for the broker: a number with the largest unit that divides it.
fn max_age(retention: Duration) -> String {
    let seconds = retention.as_secs().max(1);
    let units = [(86_400, 'D'), (3_600, 'h'), (60, 'm')];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)).unwrap_or((1, 's'));
    format!("{}{name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_formatted_with_the_largest_unit_that_divides_it() {
        for (seconds, written) in [(7 * 86_400, "7D"), (3_600, "1h"), (90 * 60, "90m"), (61, "61s"), (1, "1s")] {
            assert_eq!(max_age(Duration::from_secs(seconds)), written);
        }
    }
}
