//! Settlements: what the consumer decided about deliveries, as frames to the broker.

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio_util::sync::CancellationToken;

use crate::queue::Error;

use super::channel;
use super::connection::OpenConnection;
use super::ledger::Ledger;
use super::returned::{ReturnStep, ReturnedDelivery};

/// The settlement of a delivery, by its tag.
#[derive(Debug)]
pub(super) enum DeliverySettlement {
    /// Remove the event from the queue.
    Ack(u64),
    /// Deliver the event again later.
    Return(Box<ReturnedDelivery>),
}

/// Sends acknowledgements to the broker, and passes returned deliveries to `on_return`.
pub(super) async fn send_settlements(
    channel: &Channel,
    ledger: &mut Ledger,
    settlements: &mut Vec<(CancellationToken, DeliverySettlement)>,
    mut on_return: impl FnMut(ReturnedDelivery),
) -> lapin::Result<()> {
    let mut tags = Vec::with_capacity(settlements.len());
    for (of, settlement) in settlements.drain(..) {
        match settlement {
            _ if of.is_cancelled() => {}
            DeliverySettlement::Ack(tag) => tags.push(tag),
            DeliverySettlement::Return(delivery) => on_return(*delivery),
        }
    }
    for ack in ledger.acknowledged(tags) {
        channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
    }
    Ok(())
}

/// Waits until a frame is sent or the connection ends. A broker that does not read would block the send forever.
pub(super) async fn unless_ended(
    open: &OpenConnection,
    sending: impl Future<Output = lapin::Result<()>>,
) -> Result<(), Error> {
    tokio::select! {
        sent = sending => sent.map_err(|error| channel::unavailable(&error)),
        () = open.ended() => Err(Error::Unavailable { reason: "the connection ended".to_owned() }),
    }
}

/// Settles a returned delivery with the broker.
pub(super) async fn settle_returned(channel: &Channel, ledger: &mut Ledger, step: ReturnStep) -> lapin::Result<()> {
    match step {
        ReturnStep::Requeue(tag) if ledger.returned(tag) => {
            channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await
        }
        ReturnStep::Requeue(_) | ReturnStep::HandedOn => Ok(()),
        ReturnStep::Acknowledge(tag) => {
            for ack in ledger.acknowledged(vec![tag]) {
                channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await?;
            }
            Ok(())
        }
    }
}
