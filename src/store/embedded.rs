//! The embedded store: entries in this process' memory.

use bytesize::ByteSize;
use serde::Deserialize;

/// `[store.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much memory entries may take.
    pub max_bytes: ByteSize,
}
