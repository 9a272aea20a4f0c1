//! The values of a customer's keys, and until when they are valid.
//!
//! ```text
//! K                  an entry, as in Redis: see `store/record.rs`
//! fence:K            fence|until|event|tombstone   (event and tombstone may be empty)
//! lock:K             a lease
//! seen:K:<event>     until|mac                     (mac: 1 without sealing)
//! ```
//!
//! Memcached measures lifetimes in whole seconds, by a clock that may lag by one. So each value says itself until when it is
//! valid, by our clock, as in the embedded store; the server keeps it a little longer. The server's count of the seconds left
//! shows the least age of a record, should our clock have been set back.
//!
//! The *event* of a fence is the last one that raised it, with whole effect. If its other steps did not follow, it is delivered
//! once more, and must not raise the fence again: equal versions would cause doubt.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Digest, Key, Timestamp};
use crate::store::fence::Fence;
use crate::store::record;
use crate::store::{Entry, Leased, Token, Tombstone};

use super::Memcached;
use super::protocol::{Condition, LONGEST_LIFETIME, Stored};

/// How much older or younger than the server's count a record may be.
const IMPRECISION: u64 = 2;

/// The names of one customer's keys.
#[derive(Debug)]
pub(super) struct KeyNames<'a> {
    /// The entry key K.
    pub(super) key: &'a str,
    pub(super) fence: String,
    pub(super) lock: String,
}

impl<'a> KeyNames<'a> {
    pub(super) fn of(key: &'a Key) -> Self {
        let key = key.as_str();
        Self { key, fence: format!("fence:{key}"), lock: format!("lock:{key}") }
    }

    pub(super) fn seen(&self, event: Digest) -> String {
        format!("seen:{}:{event}", self.key)
    }
}

/// What a key holds.
#[derive(Clone, Debug)]
pub(super) struct Held<T> {
    /// The value, if it is valid.
    pub(super) value: Option<T>,
    /// What a write that replaces exactly this requires.
    pub(super) unchanged: Condition,
}

impl<T> Held<T> {
    fn new(stored: Option<&Stored>, read: impl FnOnce(&Stored) -> Option<T>) -> Self {
        let unchanged = stored.map_or(Condition::Absent, |stored| Condition::Unchanged(stored.version));
        Self { value: stored.and_then(read), unchanged }
    }

    /// Returns the version of what is there, valid or not.
    pub(super) const fn version(&self) -> Option<u64> {
        match self.unchanged {
            Condition::Unchanged(version) => Some(version),
            Condition::Any | Condition::Absent => None,
        }
    }
}

/// A fence as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredFence {
    pub(super) fence: Fence,
    pub(super) until: Timestamp,
    /// The last event that raised it.
    pub(super) last: Option<Digest>,
    /// The text of the tombstone of the newest deletion, with its MAC.
    pub(super) sealed: Option<String>,
}

impl StoredFence {
    pub(super) fn encode(&self) -> String {
        let fence = record::encode_fence(&self.fence);
        let last = self.last.map_or_else(String::new, |last| last.to_string());
        format!("{fence}|{}|{last}|{}", self.until.as_millis(), self.sealed.as_deref().unwrap_or_default())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut rest = text.splitn(11, '|').skip(8);
        let until = Timestamp::from_millis(rest.next()?.parse().ok()?);
        let last = match rest.next()? {
            "" => None,
            digits => Some(digits.parse().ok()?),
        };
        let sealed = Some(rest.next()?).filter(|text| !text.is_empty()).map(str::to_owned);
        Some(Self { fence: record::decode_fence(bytes)?, until, last, sealed })
    }
}

impl Memcached {
    /// Reads the value of an entry key.
    pub(super) fn entry(&self, key: &Key, stored: Option<&Stored>, now: Timestamp) -> Held<Entry> {
        Held::new(stored, |stored| self.entry_of(key, stored, now, true))
    }

    /// Reads the value of an entry key, and reports nothing.
    pub(super) fn entry_silently(&self, key: &Key, stored: &Stored, now: Timestamp) -> Option<Entry> {
        self.entry_of(key, stored, now, false)
    }

    fn entry_of(&self, key: &Key, stored: &Stored, now: Timestamp, reports: bool) -> Option<Entry> {
        let entry = match record::decode(stored.value.clone()) {
            Entry::Tombstone(tombstone) => return self.tombstone_of(key, tombstone, &stored.value, now, reports),
            entry => entry,
        };
        match entry {
            Entry::Leased(leased) => (leased.until > now).then_some(Entry::Leased(leased)),
            Entry::Record(record) => {
                let lifetime = record.lifetime();
                let record = record.at_least_as_old_as(known_age(stored, lifetime).unwrap_or_default(), now);
                (now.since(record.fetched_at) < lifetime).then_some(Entry::Record(record))
            }
            Entry::Tombstone(_) | Entry::Corrupt(_) => Some(entry),
        }
    }

    /// Judges a tombstone: absent after its time, unreadable if it is from the future or lacks the MAC that it needs.
    fn tombstone_of(&self, key: &Key, found: Tombstone, value: &Bytes, now: Timestamp, reports: bool) -> Option<Entry> {
        if let Some(macs) = &self.macs
            && !macs.accept(key, &found, record::mac_of(value))
        {
            if reports {
                macs.report(key);
            }
            return Some(Entry::Corrupt(value.clone()));
        }
        if found.written_at.plus(self.lifetimes.tombstone_ttl) <= now {
            return None;
        }
        let is_timely = record::is_timely(found.written_at, self.lifetimes.tombstone_ttl, now);
        Some(if is_timely { Entry::Tombstone(found) } else { Entry::Corrupt(value.clone()) })
    }

    /// Returns the tombstone that a fence restores, and its value, if the fence says "deleted".
    pub(super) fn restorable(&self, key: &Key, fence: &StoredFence, now: Timestamp) -> Option<(Bytes, Entry)> {
        let plain = || record::tombstone_times(fence.fence.at, fence.fence.raised);
        let text = fence.fence.says_deleted().then(|| fence.sealed.clone().unwrap_or_else(plain))?;
        let value = record::encode_tombstone(Token::draw(), &text);
        let Entry::Tombstone(tombstone) = record::decode(value.clone()) else { return None };
        let entry = self.tombstone_of(key, tombstone, &value, now, false)?;
        matches!(entry, Entry::Tombstone(_)).then_some((value, entry))
    }

    /// Returns for how long the server keeps a tombstone, in seconds.
    pub(super) fn tombstone_lifetime(&self, written_at: Timestamp, now: Timestamp) -> u64 {
        server_lifetime(written_at.plus(self.lifetimes.tombstone_ttl).since(now))
    }
}

/// Returns for how long the server has kept a value with this lifetime, or up to [`IMPRECISION`] less; no clock of a process
/// affects it.
pub(super) fn known_age(stored: &Stored, lifetime: Duration) -> Option<Duration> {
    let age = |left| server_lifetime(lifetime).saturating_sub(left + IMPRECISION);
    stored.left.map(age).map(Duration::from_secs)
}

/// Reads the value of a fence.
pub(super) fn fence(stored: Option<&Stored>, now: Timestamp) -> Held<StoredFence> {
    Held::new(stored, |stored| StoredFence::decode(&stored.value).filter(|fence| fence.until > now))
}

/// Reads the value of a lock.
pub(super) fn lock(stored: Option<&Stored>, now: Timestamp) -> Held<Leased> {
    Held::new(stored, |stored| match record::decode(stored.value.clone()) {
        Entry::Leased(leased) => (leased.until > now).then_some(leased),
        Entry::Record(_) | Entry::Tombstone(_) | Entry::Corrupt(_) => None,
    })
}

/// Returns the value of a mark.
pub(super) fn mark(until: Timestamp, proof: &str) -> String {
    format!("{}|{proof}", until.as_millis())
}

/// Returns whether this is the mark of an applied event. With a `proof`, it must have that.
pub(super) fn is_marked(stored: Option<&Stored>, proof: Option<&str>, now: Timestamp) -> bool {
    let text = stored.and_then(|stored| std::str::from_utf8(&stored.value).ok());
    let Some((until, found)) = text.and_then(|text| text.split_once('|')) else { return false };
    until.parse().is_ok_and(|until| Timestamp::from_millis(until) > now) && proof.is_none_or(|proof| proof == found)
}

/// Returns for how long the server keeps a value, in seconds: no less than its lifetime.
pub(super) fn server_lifetime(lifetime: Duration) -> u64 {
    // The clock of the server may be a second behind, and it counts whole seconds.
    (lifetime.as_secs() + 2).min(LONGEST_LIFETIME.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventTime, Modified, Precision};
    use crate::store::fence::Newest;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    #[test]
    fn a_stored_fence_decodes_to_itself() {
        let at = [None, Some(EventTime::new(2_000, Precision::Seconds)), Some(EventTime::new(-5, Precision::Millis))];
        for (newest, at) in [Newest::Update, Newest::Creation, Newest::Deletion, Newest::Contested]
            .into_iter()
            .zip(at.into_iter().cycle())
        {
            for (doubt, unstamped) in [(false, true), (true, false)] {
                let modified = doubt.then(|| Modified::from_millis(7));
                let fence = Fence { modified, at, newest, doubt, unstamped, raised: NOW };
                let last = doubt.then(|| Digest::from_bytes([7; 16]));
                let stored = StoredFence {
                    fence,
                    until: NOW.plus(Duration::from_secs(1)),
                    last,
                    sealed: unstamped.then(|| "5|m|6|ab".to_owned()),
                };
                let read = |now| {
                    let value = stored.encode().into();
                    super::fence(Some(&Stored { value, version: 3, left: None }), now).value
                };
                assert_eq!(read(NOW).as_ref(), Some(&stored));
                assert_eq!(read(stored.until), None);
            }
        }
        for text in ["", "1|||||0|0|5", "2|7|||U|0|0|5|9||", "1|7|||U|0|0|5|x||", "1|7|||U|0|0|5|9|zz|"] {
            assert_eq!(StoredFence::decode(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_mark_counts_until_its_time_and_with_its_proof() {
        let stored = |text: &str| Stored { value: Bytes::copy_from_slice(text.as_bytes()), version: 1, left: None };
        let until = NOW.plus(Duration::from_millis(1));
        let found = stored(&mark(until, "ab"));
        assert!(is_marked(Some(&found), None, NOW) && is_marked(Some(&found), Some("ab"), NOW));
        assert!(!is_marked(Some(&found), Some("cd"), NOW) && !is_marked(Some(&found), None, until));
        assert!(!is_marked(Some(&stored("1")), None, NOW) && !is_marked(None, None, NOW));
    }

    #[test]
    fn the_server_keeps_values_longer_than_they_are_valid() {
        for millis in [0, 1, 999, 1_000, 2_500] {
            let lifetime = Duration::from_millis(millis);
            assert!(Duration::from_secs(server_lifetime(lifetime) - 1) >= lifetime, "{lifetime:?}");
        }
        assert_eq!(server_lifetime(LONGEST_LIFETIME * 2), LONGEST_LIFETIME.as_secs());
    }
}
