//! Opens the queue adapter that the configuration selects.

use std::panic::resume_unwind;
use std::sync::Arc;

use serde::Deserialize;
use tokio::task::spawn_blocking;

use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::amqp::{self, Amqp};
use super::embedded::{self, Embedded};
use super::metered::MeteredPublisher;
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
    /// Accepts events; measured.
    pub publisher: Arc<dyn Publisher>,
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
    Amqp(Arc<Amqp>),
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
            Adapter::Amqp(amqp) => {
                amqp.close().await;
                Ok(())
            }
        }
    }
}

/// Opens the configured queue. With a broker it returns once publishing works, without a time limit. To be called
/// within a Tokio runtime.
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
            // A large file that was not closed cleanly takes long to check.
            let (config, shutdown) = (config.embedded.clone(), shutdown.clone());
            let opening = spawn_blocking(move || Embedded::open(&config, clock, &shutdown));
            let embedded = opening.await.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))?;
            let publisher = Arc::new(MeteredPublisher::new(embedded.clone(), metrics));
            let (queue, dead_letters) = (embedded.clone(), embedded.clone());
            Ok(OpenQueue { publisher, queue, dead_letters, closer: QueueCloser(Adapter::Embedded(embedded)) })
        }
        QueueKind::Amqp => {
            let amqp = Amqp::open(&config.amqp, clock, shutdown, Arc::clone(&metrics)).await?;
            let publisher = Arc::new(MeteredPublisher::new(amqp.clone(), metrics));
            Ok(OpenQueue {
                publisher,
                queue: amqp.clone(),
                dead_letters: amqp.clone(),
                closer: QueueCloser(Adapter::Amqp(amqp)),
            })
        }
    }
}
