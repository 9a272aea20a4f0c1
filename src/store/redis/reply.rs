//! Reads the replies of Redis.

use redis::Value;

use crate::store::{Error, Token};

/// Returns the error for a reply of the wrong type.
pub(super) fn unexpected() -> Error {
    Error::Rejected { reason: "the reply has an unexpected type".to_owned() }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

pub(super) fn token(value: Value) -> Option<Token> {
    bytes(value)?.try_into().ok().map(Token::from_bytes)
}
