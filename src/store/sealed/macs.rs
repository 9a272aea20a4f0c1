//! The MACs of what a store holds in clear: tombstones and the marks of applied events.
//!
//! A script in the store decides where a tombstone is written and whether an event was applied, so those values are in clear.
//! But only a process with a sealing key can write one that has an effect: it holds a MAC that was computed before the
//! script ran.
//!
//! ```text
//! of a tombstone = the first 16 bytes of HMAC-SHA-256(K, 'T' │ length of the entry key (1) │ entry key │ precision (1) │ at (8) │ written (8))
//! of a mark      = the first 16 bytes of HMAC-SHA-256(K, 'M' │ length of the entry key (1) │ entry key │ digest of the event (16))
//! K              = HKDF-SHA-256 of a sealing key, for this purpose and the tenant
//! ```
//!
//! That of a tombstone covers the time of the deletion and the time when it was applied. So a tombstone can be neither moved to
//! another key, nor be made later, nor be kept longer than `consumer.tombstone_ttl`. The fence keeps it with those times, for the
//! script that restores an evicted tombstone. A deletion that is older than the known one leaves it as it is. A mark under another
//! key, or without a MAC, is no mark: the event is applied once more, with the same result.
//!
//! A MAC does not show that nothing happened since. Whoever can write to the store can put back all that it held at one
//! time, so no value in it can prove that it is the newest.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::time::Instant;

use crate::domain::{Digest, EventTime, Key, Precision, Timestamp};
use crate::metrics::Metrics;
use crate::reload::Reloadable;
use crate::store::Tombstone;

use super::keyring::{Keyring, UnsealError};

/// The length of a MAC, in bytes: half of what HMAC gives, as RFC 2104 section 5 recommends at least.
pub const MAC: usize = 16;

/// The least time between two warnings about values that cannot be opened.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The MAC of a tombstone or mark.
pub type StoreMac = [u8; MAC];

/// Computes and checks MACs. Without keys there are none, and every tombstone and mark is accepted.
#[derive(Debug)]
pub struct Macs {
    keyring: Reloadable<Keyring>,
    failures: SealFailures,
}

/// Counts values that cannot be opened, and logs one of them at a time.
#[derive(Debug)]
pub(super) struct SealFailures {
    metrics: Arc<Metrics>,
    /// When the last warning was logged; locked only for a value that cannot be opened.
    warned: Mutex<Option<Instant>>,
}

impl Macs {
    /// Creates the MACs under the keys of `[store.sealing]`.
    pub const fn new(keyring: Reloadable<Keyring>, metrics: Arc<Metrics>) -> Self {
        Self { keyring, failures: SealFailures::new(metrics) }
    }

    /// Returns the MAC of the tombstone of a deletion; `None` without keys.
    #[must_use]
    pub fn of_tombstone(&self, key: &Key, at: Option<EventTime>, written_at: Timestamp) -> Option<StoreMac> {
        self.compute(key, |material| tombstone(material, key, at, written_at))
    }

    /// Returns the MAC of the mark of an applied event; `None` without keys.
    #[must_use]
    pub fn of_mark(&self, key: &Key, event: Digest) -> Option<StoreMac> {
        self.compute(key, |material| begin(material, b'M', key).chain_update(event.as_bytes()))
    }

    /// Returns whether a tombstone has the MAC of a configured key, or no keys are configured.
    #[must_use]
    pub fn accept(&self, key: &Key, found: &Tombstone, mac: Option<StoreMac>) -> bool {
        let keyring = self.keyring.load();
        let is_under = |material: &[u8], mac: StoreMac| {
            // In constant time.
            tombstone(material, key, found.at, found.written_at).verify_truncated_left(&mac).is_ok()
        };
        keyring.is_empty()
            || mac.is_some_and(|mac| keyring.mac_keys(key.tenant()).any(|material| is_under(&*material, mac)))
    }

    /// Counts a tombstone that was not accepted.
    pub fn report(&self, key: &Key) {
        self.failures.report(key, UnsealError::NotAuthentic);
    }

    fn compute(&self, key: &Key, mac: impl FnOnce(&[u8]) -> Hmac<Sha256>) -> Option<StoreMac> {
        let material = self.keyring.load().mac_keys(key.tenant()).next()?;
        mac(&*material).finalize().into_bytes().first_chunk().copied()
    }
}

impl SealFailures {
    pub(super) const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, warned: Mutex::new(None) }
    }

    pub(super) fn report(&self, key: &Key, reason: UnsealError) {
        self.metrics.seal_failures.increment(1);
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.is_none_or(|warned| now - warned >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(%key, %reason, "stored values cannot be opened and are not served, for example this one");
        }
    }
}

fn tombstone(material: &[u8], key: &Key, at: Option<EventTime>, written_at: Timestamp) -> Hmac<Sha256> {
    let (precision, at) = match at {
        None => (0, 0),
        Some(at) if at.precision() == Precision::Seconds => (1, at.as_millis()),
        Some(at) => (2, at.as_millis()),
    };
    begin(material, b'T', key)
        .chain_update([precision])
        .chain_update(at.to_be_bytes())
        .chain_update(written_at.as_millis().to_be_bytes())
}

/// Returns the MAC with its kind and the entry key.
fn begin(material: &[u8], kind: u8, key: &Key) -> Hmac<Sha256> {
    let name = key.as_str().as_bytes();
    // HMAC takes keys of any length (RFC 2104 section 2); an entry key has at most 110 bytes.
    let mac = Hmac::new_from_slice(material).expect("any length is a key");
    mac.chain_update([kind, u8::try_from(name.len()).unwrap_or(u8::MAX)]).chain_update(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::domain::{Identity, Secret};
    use crate::store::Token;
    use crate::store::sealed::keyring::Config;

    fn macs(keys: &[u8]) -> Macs {
        let name = |byte: &u8| format!("k{byte}");
        let keyring = match keys.first() {
            None => Keyring::default(),
            Some(active) => {
                let secret = |byte: &u8| (name(byte), Secret::new(STANDARD.encode([*byte; 32])));
                let keys: BTreeMap<_, _> = keys.iter().map(secret).collect();
                Keyring::new(&Config { active: name(active), keys }, &[]).unwrap()
            }
        };
        Macs::new(Reloadable::new(keyring), Metrics::new())
    }

    #[test]
    fn a_tombstone_is_accepted_only_unaltered_and_under_a_known_key() {
        let key = Identity::new("10001".parse().unwrap(), [7; 32]).key();
        let (at, written_at) = (Some(EventTime::new(5_000, Precision::Millis)), Timestamp::from_millis(6_000));
        let tombstone = Tombstone { token: Token::draw(), at, written_at };
        let mac = macs(&[1]).of_tombstone(&key, at, written_at);
        assert!(mac.is_some());
        for (keys, accepted) in [(&[1][..], true), (&[2, 1], true), (&[2], false), (&[], true)] {
            assert_eq!(macs(keys).accept(&key, &tombstone, mac), accepted, "{keys:?}");
        }
        let one = macs(&[1]);
        assert!(!one.accept(&key, &tombstone, None), "without a MAC");
        let mut bits = mac.unwrap();
        bits[MAC - 1] ^= 1;
        assert!(!one.accept(&key, &tombstone, Some(bits)));
        for other in [
            Tombstone { at: None, ..tombstone.clone() },
            Tombstone { at: Some(EventTime::new(5_001, Precision::Millis)), ..tombstone.clone() },
            Tombstone { at: Some(EventTime::new(5_000, Precision::Seconds)), ..tombstone.clone() },
            Tombstone { written_at: Timestamp::from_millis(6_001), ..tombstone.clone() },
        ] {
            assert!(!one.accept(&key, &other, mac), "{other:?}");
        }
        for (tenant, digest) in [("10001", [8; 32]), ("10002", [7; 32])] {
            let elsewhere = Identity::new(tenant.parse().unwrap(), digest).key();
            assert!(!one.accept(&elsewhere, &tombstone, mac), "at another key");
        }
        assert_eq!(macs(&[]).of_tombstone(&key, at, written_at), None);
    }

    #[test]
    fn a_mark_depends_on_the_key_and_the_event() {
        let [one, other] = [7, 8].map(|byte| Identity::new("10001".parse().unwrap(), [byte; 32]).key());
        let [event, next] = [1, 2].map(|byte| Digest::from_bytes([byte; 16]));
        let mark = macs(&[1]).of_mark(&one, event);
        assert_eq!(macs(&[1, 2]).of_mark(&one, event), mark);
        for another in
            [macs(&[1]).of_mark(&other, event), macs(&[1]).of_mark(&one, next), macs(&[2]).of_mark(&one, event)]
        {
            assert!(another.is_some() && another != mark);
        }
        assert_eq!(macs(&[]).of_mark(&one, event), None);
    }
}
