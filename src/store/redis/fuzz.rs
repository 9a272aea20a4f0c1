//! A door to the format of values, for the fuzz targets; behind a feature that no release build has.

use bytes::Bytes;

use crate::store::fence::Fence;
use crate::store::{Entry, Record};

use super::record;

/// Reads what stands at K.
#[must_use]
pub fn decode(bytes: Bytes) -> Entry {
    record::decode(bytes)
}

/// Writes a record.
#[must_use]
pub fn encode(record: &Record) -> Bytes {
    record::encode(record)
}

/// Reads the text of a fence.
#[must_use]
pub fn decode_fence(bytes: &[u8]) -> Option<Fence> {
    record::decode_fence(bytes)
}
