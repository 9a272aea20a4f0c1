//! Opens the queue adapter that the configuration selects.

use std::sync::Arc;

use serde::Deserialize;

use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::supervise::blocking;

use super::amqp::{self, Amqp, BrokerAbsence};
use super::embedded::{self, Embedded};
use super::metered::MeteredPublisher;
use super::outbox::{self, Outbox};
use super::shards::Shards;
use super::{DeadLetters, Error, Publisher, Queue};

/// `[queue]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The adapter.
    pub kind: QueueKind,
    /// `[queue.embedded]`.
    pub embedded: embedded::Config,
    /// `[queue.amqp]`.
    pub amqp: amqp::Config,
    /// `[queue.outbox]`.
    pub outbox: outbox::Config,
}

/// The queue adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueKind {
    /// A durable log in a local file.
    Embedded,
    /// RabbitMQ.
    Amqp,
}

/// An open queue, as its ports.
#[derive(Clone, Debug)]
pub struct OpenQueue {
    /// Accepts events, into the outbox if there is one and the broker does not confirm them; measured.
    pub publisher: Arc<dyn Publisher>,
    /// Accepts events, and never into the outbox: for those that are in the broker's journal.
    pub direct: Arc<dyn Publisher>,
    /// The outbox, if there is one.
    pub outbox: Option<Arc<Outbox>>,
    /// Delivers events.
    pub queue: Arc<dyn Queue>,
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Closes the queue.
    pub closer: QueueCloser,
}

/// Closes a queue. This is the last operation on it.
#[derive(Clone, Debug)]
pub struct QueueCloser(Adapter);

#[derive(Clone, Debug)]
enum Adapter {
    Embedded(Arc<Embedded>),
    Amqp(Arc<Amqp>, Option<Arc<Outbox>>),
}

impl QueueCloser {
    /// Makes accepted events durable and closes the queue, within a bounded time. The consumer must have settled its
    /// deliveries before. The tasks that the queue's [`Shutdown`] tracks end with this.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the queue could not be closed cleanly.
    pub async fn close(&self) -> Result<(), Error> {
        match &self.0 {
            Adapter::Embedded(embedded) => embedded.close().await,
            Adapter::Amqp(amqp, outbox) => {
                let closed = match outbox {
                    Some(outbox) => outbox.close().await,
                    None => Ok(()),
                };
                amqp.close().await;
                closed
            }
        }
    }
}

/// Opens the configured queue. With a broker it returns once publishing works, without a time limit; with an outbox, after
/// the first attempt to connect. To be called within a Tokio runtime.
///
/// # Errors
///
/// [`Error::Unavailable`] or [`Error::Misconfigured`], with a reason for the operator, when the queue cannot be
/// opened.
pub async fn open(
    config: &Config,
    clock: SharedClock,
    shutdown: &Shutdown,
    metrics: Arc<Metrics>,
) -> Result<OpenQueue, Error> {
    match config.kind {
        QueueKind::Embedded => {
            let (config, shutdown) = (config.embedded.clone(), shutdown.clone());
            let embedded = open_file(move || Embedded::open(&config, clock, &shutdown)).await?;
            let publisher = Arc::new(MeteredPublisher::new(embedded.clone(), metrics));
            Ok(OpenQueue {
                publisher: publisher.clone(),
                direct: publisher,
                outbox: None,
                queue: embedded.clone(),
                dead_letters: embedded.clone(),
                closer: QueueCloser(Adapter::Embedded(embedded)),
            })
        }
        QueueKind::Amqp => {
            let (log, absence) = if config.outbox.enabled {
                let (config, clock, shutdown) = (config.outbox.clone(), Arc::clone(&clock), shutdown.clone());
                (Some(open_file(move || config.open(clock, &shutdown)).await?), BrokerAbsence::GoOn)
            } else {
                (None, BrokerAbsence::Wait)
            };
            let amqp = Amqp::open(&config.amqp, absence, Arc::clone(&clock), shutdown, Arc::clone(&metrics)).await?;
            let direct: Arc<dyn Publisher> = Arc::new(MeteredPublisher::new(amqp.clone(), metrics));
            let outbox = match log {
                Some(log) => {
                    let shards = Shards::new(config.amqp.shards);
                    Some(Outbox::start(&config.outbox, log, Arc::clone(&direct), shards, clock, shutdown).await?)
                }
                None => None,
            };
            let publisher = outbox.clone().map_or_else(|| Arc::clone(&direct), |outbox| outbox as Arc<dyn Publisher>);
            Ok(OpenQueue {
                publisher,
                direct,
                outbox: outbox.clone(),
                queue: amqp.clone(),
                dead_letters: amqp.clone(),
                closer: QueueCloser(Adapter::Amqp(amqp, outbox)),
            })
        }
    }
}

/// Opens a file of events on a thread that may block: a large file that was not closed cleanly takes long to check.
async fn open_file(
    open: impl FnOnce() -> Result<Arc<Embedded>, Error> + Send + 'static,
) -> Result<Arc<Embedded>, Error> {
    blocking(open).await
}
