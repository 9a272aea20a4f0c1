//! Waits for a key to change: by announcements on its channel, and by polling.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::domain::Key;
use crate::store::{Entry, Error, Token};

use super::pubsub::ChannelState;
use super::reply::{bytes, list};
use super::scripts::KeyNames;
use super::{Redis, record};

/// The first and the longest pause between two polls of a waiter that receives no announcement.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// The least pause before the poll of a lease that is about to expire.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

impl Redis {
    /// See [`Store::wait`](crate::store::Store::wait).
    pub(super) async fn wait_for_change(&self, key: &Key, seen: Token, deadline: Instant) {
        let names = KeyNames::of(key);
        let mut listener = self.announcements.listen(key.as_str());
        let (mut pause, longest) = POLL;
        let mut until = Instant::now() + pause;
        loop {
            match timeout_at(deadline.min(until), listener.next_state()).await {
                Ok(ChannelState::Changed) => return,
                // An announcement before the subscription was missed, so the key is polled once it is subscribed,
                // and whenever nothing is announced.
                Ok(ChannelState::Subscribed | ChannelState::Pending) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return;
            }
            let remaining = match self.remaining_work(&names, seen).await {
                Ok(Some(remaining)) => remaining.max(SHORTEST_PAUSE),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%key, %error, "a waiter could not poll its key");
                    longest
                }
            };
            until = Instant::now() + pause.min(remaining);
            pause = (pause * 2).min(longest);
        }
    }

    /// Returns for how long the entry with this token may stay and be worked on. Returns `None` if the key holds
    /// another entry, or if no lease holder works on it.
    async fn remaining_work(&self, names: &KeyNames<'_>, seen: Token) -> Result<Option<Duration>, Error> {
        let mut cmd = redis::cmd("MGET");
        cmd.arg(names.key).arg(&names.lock);
        let mut values = list(self.reads.send(&cmd).await?)?;
        let (lock, entry) = (values.pop().and_then(bytes), values.pop().and_then(bytes));
        let entry = entry.map(|bytes| record::decode(bytes.into()));
        Ok(match entry {
            Some(entry) if entry.token() != Some(seen) => None,
            // The holder's clock wrote this time, so it only paces the next poll.
            Some(Entry::Leased(leased)) => Some(leased.until.since(self.clock.now())),
            Some(Entry::Record(_) | Entry::Tombstone(_)) => lock.map(|_| Duration::MAX),
            Some(Entry::Corrupt(_)) | None => None,
        })
    }
}
