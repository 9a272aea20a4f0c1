//! Survey: the state of the broker and of our queues on it, for `profile-edge doctor`. It creates and changes nothing.
//!
//! A broker with an alarm reports it only to connections that publish. So one message goes to a routing key of the default
//! exchange that no queue has; the broker drops it, and confirms it unless there is an alarm.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, Event};
use tokio::time::timeout;
use uuid::Uuid;

use crate::queue::Error;

use super::broker::Broker;
use super::channel::{self, is_absent, unavailable};
use super::config::Config;
use super::topology::{Declarer, Topology};

/// How long the broker may take to confirm the message that is dropped.
const CONFIRM_WITHIN: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// Host and port of the node.
    pub address: String,
    /// Its major version, if it is known.
    pub major: Option<u32>,
    /// Why the broker accepts no messages, if so.
    pub blocked: Option<String>,
    /// Our queues.
    pub queues: Vec<QueueState>,
}

/// One of our queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The name.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its messages and consumers; `None` if it does not exist.
    pub counts: Option<(u64, u64)>,
    /// The broker's text, if it differs from what this service declares.
    pub differs: Option<String>,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Events to apply.
    Work,
    /// Events that could not be applied.
    DeadLetters,
    /// Restores from the journal that are due.
    Restores,
    /// The stream of all events.
    Journal,
}

/// Connects and asks; all of it takes at most `patience`.
///
/// # Errors
///
/// The configuration is not usable, no node can be connected to, or the broker refuses the user.
pub async fn survey(config: &Config, patience: Duration) -> Result<Survey, Error> {
    channel::within(patience, ask(config)).await
}

/// Returns the names of our queues.
#[must_use]
pub fn queue_names(config: &Config) -> Vec<String> {
    ours(&Topology::new(config)).map(|(name, _)| name.clone()).collect()
}

/// Returns our queues, with what each is for.
fn ours(topology: &Topology) -> impl Iterator<Item = (&String, Purpose)> {
    let others = [
        (&topology.dead_letters, Purpose::DeadLetters),
        (&topology.restores, Purpose::Restores),
        (&topology.journal, Purpose::Journal),
    ];
    topology.work_queues().iter().map(|queue| (queue, Purpose::Work)).chain(others)
}

async fn ask(config: &Config) -> Result<Survey, Error> {
    let broker = Broker::new(config)?.connect().await?;
    let topology = Topology::new(config);
    let connection = &broker.connection;
    let mut queues = Vec::new();
    for (name, purpose) in ours(&topology) {
        queues.push(state(connection, name, purpose).await?);
    }
    for queue in queues.iter_mut().filter(|queue| queue.counts.is_some()) {
        queue.differs = difference(connection, &topology, broker.major, queue).await?;
    }
    let blocked = blocked(connection).await?;
    broker.close().await;
    Ok(Survey { address: broker.address.clone(), major: broker.major, blocked, queues })
}

async fn state(connection: &Connection, name: &str, purpose: Purpose) -> Result<QueueState, Error> {
    // A refusal closes the channel, so each queue has its own.
    let channel = channel::open(connection).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let counts = match channel.queue_declare(name.into(), options, FieldTable::default()).await {
        Ok(found) => {
            channel::close(channel).await;
            Some((found.message_count().into(), found.consumer_count().into()))
        }
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(channel::refused(&error)),
    };
    Ok(QueueState { name: name.to_owned(), purpose, counts, differs: None })
}

/// Declares an existing queue again, which has no effect if the declaration is the same, and otherwise is refused.
async fn difference(
    connection: &Connection,
    topology: &Topology,
    major: Option<u32>,
    queue: &QueueState,
) -> Result<Option<String>, Error> {
    let mut declarer = Declarer::new(connection).await?;
    declarer.has_default_limit = major.is_some_and(|major| major >= 4);
    let declared = match queue.purpose {
        Purpose::Journal => declarer.queue(&queue.name, topology.journal_arguments()).await,
        Purpose::Work | Purpose::DeadLetters => declarer.quorum(&queue.name, false).await,
        Purpose::Restores => declarer.quorum(&queue.name, true).await,
    };
    match declared {
        Ok(()) => Ok(None),
        Err(Error::Misconfigured { reason }) => Ok(Some(reason)),
        Err(error) => Err(error),
    }
}

/// Returns why the broker accepts no messages, if so.
async fn blocked(connection: &Connection) -> Result<Option<String>, Error> {
    let mut events = std::pin::pin!(connection.events_listener());
    let channel = channel::open(connection).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| unavailable(&error))?;
    let nowhere = format!("profile-edge.doctor.{}", Uuid::new_v4());
    let options = BasicPublishOptions::default();
    let confirm = channel
        .basic_publish("".into(), nowhere.as_str().into(), options, &[], BasicProperties::default())
        .await
        .map_err(|error| unavailable(&error))?;
    let alarm = async {
        while let Some(event) = events.next().await {
            if let Event::ConnectionBlocked(reason) = event {
                return reason;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        confirmed = timeout(CONFIRM_WITHIN, confirm) => match confirmed {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(error)) => Err(unavailable(&error)),
            Err(_elapsed) => Ok(Some("it confirms no message".to_owned())),
        },
        reason = alarm => Ok(Some(reason)),
    }
}
