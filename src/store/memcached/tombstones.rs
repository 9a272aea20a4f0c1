//! What events do to tombstones: write one, or leave one. `apply` says why in these steps.

use crate::domain::{Key, Timestamp};
use crate::store::{Entry, Error, Leased, Token, record};

use super::connection::Session;
use super::protocol::{Condition, Requests};
use super::values::{Held, KeyNames, StoredFence, fence, server_lifetime};
use super::{MARKER, Memcached};

impl Memcached {
    /// Leaves a tombstone, under a new token, so that what verifies it is void; deletes any other entry.
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
                    let text = record::text_of_tombstone(&stored.value).unwrap_or_default();
                    let value = record::encode_tombstone(Token::draw(), text);
                    Requests::default().set(names.key, &value, lifetime, Condition::Unchanged(stored.version))
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

    /// Writes a tombstone as the fence says, in place of a version at K that was read before that fence was. Returns `false` if the
    /// fence was lost, so that it must be raised again.
    pub(super) async fn bury(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        mut item: StoredFence,
        mut replaced: Option<u64>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        loop {
            if let Some(version) = replaced {
                let lifetime = Some(server_lifetime(self.lifetimes.tombstone_ttl));
                let unchanged = Condition::Unchanged(version);
                let requests = Requests::default().delete(&names.lock);
                let requests = requests.set(names.key, &tombstone(&item, now), lifetime, unchanged);
                let [_, written] = session.run(requests).await?;
                if written.done()?.is_some() {
                    return Ok(true);
                }
                session.try_again()?;
            }
            let at_fence;
            (replaced, at_fence) = self.occupied(session, names, now).await?;
            match at_fence.value {
                // What an operator forces is written although the fence does not say so, unless it was raised since.
                Some(found) if found == item || found.fence.says_deleted() => item = found,
                Some(_) => {
                    let requests = Requests::default().delete(&names.lock).delete(names.key);
                    let [_, removed] = session.run(requests).await?;
                    removed.done()?;
                    return Ok(true);
                }
                None => return Ok(false),
            }
            session.try_again()?;
        }
    }

    /// Returns the version that a tombstone may replace, and the fence after that was read. Where there is nothing, a lease is
    /// written, so that there is a version; it may be gone again.
    async fn occupied(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        now: Timestamp,
    ) -> Result<(Option<u64>, Held<StoredFence>), Error> {
        let marker = record::encode_lease(&Leased { token: Token::draw(), until: now.plus(MARKER) });
        let requests = Requests::default().set(names.key, &marker, Some(server_lifetime(MARKER)), Condition::Absent);
        let [written, at_key, at_fence] = session.run(requests.get(names.key).get(&names.fence)).await?;
        written.done()?;
        Ok((at_key.value()?.map(|stored| stored.version), fence(at_fence.value()?.as_ref(), now)))
    }
}

/// Returns the value of the tombstone that a fence stands for.
fn tombstone(item: &StoredFence, now: Timestamp) -> bytes::Bytes {
    let plain = || record::tombstone_times(item.fence.at, now);
    let text = item.sealed.clone().unwrap_or_else(plain);
    record::encode_tombstone(Token::draw(), &text)
}
