//! The generations of tenants: one hash, with `soft|hard` for each tenant that was cleared.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Cmd, Value};

use crate::domain::TenantId;
use crate::store::{ClearMode, Error, Generations};

use super::Redis;
use super::reply::{bytes, unexpected};
use super::scripts::CLEAR;

/// The key of the hash.
const KEY: &str = "cust:cleared";

/// How long the hash is kept after the last clear: longer than any record lives.
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);

impl Redis {
    /// See [`Inspect::clear`](crate::store::Inspect::clear).
    pub(super) async fn raise_generations(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        let call = |mut cmd: Cmd| {
            cmd.arg(1).arg(KEY).arg(tenant.as_str()).arg(self.clock.now().as_millis());
            cmd.arg(match mode {
                ClearMode::Soft => "soft",
                ClearMode::Hard => "hard",
            });
            cmd.arg(super::record::lifetime(LIFETIME));
            cmd
        };
        CLEAR.run(|cmd| self.send_change(call(cmd))).await?;
        Ok(())
    }

    /// See [`Inspect::generations`](crate::store::Inspect::generations).
    pub(super) async fn read_generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(KEY);
        let members = match self.reads.send(&cmd).await? {
            Value::Map(members) => members,
            Value::Array(flat) => {
                let mut flat = flat.into_iter();
                std::iter::from_fn(|| flat.next().zip(flat.next())).collect()
            }
            _ => return Err(unexpected()),
        };
        // A member that cannot be read is somebody else's.
        Ok(members.into_iter().filter_map(|(tenant, value)| read(bytes(tenant)?, bytes(value)?)).collect())
    }
}

fn read(tenant: Vec<u8>, value: Vec<u8>) -> Option<(TenantId, Generations)> {
    let value = String::from_utf8(value).ok()?;
    let (soft, hard) = value.split_once('|')?;
    let generations = Generations { soft: soft.parse().ok()?, hard: hard.parse().ok()? };
    Some((String::from_utf8(tenant).ok()?.parse().ok()?, generations))
}
