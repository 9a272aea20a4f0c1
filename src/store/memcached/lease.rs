//! Leases and fills: the steps of a lookup after its read.
//!
//! A lease is written first, by `add` or in place of exactly what was read, and the fence is read *afterwards*. An event
//! raises the fence before it deletes K. So a lease that is not deleted by an event was granted with the fence of that event,
//! or the event is not applied yet, and will delete what was filled.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Key, Timestamp};
use crate::store::fence::Newest;
use crate::store::{
    Base, Entry, Error, Filled, Lease, LeaseAnswer, LeaseTarget, Leased, Record, Token, Tombstone, record,
};

use super::Memcached;
use super::connection::Session;
use super::protocol::{Condition, Requests, Stored};
use super::values::{Held, KeyNames, StoredFence, fence, known_age, lock, server_lifetime};

/// A lease that is requested.
struct Wanted<'a> {
    key: &'a Key,
    names: KeyNames<'a>,
    base: &'a Base,
    token: Token,
    ttl: Duration,
}

impl Wanted<'_> {
    fn value(&self, now: Timestamp) -> Bytes {
        record::encode_lease(&Leased { token: self.token, until: now.plus(self.ttl) })
    }

    fn write(&self, requests: Requests, at: &str, now: Timestamp, condition: Condition) -> Requests {
        requests.set(at, &self.value(now), Some(server_lifetime(self.ttl)), condition)
    }
}

impl Memcached {
    /// See [`Store::lease`](crate::store::Store::lease).
    pub(super) async fn request_lease(
        &self,
        key: &Key,
        base: &Base,
        token: Token,
        ttl: Duration,
    ) -> Result<LeaseAnswer, Error> {
        let session = self.node(key).lookups.session()?;
        let wanted = Wanted { key, names: KeyNames::of(key), base, token, ttl };
        if matches!(base, Base::Absent)
            && let Some(answer) = self.lease_nothing(&session, &wanted, Condition::Absent, self.clock.now()).await?
        {
            return Ok(answer);
        }
        loop {
            if let Some(answer) = self.try_lease(&session, &wanted).await? {
                return Ok(answer);
            }
            session.try_again()?;
        }
    }

    /// Returns `None` if a key changed in between.
    async fn try_lease(&self, session: &Session<'_>, wanted: &Wanted<'_>) -> Result<Option<LeaseAnswer>, Error> {
        let names = &wanted.names;
        let [at_key, at_lock] = session.run(Requests::default().get(names.key).get(&names.lock)).await?;
        let now = self.clock.now();
        let at_key = at_key.value()?;
        let entry = self.entry(wanted.key, at_key.as_ref(), now);
        let locked = lock(at_lock.value()?.as_ref(), now);
        let is_seen = |seen: &Token| entry.value.as_ref().and_then(Entry::token) == Some(*seen);
        match (&entry.value, wanted.base) {
            (None, _) => self.lease_nothing(session, wanted, entry.unchanged, now).await,
            (Some(Entry::Leased(leased)), _) => Ok(Some(held(leased, leased.token, now))),
            (Some(_), Base::Token(seen) | Base::Dead(seen)) if is_seen(seen) => match (locked.value, wanted.base) {
                (Some(leased), _) => Ok(Some(held(&leased, *seen, now))),
                (None, Base::Token(_)) => self.lease_beside(session, wanted, *seen, locked.unchanged, now).await,
                (None, _) => self.lease_instead(session, wanted, entry.unchanged, now).await,
            },
            (Some(Entry::Corrupt(bytes)), Base::Corrupt(seen)) if bytes == seen => {
                self.lease_instead(session, wanted, entry.unchanged, now).await
            }
            (Some(_), _) => Ok(entry.value.map(LeaseAnswer::Changed)),
        }
    }

    /// Returns the lease, which was written before this fence was read.
    fn granted(
        &self,
        wanted: &Wanted<'_>,
        target: LeaseTarget,
        at_fence: Option<&Stored>,
        now: Timestamp,
    ) -> LeaseAnswer {
        let known = at_fence.and_then(|stored| known_age(stored, self.lifetimes.fence()));
        let most = known.unwrap_or(Duration::MAX);
        let fence = fence(at_fence, now).value.map(|StoredFence { fence, .. }| (fence.age(now, most), fence));
        LeaseAnswer::Granted(Lease::granted(wanted.key.clone(), wanted.token, target, fence))
    }

    /// Writes the lease at a key that holds nothing. If the fence says "deleted", the tombstone was evicted: it replaces
    /// the lease.
    async fn lease_nothing(
        &self,
        session: &Session<'_>,
        wanted: &Wanted<'_>,
        nothing: Condition,
        now: Timestamp,
    ) -> Result<Option<LeaseAnswer>, Error> {
        let names = &wanted.names;
        let requests = wanted.write(Requests::default(), names.key, now, nothing).get(&names.fence);
        let [written, at_fence] = session.run(requests).await?;
        let Some(version) = written.done()? else { return Ok(None) };
        let at_fence = at_fence.value()?;
        let fence = fence(at_fence.as_ref(), now).value;
        if let Some((value, tombstone)) = fence.and_then(|fence| self.restorable(wanted.key, &fence, now))
            && let Entry::Tombstone(found) = &tombstone
        {
            let lifetime = Some(self.tombstone_lifetime(found.written_at, now));
            let requests = Requests::default().set(names.key, &value, lifetime, Condition::Unchanged(version));
            let [written] = session.run(requests).await?;
            return Ok(written.done()?.map(|_| LeaseAnswer::Changed(tombstone)));
        }
        Ok(Some(self.granted(wanted, LeaseTarget::Key, at_fence.as_ref(), now)))
    }

    /// Replaces a dead entry by the lease.
    async fn lease_instead(
        &self,
        session: &Session<'_>,
        wanted: &Wanted<'_>,
        condition: Condition,
        now: Timestamp,
    ) -> Result<Option<LeaseAnswer>, Error> {
        let names = &wanted.names;
        let requests = wanted.write(Requests::default(), names.key, now, condition).get(&names.fence);
        let [written, at_fence] = session.run(requests).await?;
        if written.done()?.is_none() {
            return Ok(None);
        }
        Ok(Some(self.granted(wanted, LeaseTarget::Key, at_fence.value()?.as_ref(), now)))
    }

    /// Writes the lease beside an entry that stays in use.
    async fn lease_beside(
        &self,
        session: &Session<'_>,
        wanted: &Wanted<'_>,
        base: Token,
        condition: Condition,
        now: Timestamp,
    ) -> Result<Option<LeaseAnswer>, Error> {
        let names = &wanted.names;
        let requests = wanted.write(Requests::default(), &names.lock, now, condition);
        let [written, at_fence, at_key] = session.run(requests.get(&names.fence).get(names.key)).await?;
        let Some(version) = written.done()? else { return Ok(None) };
        // An event that deleted the entry may have deleted the lock before it was written.
        if self.entry(wanted.key, at_key.value()?.as_ref(), now).value.and_then(|entry| entry.token()) != Some(base) {
            let [removed] = session.run(Requests::default().delete_unchanged(&names.lock, version)).await?;
            removed.done()?;
            return Ok(None);
        }
        Ok(Some(self.granted(wanted, LeaseTarget::Lock(base), at_fence.value()?.as_ref(), now)))
    }

    /// See [`Store::fill`](crate::store::Store::fill).
    ///
    /// The fence is not compared with the one of the lease: an event that raised it since changes what is replaced here, or has
    /// not changed it yet, and will delete the record.
    pub(super) async fn write_record(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let (key, token, target) = lease.consume_for(&record)?;
        let (session, names) = (self.node(&key).lookups.session()?, KeyNames::of(&key));
        // The lock is read after the entry: an event deletes the lock before it changes the entry.
        let requests = Requests::default().get(names.key).get(&names.lock).get(&names.fence);
        let [at_key, at_lock, at_fence] = session.run(requests).await?;
        let now = self.clock.now();
        let entry = self.entry(&key, at_key.value()?.as_ref(), now);
        let locked = lock(at_lock.value()?.as_ref(), now);
        let known = fence(at_fence.value()?.as_ref(), now);
        let holds = entry.value.as_ref().and_then(Entry::token);
        let is_locked = locked.value.is_some_and(|leased| leased.token == token);
        let may = match target {
            LeaseTarget::Key => holds == Some(token),
            LeaseTarget::Lock(base) => is_locked && holds == Some(base),
        };
        let verified = match &entry.value {
            Some(Entry::Tombstone(tombstone)) => Some(tombstone),
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Corrupt(_)) | None => None,
        };
        let filled =
            may && match verified {
                Some(tombstone) => self.overrule(&session, &names, tombstone, known).await?,
                None => true,
            } && self.replace(&session, &names, &record, entry.unchanged).await?;
        if is_locked && let Some(version) = locked.version() {
            let [removed] = session.run(Requests::default().delete_unchanged(&names.lock, version)).await?;
            removed.done()?;
        }
        Ok(if filled { Filled::Stored } else { Filled::Refused })
    }

    /// A verified profile is about to replace a tombstone: the fence no longer says "deleted", and has doubt
    /// ([`rules::tombstone`](crate::rules#tombstone)). The fence is changed first, so that a deletion that raised it meanwhile is
    /// not overruled, and no other lookup restores the tombstone. Returns `false` if the tombstone must stay.
    async fn overrule(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        tombstone: &Tombstone,
        known: Held<StoredFence>,
    ) -> Result<bool, Error> {
        let Some(mut overruled) = known.value else { return Ok(true) };
        if is_overtaken(tombstone, &overruled) {
            return Ok(false);
        }
        if !overruled.fence.says_deleted() {
            return Ok(true);
        }
        (overruled.fence.newest, overruled.fence.doubt) = (Newest::Contested, true);
        overruled.sealed = None;
        let lifetime = Some(server_lifetime(overruled.until.since(self.clock.now())));
        let requests = Requests::default().set(&names.fence, overruled.encode().as_bytes(), lifetime, known.unchanged);
        let [written] = session.run(requests).await?;
        Ok(written.done()?.is_some())
    }

    /// Replaces what was read by the record.
    async fn replace(
        &self,
        session: &Session<'_>,
        names: &KeyNames<'_>,
        record: &Record,
        unchanged: Condition,
    ) -> Result<bool, Error> {
        let lifetime = Some(server_lifetime(record.lifetime()));
        let [written] =
            session.run(Requests::default().set(names.key, &record::encode(record), lifetime, unchanged)).await?;
        Ok(written.done()?.is_some())
    }

    /// See [`Store::release`](crate::store::Store::release).
    pub(super) async fn remove_lease(&self, lease: Lease) -> Result<(), Error> {
        let (key, token, target) = lease.consume();
        let (session, names) = (self.node(&key).lookups.session()?, KeyNames::of(&key));
        let at = match target {
            LeaseTarget::Key => names.key,
            LeaseTarget::Lock(_) => &names.lock,
        };
        let [found] = session.run(Requests::default().get(at)).await?;
        let found = lock(found.value()?.as_ref(), self.clock.now());
        if found.value.is_some_and(|leased| leased.token == token)
            && let Some(version) = found.version()
        {
            let [removed] = session.run(Requests::default().delete_unchanged(at, version)).await?;
            removed.done()?;
        }
        Ok(())
    }
}

/// Returns whether a later deletion has raised the fence and will replace this tombstone. The profile that verifies the
/// tombstone may be older than that deletion.
fn is_overtaken(tombstone: &Tombstone, known: &StoredFence) -> bool {
    let times = known.fence.at.zip(tombstone.at);
    times.is_some_and(|(newest, at)| newest.compare(at).is_gt())
}

fn held(leased: &Leased, seen: Token, now: Timestamp) -> LeaseAnswer {
    LeaseAnswer::Held { token: leased.token, seen, remaining: leased.until.since(now) }
}
