//! Clears: an operator marks every record of a tenant as due for refresh (soft), or as missing (hard).
//!
//! No record is searched or deleted. Each record has the *generation* in which it was fetched, and the store keeps, for each
//! tenant, the first generation that is up to date and the first that may be served ([`Generations`]). A clear raises them.
//! Every process reads them again each `READ_EVERY`, so that a hit costs no second read, and every lookup obeys a clear
//! within a second. A fetch uses the generation that its process knew before the request was sent: at worst a record that
//! was fetched just after a clear is fetched once more.
//!
//! A generation is the time of the clear in milliseconds, but above every earlier generation; it is only compared with other
//! generations. If the store loses them, no further record is refreshed or refused, until the next clear.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::domain::{TenantId, Timestamp};
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

use super::Inspect;

/// How often each process reads the generations.
const READ_EVERY: Duration = Duration::from_millis(500);

/// The generations of a tenant's records; zero for a tenant that was never cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// Records of earlier generations are due for refresh. It is also the generation of new records.
    pub soft: u64,
    /// Records of earlier generations are not served; at most `soft`.
    pub hard: u64,
}

/// How a tenant is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClearMode {
    /// Records are served while they are refreshed.
    Soft,
    /// Records count as missing.
    Hard,
}

/// The generations of all tenants, as this process knows them. Clones share them.
#[derive(Clone, Debug)]
pub struct Clears(Reloadable<HashMap<TenantId, Generations>>);

impl Default for Clears {
    fn default() -> Self {
        Self(Reloadable::new(HashMap::new()))
    }
}

impl Generations {
    /// Returns the generations after a clear at this time.
    #[must_use]
    pub fn cleared(self, mode: ClearMode, now: Timestamp) -> Self {
        let soft = u64::try_from(now.as_millis()).unwrap_or_default().max(self.soft + 1);
        Self { soft, hard: if mode == ClearMode::Hard { soft } else { self.hard } }
    }

    fn max(self, other: Self) -> Self {
        Self { soft: self.soft.max(other.soft), hard: self.hard.max(other.hard) }
    }
}

impl Clears {
    /// Returns the generations of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Generations {
        self.0.load().get(tenant).copied().unwrap_or_default()
    }

    /// Reads the generations from the store. If it does not answer, they stay as they are.
    pub async fn read(&self, store: &dyn Inspect) {
        let Ok(mut read) = store.generations().await else { return };
        let known = self.0.keep();
        for (tenant, generations) in &*known {
            let read = read.entry(tenant.clone()).or_default();
            *read = read.max(*generations);
        }
        if read != *known {
            self.0.replace(read);
        }
    }

    /// Reads the generations again and again, until shutdown.
    pub async fn follow(self, store: Arc<dyn Inspect>, shutdown: Shutdown) {
        while timeout(READ_EVERY, shutdown.requested()).await.is_err() {
            self.read(&*store).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clear_raises_the_generations_whatever_the_clock_does() {
        let at = Timestamp::from_millis;
        let soft = Generations::default().cleared(ClearMode::Soft, at(100));
        assert_eq!(soft, Generations { soft: 100, hard: 0 });
        let hard = soft.cleared(ClearMode::Hard, at(50));
        assert_eq!(hard, Generations { soft: 101, hard: 101 });
        assert_eq!(hard.cleared(ClearMode::Soft, at(200)), Generations { soft: 200, hard: 101 });
    }
}
