//! Headers of messages, as ours and others' clients write them.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::AMQPValue;

/// Returns a header of a message.
pub(super) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// Returns a header of a message that is a text; what in it is no UTF-8 is replaced.
pub(super) fn text<'a>(properties: &'a BasicProperties, name: &str) -> Option<Cow<'a, str>> {
    match header(properties, name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        _ => None,
    }
}
