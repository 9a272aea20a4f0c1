//! Waits for a key to change by polling: Memcached announces nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::domain::Key;
use crate::store::{Entry, Error, Token};

use super::Memcached;
use super::protocol::Requests;
use super::values::{KeyNames, lock};

/// The first and the longest pause between two polls.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// The least pause before the poll of a lease that is about to expire.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

impl Memcached {
    /// See [`Store::wait`](crate::store::Store::wait).
    pub(super) async fn wait_for_change(&self, key: &Key, seen: Token, deadline: Instant) {
        let (mut pause, longest) = POLL;
        loop {
            let remaining = match self.remaining_work(key, seen).await {
                Ok(Some(remaining)) => remaining.max(SHORTEST_PAUSE),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%key, %error, "a waiter could not poll its key");
                    longest
                }
            };
            let until = Instant::now() + pause.min(remaining);
            sleep_until(until.min(deadline)).await;
            if Instant::now() >= deadline {
                return;
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Returns for how long the entry with this token may stay and be worked on. Returns `None` if the key holds
    /// another entry, or if no lease holder works on it.
    async fn remaining_work(&self, key: &Key, seen: Token) -> Result<Option<Duration>, Error> {
        let (session, names) = (self.node(key).lookups.session()?, KeyNames::of(key));
        let [at_key, at_lock] = session.run(Requests::default().get(names.key).get(&names.lock)).await?;
        let now = self.clock.now();
        let entry = self.entry(key, at_key.value()?.as_ref(), now).value;
        let locked = lock(at_lock.value()?.as_ref(), now).value;
        Ok(match entry {
            Some(entry) if entry.token() != Some(seen) => None,
            Some(Entry::Leased(leased)) => Some(leased.until.since(now)),
            Some(Entry::Record(_) | Entry::Tombstone(_)) => locked.map(|leased| leased.until.since(now)),
            Some(Entry::Corrupt(_)) | None => None,
        })
    }
}
