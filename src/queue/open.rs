//! Picks the queue adapter that the configuration names.

use std::sync::Arc;

use serde::Deserialize;

use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::amqp::{self, Amqp};
use super::embedded::{self, Embedded};
use super::metered::Metered;
use super::{DeadLetters, Error, Publisher, Queue};

/// `[queue]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which adapter.
    pub kind: Kind,
    /// `[queue.embedded]`.
    pub embedded: embedded::Config,
    /// `[queue.amqp]`.
    pub amqp: amqp::Config,
}

/// The queue adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A durable log in a local file.
    Embedded,
    /// RabbitMQ.
    Amqp,
}

/// An open queue.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Takes events; measured.
    pub publisher: Arc<dyn Publisher>,
    /// Gives events.
    pub queue: Arc<dyn Queue>,
    /// What was given up on.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Closes both.
    pub closer: Closer,
}

/// Closes a queue: the last thing that is done with it.
#[derive(Clone, Debug)]
pub struct Closer(Adapter);

#[derive(Clone, Debug)]
enum Adapter {
    Embedded(Arc<Embedded>),
    Amqp(Arc<Amqp>),
}

impl Closer {
    /// Makes durable what was given and closes the queue, within a bounded time. Whoever consumes must
    /// have settled what it took; the tasks that the queue's [`Shutdown`] tracks end with this.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the queue could not be closed in good order.
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

/// Opens the configured queue; of a broker, once it can be published to, however long that takes. To be
/// called within a Tokio runtime.
///
/// # Errors
///
/// [`Error::Unavailable`] or [`Error::Misconfigured`], with a reason for the operator, when it cannot be
/// opened.
pub async fn open(
    config: &Config,
    clock: SharedClock,
    shutdown: &Shutdown,
    metrics: Arc<Metrics>,
) -> Result<Opened, Error> {
    match config.kind {
        Kind::Embedded => {
            let embedded = Embedded::open(&config.embedded, clock, shutdown)?;
            let publisher = Arc::new(Metered::new(embedded.clone(), metrics));
            let (queue, dead_letters) = (embedded.clone(), embedded.clone());
            Ok(Opened { publisher, queue, dead_letters, closer: Closer(Adapter::Embedded(embedded)) })
        }
        Kind::Amqp => {
            let amqp = Amqp::open(&config.amqp, clock, shutdown, Arc::clone(&metrics)).await?;
            let publisher = Arc::new(Metered::new(amqp.clone(), metrics));
            Ok(Opened {
                publisher,
                queue: amqp.clone(),
                dead_letters: amqp.clone(),
                closer: Closer(Adapter::Amqp(amqp)),
            })
        }
    }
}
