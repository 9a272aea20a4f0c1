//! Waiters: waiting for the fetch of another process, with one task per process and key.
//!
//! [`rules::waiters`](crate::rules#waiters): any number of lookups of this process may read the same foreign lease.
//! One task waits in the store for all of them, and reads the entry once when it has changed. That read serves each of
//! them: it starts after the last of them has joined, so it includes every event that was applied before any of them
//! began. A lookup that comes later starts another wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Key;
use crate::shutdown::Shutdown;
use crate::store::{self, Entry, Store, Token};

use super::single_flight::{Flights, Follower, Leader};

/// The entry that was read after the wait.
pub(super) type EntryRead = Result<Option<Entry>, store::Error>;

/// The waits of this process.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    flights: Flights<EntryRead>,
}

impl Waiters {
    /// Joins the wait for the change of the entry with the token `seen`. The task waits for at most `max_wait`, and
    /// then returns the entry as it is.
    pub(super) fn join(
        &self,
        key: &Key,
        seen: Token,
        max_wait: Duration,
        store: &Arc<dyn Store>,
        shutdown: &Shutdown,
    ) -> Follower<EntryRead> {
        let (leader, follower) = self.flights.join_or_start(key, seen);
        if let Some(leader) = leader {
            let (store, key, deadline) = (Arc::clone(store), key.clone(), Instant::now() + max_wait);
            shutdown.spawn(async move { wait(store.as_ref(), &key, seen, deadline, leader).await });
        }
        follower
    }
}

async fn wait(store: &dyn Store, key: &Key, seen: Token, deadline: Instant, leader: Leader<EntryRead>) {
    store.wait(key, seen, deadline).await;
    // Before the read: a lookup that begins after the read must not get its result.
    leader.close();
    leader.complete(store.get(key).await);
}
