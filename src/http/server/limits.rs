//! `[http.limits]`: the limits of each listener and of one client.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use crate::invalid::InvalidSetting;

/// The number of file descriptors that stay free for everything else: Redis, RabbitMQ, the queue's files, operators.
const RESERVED_FILES: u64 = 1024;

/// `[http.limits]`; they apply to each of the two listeners.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionLimits {
    /// The maximum number of open connections.
    pub max_connections: usize,
    /// The maximum number of header fields of a request.
    pub max_headers: usize,
    /// The maximum size of a request's head (request line and headers).
    pub max_header_bytes: ByteSize,
    /// The maximum number of concurrent requests of one HTTP/2 connection.
    pub max_streams: u32,
    /// The timeout of a TLS handshake.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// The time within which a request's head must arrive.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// The time after which an idle connection is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl ConnectionLimits {
    /// Checks the ranges of the options.
    ///
    /// # Errors
    ///
    /// Returns the first option that is out of range.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |field, reason| Err(InvalidSetting::new(field, reason));
        if self.max_connections < 16 {
            return refuse("max_connections", "must be at least 16");
        }
        if !(16..=1000).contains(&self.max_headers) {
            return refuse("max_headers", "must be from 16 to 1000");
        }
        if !(8 << 10..=1 << 20).contains(&self.max_header_bytes.as_u64()) {
            return refuse("max_header_bytes", "must be from 8KiB to 1MiB");
        }
        if !(1..=10_000).contains(&self.max_streams) {
            return refuse("max_streams", "must be from 1 to 10000");
        }
        let times = [
            ("handshake_timeout", self.handshake_timeout),
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
        ];
        for (field, time) in times {
            if time.is_zero() {
                return refuse(field, "must be longer than zero");
            }
        }
        Ok(())
    }

    /// Returns the maximum size of a request's head, in bytes.
    pub(in crate::http) fn header_bytes(&self) -> u32 {
        // Validated to be at most 1 MiB.
        u32::try_from(self.max_header_bytes.as_u64()).unwrap_or(1 << 20)
    }
}

/// Raises this process' limit of open files as far as `wanted` connections need and the system allows. Returns the number
/// of connections that fit.
///
/// Otherwise a thousand idle clients could exhaust the common limit of 1,024 files, and the process could no longer open a
/// connection to Redis or a file of the queue.
#[must_use]
pub fn connections_that_fit(wanted: usize) -> usize {
    let needed = (wanted as u64).saturating_add(RESERVED_FILES);
    // If the limit is unknown, `accept` reports an exhausted one.
    let files = rlimit::increase_nofile_limit(needed).unwrap_or(needed);
    let room = usize::try_from(files - RESERVED_FILES.min(files / 2)).unwrap_or(usize::MAX);
    if room < wanted {
        tracing::warn!(
            files,
            wanted,
            connections = room,
            "the limit of open files allows fewer connections than configured"
        );
    }
    room.min(wanted)
}
