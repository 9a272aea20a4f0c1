//! Who a caller is where callers share a resource ([`FairShares`](crate::shares::FairShares)).

use std::sync::Arc;

use crate::http::auth::callers::Caller;

impl Caller {
    /// Returns the user that this caller is where callers share a resource. The agents of a tenant are one.
    #[must_use]
    pub fn share(&self) -> Arc<str> {
        match (&self.agent, self.only_tenant()) {
            // No caller has such a name.
            (Some(_), Some(tenant)) => format!("{}/{tenant}", self.name).into(),
            (Some(_) | None, _) => Arc::clone(&self.name),
        }
    }
}
