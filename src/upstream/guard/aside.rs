//! Requests beside those for profiles.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::super::{Error, Requester};
use super::Guard;

impl<U> Guard<U> {
    /// Sends a request that no lookup waits for and that is about no contact: it spends the budget of `requester`, and
    /// waits for a pause and the breaker, which do not count it.
    pub(in crate::upstream) async fn aside<'a, T>(
        &'a self,
        requester: &Requester,
        patience: Duration,
        send: impl FnOnce(&'a U, Instant) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        self.with_admission(|state, now| state.check(now))?;
        self.spend(requester)?;
        let deadline = Instant::now() + patience;
        tokio::time::timeout_at(deadline, send(&self.inner, deadline)).await.unwrap_or(Err(Error::Timeout(None)))
    }
}
