//! Notices: short messages that the processes which consume the same work queues send to each other.
//!
//! A notice goes to a fanout exchange, and so into a queue of each process, which reads it at its next exchange. The queue is
//! exclusive: it ends with its connection. Nothing is durable, and nothing is left when no process runs. A user who may not
//! declare these two gets none.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};

use crate::queue::Error;

use super::channel;
use super::connection::OpenConnection;

/// How many notices wait for a process at most, and how many it reads at once; the oldest are dropped.
const MAX_NOTICES: u16 = 100;

/// How many bytes of notices wait for a process at most.
const MAX_BYTES: i32 = 1 << 20;

/// Sends a notice, and returns those that have arrived on this connection since the last exchange, the own one included.
/// `None`: the user lacks a permission for it.
///
/// # Errors
///
/// [`Error::Unavailable`]: the broker fails.
pub(super) async fn exchange(
    open: &OpenConnection,
    exchange: &str,
    notice: &[u8],
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let channel = channel::open(open.connection()).await?;
    match send_and_read(&channel, exchange, &format!("{exchange}.{}", open.broker.id), notice).await {
        Ok(notices) => {
            channel::close(channel).await;
            Ok(Some(notices))
        }
        Err(error) if channel::is_forbidden(&error) => {
            let reason = channel::error_text(&error);
            tracing::info!(reason, "consumers of our queues that use another store will not be found");
            Ok(None)
        }
        Err(error) => Err(channel::unavailable(&error)),
    }
}

async fn send_and_read(channel: &Channel, exchange: &str, queue: &str, notice: &[u8]) -> lapin::Result<Vec<Vec<u8>>> {
    let transient = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, transient, FieldTable::default()).await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let mut bounds = FieldTable::default();
    bounds.insert("x-max-length".into(), AMQPValue::LongInt(MAX_NOTICES.into()));
    bounds.insert("x-max-length-bytes".into(), AMQPValue::LongInt(MAX_BYTES));
    channel.queue_declare(queue.into(), exclusive, bounds).await?;
    channel
        .queue_bind(queue.into(), exchange.into(), "".into(), QueueBindOptions::default(), FieldTable::default())
        .await?;
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), "".into(), options, notice, BasicProperties::default()).await?;
    let mut notices = Vec::new();
    for _ in 0..MAX_NOTICES {
        let Some(got) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await? else { break };
        notices.push(got.delivery.data);
    }
    Ok(notices)
}
