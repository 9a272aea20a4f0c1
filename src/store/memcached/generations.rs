//! The generations of tenants: one key, with a line `tenant|soft|hard` for each tenant that was cleared.

use std::collections::HashMap;

use crate::domain::TenantId;
use crate::store::{ClearMode, Error, Generations};

use super::Memcached;
use super::protocol::{Condition, Requests, Stored};

/// The key.
const KEY: &str = "cust:cleared";

impl Memcached {
    /// See [`Inspect::clear`](crate::store::Inspect::clear).
    pub(super) async fn raise_generations(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        let session = self.node_of(KEY).events.session()?;
        loop {
            let [found] = session.run(Requests::default().get(KEY)).await?;
            let found = found.value()?;
            let mut all = found.as_ref().map(parse).unwrap_or_default();
            let known = all.entry(tenant.clone()).or_default();
            *known = known.cleared(mode, self.clock.now());
            let line =
                |(tenant, of): (&TenantId, &Generations)| format!("{}|{}|{}\n", tenant.as_str(), of.soft, of.hard);
            let text: String = all.iter().map(line).collect();
            let unchanged = found.map_or(Condition::Absent, |found| Condition::Unchanged(found.version));
            let [written] = session.run(Requests::default().set(KEY, text.as_bytes(), None, unchanged)).await?;
            if written.done()?.is_some() {
                return Ok(());
            }
            session.try_again()?;
        }
    }

    /// See [`Inspect::generations`](crate::store::Inspect::generations).
    pub(super) async fn read_generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        let session = self.node_of(KEY).lookups.session()?;
        let [found] = session.run(Requests::default().get(KEY)).await?;
        Ok(found.value()?.as_ref().map(parse).unwrap_or_default())
    }
}

/// Reads the lines. One that cannot be read is somebody else's.
fn parse(stored: &Stored) -> HashMap<TenantId, Generations> {
    let line = |line: &str| {
        let mut parts = line.split('|');
        let tenant = parts.next()?.parse().ok()?;
        let mut number = || parts.next()?.parse().ok();
        Some((tenant, Generations { soft: number()?, hard: number()? }))
    };
    std::str::from_utf8(&stored.value).unwrap_or_default().lines().filter_map(line).collect()
}
