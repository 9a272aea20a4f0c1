//! The probe: does in every part of Redis what lookups and events do there.
//!
//! A `PING` is answered by a server that takes no writes: one that is full, read-only, without its replicas, without a
//! disk, or whose user lost a permission. So the probe uses each of the three connections: it reads a key as a hit does, and
//! runs a script that writes that key and removes it, as a miss does, and as an event does, with its `WAIT`. In a cluster it
//! does so in each of the [`RANGES`] of slots, so that every master with a whole range is probed. The keys are those of a
//! tenant that has no customers; they never stay.

use std::sync::LazyLock;

use futures_util::future::{join_all, try_join};
use redis::Cmd;

use crate::store::Error;

use super::Redis;
use super::scripts::PROBE;
use super::server_connection::SILENT;
use super::slots::{SLOTS, slot_of};

/// How many ranges of slots are probed in a cluster.
const RANGES: usize = 64;

/// One key in each range of slots, by the number of the range.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut found = vec![None; RANGES];
    let mut missing = RANGES;
    for n in 0_u32.. {
        if missing == 0 {
            break;
        }
        let key = format!("cust:profile:.:probe-{n}");
        let place = &mut found[slot_of(key.as_bytes()) * RANGES / SLOTS];
        if place.is_none() {
            *place = Some(key);
            missing -= 1;
        }
    }
    found.into_iter().flatten().collect()
});

impl Redis {
    /// See [`Inspect::ping`](crate::store::Inspect::ping).
    pub(super) async fn probe(&self) -> Result<(), Error> {
        let keys = if self.is_cluster() { &KEYS[..] } else { &KEYS[..1] };
        let results = join_all(keys.iter().map(|key| self.probe_part(key))).await;
        let works = results.iter().any(Result::is_ok);
        match results.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(Error::Unavailable { reason } | Error::Rejected { reason }) if works => Err(Error::Partial { reason }),
            Some(error) => Err(error),
        }
    }

    async fn probe_part(&self, key: &str) -> Result<(), Error> {
        let mut read = redis::cmd("GET");
        read.arg(key);
        self.reads.send(&read).await?;
        let call = |mut cmd: Cmd| {
            cmd.arg(1).arg(key);
            cmd
        };
        let by_lookup = PROBE.run(|cmd| self.send_of_lookup(call(cmd)));
        let by_event = PROBE.run(|cmd| self.send_change(call(cmd)));
        let written = try_join(by_lookup, by_event).await;
        match written.map_err(Error::from) {
            // The read above was answered.
            Err(Error::Unavailable { reason }) if reason.ends_with(SILENT) => Err(Error::Unavailable {
                reason: format!("{SILENT} writes, but reads (CLIENT PAUSE WRITE, or a failover is under way)"),
            }),
            written => written.map(drop),
        }
    }
}
