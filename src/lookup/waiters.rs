//! Waiters: whoever must wait for another process' fetch does so through one task per process and key.
//!
//! However many lookups of this process meet the same foreign lease, one task waits in the store, and when K
//! has changed it looks once for all of them (DESIGN section 2, rule 11). Its look is as good as their own: it
//! is begun after the last of them has joined, so everything that was applied before any of them began is in
//! it. Who comes later starts another wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Key;
use crate::shutdown::Shutdown;
use crate::store::{self, Entry, Store, Token};

use super::single_flight::{Flights, Leader, Seat};

/// What stood at K after the wait.
pub(super) type Glimpse = Result<Option<Entry>, store::Error>;

/// The waits under way in this process.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    flights: Flights<Glimpse>,
}

impl Waiters {
    /// Takes a seat in the wait for the change of what has `seen` as its token at K; the wait itself ends
    /// after `patience` at the latest, and then tells what stands there.
    pub(super) fn join(
        &self,
        key: &Key,
        seen: Token,
        patience: Duration,
        store: &Arc<dyn Store>,
        shutdown: &Shutdown,
    ) -> Seat<Glimpse> {
        let (leader, seat) = self.flights.board(key, seen);
        if let Some(leader) = leader {
            let (store, key, deadline) = (Arc::clone(store), key.clone(), Instant::now() + patience);
            shutdown.spawn(async move { wait(store.as_ref(), &key, seen, deadline, leader).await });
        }
        seat
    }
}

async fn wait(store: &dyn Store, key: &Key, seen: Token, deadline: Instant, leader: Leader<Glimpse>) {
    store.wait(key, seen, deadline).await;
    leader.leave();
    leader.land(store.get(key).await);
}
