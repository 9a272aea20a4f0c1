//! What events do to tombstones: write one, or leave one. `apply` says why in these steps.

use crate::domain::{Key, Timestamp};
use crate::store::{Entry, Error, Leased, Token, record};

use super::connection::Session;
use super::protocol::{Condition, Requests};
use super::values::{Held, KeyNames, StoredFence, fence, server_lifetime};
use super::{MARKER, Memcached};

/// What became of a tombstone.
pub(super) enum Placed {
    Done,
    /// The fence was lost, so it must be raised again.
    FenceLost,
}

impl Memcached {
    /// Leaves a tombstone, but voids what verifies it; deletes any other entry.
    pub(super) async fn keep_tombstone(
        &self,
        session: &Session<'_>,
        (key, names): (&Key, &KeyNames<'_>),
        now: Timestamp,
    ) -> Result<(), Error> {
        loop {
            let [_, at_key] = session.run(Requests::default().delete(&names.lock).get(names.key)).await?;
            let Some(stored) = at_key.value()? else { return Ok(()) };
            let requests = match self.entry(key, Some(&stored), now).value {
                Some(Entry::Tombstone(found)) => {
                    let lifetime = Some(self.tombstone_lifetime(found.written_at, now));
                    Requests::default().set(names.key, &stored.value, lifetime, Condition::Unchanged(stored.version))
                }
                _ => Requests::default().delete_unchanged(names.key, stored.version),
            };
            let [done] = session.run(requests).await?;
            if done.done()?.is_some() {
                return Ok(());
            }
            session.try_again()?;
        }
    }

    /// Writes a tombstone as the fence says, and reads the fence once more afterwards.
    pub(super) async fn bury(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        (mut item, mut raised): (StoredFence, u64),
        found: &Held<Entry>,
        now: Timestamp,
    ) -> Result<Placed, Error> {
        let mut at_key = found.version();
        loop {
            let Some(version) = self.occupied(session, names, at_key, now).await? else {
                session.try_again()?;
                at_key = self.version_of(session, names.key).await?;
                continue;
            };
            let value = tombstone(&item, now);
            let requests = Requests::default().delete(&names.lock).set(
                names.key,
                &value,
                Some(server_lifetime(self.lifetimes.tombstone_ttl)),
                Condition::Unchanged(version),
            );
            let [_, written, at_fence] = session.run(requests.get(&names.fence)).await?;
            let (written, at_fence) = (written.done()?, at_fence.value()?);
            if written.is_some() && at_fence.as_ref().is_some_and(|found| found.version == raised) {
                return Ok(Placed::Done);
            }
            // Deleting K is always safe: if the fence says "deleted", the next lease writes the tombstone again.
            let Some(stored) = at_fence else {
                session.run::<1>(Requests::default().delete(names.key)).await?;
                return Ok(Placed::FenceLost);
            };
            match fence(Some(&stored), now).value {
                Some(newer) if newer.fence.says_deleted() => (item, raised) = (newer, stored.version),
                _ => {
                    let [removed] = session.run(Requests::default().delete(names.key)).await?;
                    removed.done()?;
                    return Ok(Placed::Done);
                }
            }
            session.try_again()?;
            at_key = self.version_of(session, names.key).await?;
        }
    }

    /// Returns the version that a tombstone may replace: the one that was read, or a lease that is written where there was
    /// nothing. `None` if there is something meanwhile.
    async fn occupied(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        at_key: Option<u64>,
        now: Timestamp,
    ) -> Result<Option<u64>, Error> {
        if at_key.is_some() {
            return Ok(at_key);
        }
        let marker = record::encode_lease(&Leased { token: Token::draw(), until: now.plus(MARKER) });
        let requests = Requests::default().set(names.key, &marker, Some(server_lifetime(MARKER)), Condition::Absent);
        let [written] = session.run(requests).await?;
        written.done()
    }

    async fn version_of(&self, session: &Session<'_>, key: &str) -> Result<Option<u64>, Error> {
        let [found] = session.run(Requests::default().get(key)).await?;
        Ok(found.value()?.map(|stored| stored.version))
    }
}

/// Returns the value of the tombstone that a fence stands for.
fn tombstone(item: &StoredFence, now: Timestamp) -> bytes::Bytes {
    let plain = || record::tombstone_times(item.fence.at, now);
    let text = item.sealed.clone().unwrap_or_else(plain);
    record::encode_tombstone(Token::draw(), &text)
}
