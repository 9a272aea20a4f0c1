//! Access to the format of values for the fuzz targets. Behind a cargo feature that no release build has.

use bytes::Bytes;

use crate::store::fence::Fence;
use crate::store::{Entry, Record};

use super::record;

/// Decodes the value of an entry key.
#[must_use]
pub fn decode(bytes: Bytes) -> Entry {
    record::decode(bytes)
}

/// Encodes a record.
#[must_use]
pub fn encode(record: &Record) -> Bytes {
    record::encode(record)
}

/// Decodes the text of a fence.
#[must_use]
pub fn decode_fence(bytes: &[u8]) -> Option<Fence> {
    record::decode_fence(bytes)
}
