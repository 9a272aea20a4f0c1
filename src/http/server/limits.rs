//! `[http.limits]`: what one client may take of a listener.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use crate::invalid::InvalidSetting;

/// How many files stay free for everything that is no client's connection: links, queues, operators.
const RESERVED_FILES: u64 = 1024;

/// `[http.limits]`; of both listeners, each by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How many connections may be open at once.
    pub max_connections: usize,
    /// How many header fields a request may have.
    pub max_headers: usize,
    /// How large the head of a request may be.
    pub max_header_bytes: ByteSize,
    /// How many requests of one HTTP/2 connection may be under way at once.
    pub max_streams: u32,
    /// How long a TLS handshake may take.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// How long the head of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a connection may be open with nothing to do.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

impl Limits {
    /// Checks what the types cannot.
    ///
    /// # Errors
    ///
    /// Names the first option that is out of its range.
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

    /// Returns the largest head of a request, in bytes.
    pub(in crate::http) fn header_bytes(&self) -> u32 {
        // Validated to be at most 1 MiB.
        u32::try_from(self.max_header_bytes.as_u64()).unwrap_or(1 << 20)
    }
}

/// Raises the limit of this process' open files as far as `wanted` connections need and the system allows; returns
/// how many of them fit.
///
/// Without this, a common limit of 1,024 files would be spent by a thousand idle clients, and then nothing could be
/// opened any more: no link to Redis, no file of the queue.
#[must_use]
pub fn connections_that_fit(wanted: usize) -> usize {
    let needed = (wanted as u64).saturating_add(RESERVED_FILES);
    // Where it cannot be known, accepting will tell.
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
