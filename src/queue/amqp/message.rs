//! Messages: an event as a message of the broker, and the headers that this program and other clients write.

use std::borrow::Cow;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::domain::{Event, Traceparent};

use super::routing_key::routing_key;
use super::topology::Topology;

/// The header of the trace context (W3C).
const TRACEPARENT: &str = "traceparent";

/// The header of a redelivered event.
const REPLAYED: &str = "replayed";

/// The header with the number of times that an event was returned before it was published to the end of its queue.
const RETURNS: &str = "returns";

/// The headers in which the broker counts the deliveries of a message.
const COUNT_HEADERS: [&str; 2] = ["x-acquired-count", "x-delivery-count"];

/// The delivery count from which a message [is republished](nears_delivery_limit).
///
/// A policy, or the default of RabbitMQ 4 for a queue that an older broker created, can limit how often a message is
/// delivered. The broker counts consumers that end and, before 4.3, returns; beyond the limit it drops the message. No
/// sensible limit is as low as this.
const REPUBLISHED_FROM: u32 = 5;

/// The header of a marker.
pub(super) const MARKER: &str = "marker";

/// A message, ready to be published.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// The exchange; empty for the default one.
    pub(super) exchange: String,
    /// The routing key; for the default exchange, the name of a queue.
    pub(super) routing_key: String,
    /// The properties, with the headers.
    pub(super) properties: BasicProperties,
    /// The body.
    pub(super) body: Bytes,
}

impl Message {
    /// Creates the message of an event.
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
            // Consumers of an earlier version know only this header.
            mark_replayed(&mut headers);
        }
        if !headers.inner().is_empty() {
            properties = properties.with_headers(headers);
        }
        Self {
            exchange: topology.exchange.clone(),
            routing_key: routing_key(topology.shards.of(event)),
            properties,
            body: topology.keys.encode(event),
        }
    }

    /// Creates the message that brings a delivery to the end of its queue, with the number of its returns.
    pub(super) fn once_more(queue: &str, properties: BasicProperties, body: Vec<u8>, returns: u32) -> Self {
        let mut headers = properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
        // The broker adds these to what it delivers.
        headers.retain(|name, _| !COUNT_HEADERS.contains(&name.as_str()));
        headers.insert(RETURNS.into(), AMQPValue::LongLongInt(returns.into()));
        let properties = properties.with_headers(headers.into());
        Self { exchange: String::new(), routing_key: queue.to_owned(), properties, body: body.into() }
    }

    /// Creates a marker, which no reader of the journal takes for an event, on the way of events to the journal.
    pub(super) fn marker(id: &str, topology: &Topology) -> Self {
        let mut headers = FieldTable::default();
        headers.insert(MARKER.into(), AMQPValue::LongString(id.into()));
        let exchange = topology.exchange.clone();
        Self { exchange, ..Self::to_queue("marker", headers, Vec::new()) }
    }

    /// Creates a JSON message for one queue, through the default exchange.
    pub(super) fn to_queue(queue: &str, headers: FieldTable, body: Vec<u8>) -> Self {
        let properties = json_properties().with_headers(headers);
        Self { exchange: String::new(), routing_key: queue.to_owned(), properties, body: body.into() }
    }
}

/// Returns how often an event was delivered before.
pub(super) fn redelivered(properties: &BasicProperties) -> u32 {
    delivery_count(properties).saturating_add(returns(properties))
}

/// Returns whether a message is to be republished, because its delivery count could reach a delivery limit. A copy has a
/// delivery count of its own.
pub(super) fn nears_delivery_limit(properties: &BasicProperties) -> bool {
    delivery_count(properties) >= REPUBLISHED_FROM
}

/// Returns how often the broker delivered a message before. RabbitMQ 4 does not add a return to the delivery count, but counts
/// how often a message was acquired.
fn delivery_count(properties: &BasicProperties) -> u32 {
    COUNT_HEADERS.into_iter().map(|name| count(properties, name)).max().unwrap_or(0)
}

fn count(properties: &BasicProperties, name: &str) -> u32 {
    let count = match header(properties, name) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
        // Absent or not a number: this is the first delivery.
        None | Some(_) => 0,
    };
    u32::try_from(count).unwrap_or(if count > 0 { u32::MAX } else { 0 })
}

/// Returns how often an event was returned before it was published to the end of its queue.
fn returns(properties: &BasicProperties) -> u32 {
    match header(properties, RETURNS) {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).unwrap_or(0),
        Some(_) | None => 0,
    }
}

/// Returns the properties of a durable JSON message.
fn json_properties() -> BasicProperties {
    const PERSISTENT: u8 = 2;
    BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT)
}

/// Marks a message as redelivered.
pub(super) fn mark_replayed(headers: &mut FieldTable) {
    headers.insert(REPLAYED.into(), AMQPValue::Boolean(true));
}

/// Returns whether a message is marked as redelivered.
pub(super) fn is_replayed(properties: &BasicProperties) -> bool {
    matches!(header(properties, REPLAYED), Some(AMQPValue::Boolean(true)))
}

/// Returns the trace context in the header of a message, if it is valid.
pub(super) fn traceparent(properties: &BasicProperties) -> Option<Traceparent> {
    text_header(properties, TRACEPARENT)?.parse().ok()
}

/// Returns a header of a message.
pub(super) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// Returns a string header of a message; bytes that are not UTF-8 are replaced.
pub(super) fn text_header<'a>(properties: &'a BasicProperties, name: &str) -> Option<Cow<'a, str>> {
    match header(properties, name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::config;
    use crate::domain::{Redelivery, ReplayId};

    use super::*;

    #[test]
    fn redelivered_events_are_marked_for_consumers_of_an_earlier_version() {
        let topology = Topology::new(&config::from_toml("").unwrap().config.queue.amqp);
        for again in [
            None,
            Some(Redelivery::Redriven),
            Some(Redelivery::Restored),
            Some(Redelivery::Replayed(ReplayId::fresh())),
        ] {
            let event = Event { again, ..Event::example() };
            let message = Message::of_event(&event, &topology);
            assert_eq!(is_replayed(&message.properties), again.is_some(), "{again:?}");
        }
    }

    #[test]
    fn a_message_that_is_published_once_more_keeps_its_headers_and_its_count() {
        let topology = Topology::new(&config::from_toml("").unwrap().config.queue.amqp);
        let event = Event { again: Some(Redelivery::Restored), ..Event::example() };
        let first = Message::of_event(&event, &topology);
        assert_eq!(returns(&first.properties), 0);
        let again = Message::once_more("work", first.properties.clone(), first.body.to_vec(), 7);
        assert_eq!((again.routing_key.as_str(), &again.body), ("work", &first.body));
        assert!(is_replayed(&again.properties));
        assert_eq!((returns(&again.properties), again.properties.message_id()), (7, first.properties.message_id()));

        let mut counted = again.properties.headers().clone().unwrap();
        for name in COUNT_HEADERS {
            counted.insert(name.into(), AMQPValue::LongLongInt(6));
        }
        let counted = again.properties.with_headers(counted);
        assert_eq!(redelivered(&counted), 13);
        let again = Message::once_more("work", counted, Vec::new(), 13);
        assert_eq!((redelivered(&again.properties), is_replayed(&again.properties)), (13, true));
    }

    #[test]
    fn only_a_valid_trace_context_is_read_from_the_header() {
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |value: AMQPValue| {
            let mut headers = FieldTable::default();
            headers.insert(TRACEPARENT.into(), value);
            traceparent(&json_properties().with_headers(headers)).map(|read| read.to_string())
        };
        for valid in [AMQPValue::LongString(context.into()), AMQPValue::ShortString(context.into())] {
            assert_eq!(read(valid).as_deref(), Some(context));
        }
        for invalid in [AMQPValue::LongString("planted".into()), AMQPValue::LongString(vec![0xff; 55].into())] {
            assert_eq!(read(invalid), None);
        }
        assert_eq!(read(AMQPValue::Boolean(true)), None);
        assert_eq!(traceparent(&json_properties()), None);
    }
}
