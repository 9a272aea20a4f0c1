//! The embedded queue: a durable log in a local file.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Deserialize;

/// `[queue.embedded]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of the log; made if it is not there.
    pub path: PathBuf,
    /// How many bytes of undelivered events are kept before publishers are refused.
    pub max_bytes: ByteSize,
}
