//! Faults that break the lookup on purpose, so that tests can prove that they detect the breakage. They exist only
//! with the cargo feature `faults`, which no release build has.

use crate::faults::Fault;
use crate::store::{Base, LeaseAnswer, Record, Token};

use super::leader::FetchTask;

impl FetchTask {
    /// The fault [`Fault::FillWithoutLease`]: writes a record whose fill was refused because an event had deleted the
    /// lease.
    pub(super) async fn fill_despite_refusal(&self, mut record: Record) {
        let deps = &self.context.deps;
        if !deps.faults.is_armed(Fault::FillWithoutLease) {
            return;
        }
        let (key, token) = (self.identity.key(), Token::draw());
        if let Ok(LeaseAnswer::Granted(lease)) =
            deps.store.lease(&key, &Base::Absent, token, self.config.lease_ttl).await
        {
            record.token = token;
            let _ = deps.store.fill(lease, record).await;
        }
    }
}
