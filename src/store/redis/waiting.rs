//! Waiting for a key to change: an ear at its channel, and a look from time to time.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::domain::Key;
use crate::store::{Entry, Error, Token};

use super::pubsub::Told;
use super::scripts::Names;
use super::{Redis, bytes, list, record, settle};

/// The shortest and the longest pause between two looks of a waiter to whom nothing is announced.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// The least pause before a look at a lease that is about to run out.
const MOMENT: Duration = Duration::from_millis(5);

impl Redis {
    /// See [`Store::wait`](crate::store::Store::wait).
    pub(super) async fn wait_for_change(&self, key: &Key, seen: Token, deadline: Instant) {
        let names = Names::of(key);
        let mut ear = self.announcements.listen(key.as_str());
        let (mut pause, longest) = POLL;
        let mut until = Instant::now() + pause;
        loop {
            match timeout_at(deadline.min(until), ear.told()).await {
                Ok(Told::Changed) => return,
                // A change before the subscription was not heard, so this is the time to look; the other is
                // when nothing is heard at all.
                Ok(Told::Subscribed | Told::Nothing) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return;
            }
            let runs_out = match self.is_awaited(&names, seen).await {
                Ok(Some(runs_out)) => runs_out.max(MOMENT),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%key, %error, "a waiter could not look");
                    longest
                }
            };
            until = Instant::now() + pause.min(runs_out);
            pause = (pause * 2).min(longest);
        }
    }

    /// Returns for how much longer K may hold what has this token with someone working on it; `None` when it does
    /// not hold it, or nobody does.
    async fn is_awaited(&self, names: &Names<'_>, seen: Token) -> Result<Option<Duration>, Error> {
        let mut cmd = redis::cmd("MGET");
        cmd.arg(names.key).arg(&names.lock);
        let mut values = list(self.lookups.send(&cmd).await.map_err(settle)?)?;
        let (lock, entry) = (values.pop().and_then(bytes), values.pop().and_then(bytes));
        let entry = entry.map(|bytes| record::decode(bytes.into()));
        Ok(match entry {
            Some(entry) if entry.token() != Some(seen) => None,
            // By its holder's clock, so this only paces the next look.
            Some(Entry::Leased(leased)) => Some(leased.until.since(self.clock.now())),
            Some(Entry::Record(_) | Entry::Tombstone(_)) => lock.map(|_| Duration::MAX),
            Some(Entry::Corrupt(_)) | None => None,
        })
    }
}
