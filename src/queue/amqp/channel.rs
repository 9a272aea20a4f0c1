//! Channels: short operations on the broker, with its errors as those of the queue.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, ErrorKind};
use tokio::time::timeout;

use crate::queue::Error;

/// How many channels in a row may have the number of one that failed.
const FAILED_NUMBERS: usize = 8;

/// Opens a channel. The library keeps the error that closed a channel, and returns it when the number of that channel is used
/// again, some 2,000 channels later (lapin 4.12). So the next number is tried.
pub(super) async fn open(connection: &Connection) -> Result<Channel, Error> {
    let mut opened = connection.create_channel().await;
    for _ in 0..FAILED_NUMBERS {
        if opened.is_ok() || !connection.status().connected() {
            break;
        }
        opened = connection.create_channel().await;
    }
    opened.map_err(|error| unavailable(&error))
}

/// Closes a channel. One that cannot be closed cleanly is closed when it is dropped.
pub(super) async fn close(channel: Channel) {
    let _ = channel.close(200, "done".into()).await;
}

/// Limits the wait for an answer of the broker.
pub(super) async fn within<T>(patience: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = |_elapsed| Error::Unavailable { reason: "the broker did not answer in time".to_owned() };
    timeout(patience, answer).await.map_err(silent)?
}

/// Declares a queue passively: succeeds if it exists. Returns how many messages wait in it.
pub(super) async fn declare_passive(channel: &Channel, queue: &str) -> lapin::Result<u64> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(found.message_count().into())
}

/// Returns how many messages wait in a queue.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<u64, Error> {
    declare_passive(channel, queue).await.map_err(|error| unavailable(&error))
}

/// Sets how many unacknowledged messages each later consumer of the channel may have.
pub(super) async fn prefetch(channel: &Channel, messages: u16) -> Result<(), Error> {
    channel.basic_qos(messages, BasicQosOptions::default()).await.map_err(|error| unavailable(&error))
}

/// Starts a consumer of a queue.
pub(super) async fn consume(channel: &Channel, queue: &str, arguments: FieldTable) -> Result<Consumer, Error> {
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.map_err(|error| unavailable(&error))
}

/// Acknowledges a message.
pub(super) async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), Error> {
    channel.basic_ack(tag, BasicAckOptions::default()).await.map_err(|error| unavailable(&error))
}

/// Acknowledges all messages up to a tag.
pub(super) async fn acknowledge_up_to(channel: &Channel, tag: u64) -> Result<(), Error> {
    let acknowledged = channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
    acknowledged.map_err(|error| unavailable(&error))
}

/// Converts a failure of the broker, with the text of the library, which contains no event and no URL.
pub(super) fn unavailable(error: &lapin::Error) -> Error {
    Error::Unavailable { reason: error.to_string() }
}

/// Converts the failure of a declaration. A refusal is final; any other failure may be temporary.
pub(super) fn refused(error: &lapin::Error) -> Error {
    match soft_error(error) {
        Some(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::ACCESSREFUSED) => {
            Error::Misconfigured { reason: error_text(error) }
        }
        Some(_) | None => unavailable(error),
    }
}

/// Returns whether a queue does not exist. The broker uses the same code for a queue whose node is down.
pub(super) fn is_absent(error: &lapin::Error) -> bool {
    soft_error(error) == Some(AMQPSoftError::NOTFOUND) && error_text(error).contains("no queue")
}

/// Returns whether our user lacks a permission.
pub(super) fn is_forbidden(error: &lapin::Error) -> bool {
    soft_error(error) == Some(AMQPSoftError::ACCESSREFUSED)
}

/// Returns the soft error (AMQP 0-9-1, 1.2) that closed a channel.
pub(super) fn soft_error(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// Returns the broker's text for an error.
pub(super) fn error_text(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}
