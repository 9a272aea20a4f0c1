//! The routing keys of events: `shard.`, and the number of the shard.

use std::fmt;

const PREFIX: &str = "shard.";

/// Returns the routing key of the events of a shard.
pub(super) fn routing_key(shard: impl fmt::Display) -> String {
    format!("{PREFIX}{shard}")
}

/// Returns the number of the shard in a routing key.
pub(super) fn shard_in(routing_key: &str) -> Option<&str> {
    routing_key.strip_prefix(PREFIX)
}
