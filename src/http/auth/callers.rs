//! Callers: who looks profiles up, and what each may see.
//!
//! Only the SHA-256 of a caller's key is configured. What is presented is hashed and found by its hash. That
//! takes the same time for every wrong key: where the hash table looks depends on the hash under a key that
//! only this process has, and what it finds there is compared in constant time. So a sender learns nothing by
//! measuring, not even about the configured hashes, and a thousand callers cost no more than one. A name is
//! judged only after its key, or after the signature of a token: names cannot be tried out.
//!
//! Denied by default: a caller has the tenants and fields that are configured for it, and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::TenantId;
use crate::http::auth::field_set::FieldSet;

use crate::http::auth::rate_limit::Rate;

/// The longest name of a caller, in bytes.
const MAX_NAME: usize = 64;

/// `[[caller]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, for logs and audit, for Basic authentication, and as `client_id`.
    pub name: String,
    /// SHA-256 of its key, in hex (see `profile-edge hash-key`).
    pub key_sha256: String,
    /// The tenants whose customers it may look up.
    pub tenants: Vec<TenantId>,
    /// The fields it may see: `*`, or dotted paths such as `workPhone.e164`.
    pub fields: Vec<String>,
    /// How many requests it may make per second, of each process; 0: no limit.
    #[serde(default)]
    pub requests_per_second: u32,
}

/// A caller that has proved itself.
#[derive(Debug)]
pub struct Caller {
    /// Its configured name.
    pub name: Arc<str>,
    /// The fields it may see.
    pub fields: FieldSet,
    /// Its rate, if it has one.
    pub rate: Option<Arc<Rate>>,
    /// The hash of its key.
    pub key: KeyDigest,
    tenants: Vec<TenantId>,
}

/// All configured callers: made of a configuration as a whole, and replaced as a whole.
#[derive(Debug)]
pub struct Callers {
    by_key: HashMap<KeyDigest, Arc<Caller>>,
    by_name: HashMap<Arc<str>, Arc<Caller>>,
}

/// The SHA-256 of a key; compared in constant time.
#[derive(Clone, Copy)]
pub struct KeyDigest([u8; 32]);

/// A configured caller is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("caller[{index}].{field}: {reason}")]
pub struct InvalidCaller {
    /// Which caller, counted from 0.
    pub index: usize,
    /// Which of its fields.
    pub field: &'static str,
    /// What is expected of it.
    pub reason: String,
}

impl Config {
    /// Checks the name.
    ///
    /// # Errors
    ///
    /// Says what is expected of it.
    pub fn validate_name(&self) -> Result<(), &'static str> {
        let fits = (1..=MAX_NAME).contains(&self.name.len());
        // A user name of Basic authentication ends at the first colon (RFC 7617 section 2).
        let plain = !self.name.contains(':') && !self.name.chars().any(char::is_control);
        if fits && plain { Ok(()) } else { Err("must be 1 to 64 bytes without a colon or control characters") }
    }
}

impl Callers {
    /// Makes the callers of their configuration.
    ///
    /// # Errors
    ///
    /// A malformed or repeated name, a key that is not 64 hex digits or that two callers share, or a
    /// malformed field path.
    pub fn new(configs: &[Config]) -> Result<Self, InvalidCaller> {
        Self::make(configs, None)
    }

    /// Makes the callers of a configuration that takes the place of theirs: what a caller whose name, key and rate stay
    /// has spent of its rate stays spent.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn renewed(&self, configs: &[Config]) -> Result<Self, InvalidCaller> {
        Self::make(configs, Some(self))
    }

    fn make(configs: &[Config], before: Option<&Self>) -> Result<Self, InvalidCaller> {
        let mut callers = Self { by_key: HashMap::new(), by_name: HashMap::new() };
        for (index, config) in configs.iter().enumerate() {
            let invalid = |field, reason: &str| InvalidCaller { index, field, reason: reason.to_owned() };
            config.validate_name().map_err(|reason| invalid("name", reason))?;
            let mut digest = [0; 32];
            hex::decode_to_slice(&config.key_sha256, &mut digest)
                .map_err(|_| invalid("key_sha256", "must be 64 hex digits, as profile-edge hash-key prints them"))?;
            let fields = FieldSet::parse(config.fields.iter().map(String::as_str))
                .map_err(|error| invalid("fields", &error.to_string()))?;
            let mut tenants = config.tenants.clone();
            tenants.sort_unstable();
            tenants.dedup();
            let key = KeyDigest(digest);
            let same = before.and_then(|before| before.named(&config.name)).filter(|caller| caller.key == key);
            let running = same.and_then(|caller| caller.rate.as_ref());
            let rate = NonZeroU32::new(config.requests_per_second).map(|requests| {
                let running = running.filter(|rate| rate.quota() == requests.get());
                running.map_or_else(|| Arc::new(Rate::per_second(requests)), Arc::clone)
            });
            let caller = Arc::new(Caller { name: config.name.as_str().into(), fields, rate, key, tenants });
            if callers.by_key.insert(caller.key, Arc::clone(&caller)).is_some() {
                return Err(invalid("key_sha256", "another caller has the same key"));
            }
            if callers.by_name.insert(Arc::clone(&caller.name), caller).is_some() {
                return Err(invalid("name", "another caller has the same name"));
            }
        }
        Ok(callers)
    }

    /// Returns the caller with this key.
    #[must_use]
    pub fn with_key(&self, key: &[u8]) -> Option<&Arc<Caller>> {
        self.by_key.get(&KeyDigest::of(key))
    }

    /// Returns the caller with this name, for who has proved already that it is this one.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Caller>> {
        self.by_name.get(name)
    }
}

impl Caller {
    /// Tells whether the caller may look up a tenant's customers.
    #[must_use]
    pub fn may_read(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }

    /// Returns the caller's tenant, if it has just one.
    #[must_use]
    pub fn only_tenant(&self) -> Option<&TenantId> {
        match self.tenants.as_slice() {
            [only] => Some(only),
            [] | [_, _, ..] => None,
        }
    }
}

impl KeyDigest {
    /// Hashes a key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for KeyDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyDigest {}

impl Hash for KeyDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
pub(in crate::http) mod tests {
    use super::*;

    /// A caller of the demo's tenant that may see everything.
    pub(in crate::http) fn config(name: &str, key: &str) -> Config {
        Config {
            name: name.to_owned(),
            key_sha256: hex::encode(Sha256::digest(key)),
            tenants: vec!["10001".parse().unwrap()],
            fields: vec!["*".to_owned()],
            requests_per_second: 0,
        }
    }

    #[test]
    fn a_caller_is_found_by_its_key_and_by_nothing_like_it() {
        let callers = Callers::new(&[config("a", "one"), config("b", "other")]).unwrap();
        assert_eq!(&*callers.with_key(b"one").unwrap().name, "a");
        assert_eq!(&*callers.with_key(b"other").unwrap().name, "b");
        let digest = config("a", "one").key_sha256;
        for wrong in [b"".as_slice(), b"onf", b"one ", b"ONE", digest.as_bytes()] {
            assert!(callers.with_key(wrong).is_none());
        }
    }

    #[test]
    fn a_caller_has_the_tenants_that_were_granted_and_no_other() {
        let tenant = |id: &str| id.parse::<TenantId>().unwrap();
        let of = |tenants: &[&str]| {
            let tenants = tenants.iter().map(|id| tenant(id)).collect();
            let callers = Callers::new(&[Config { tenants, ..config("a", "k") }]).unwrap();
            Arc::clone(callers.named("a").unwrap())
        };
        assert!(of(&["1", "2"]).may_read(&tenant("2")));
        assert!(!of(&["1", "2"]).may_read(&tenant("3")));
        assert!(!of(&[]).may_read(&tenant("1")));
        assert_eq!(of(&["1", "1"]).only_tenant(), Some(&tenant("1")));
        assert_eq!((of(&[]).only_tenant(), of(&["1", "2"]).only_tenant()), (None, None));
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let refused = |configs: &[Config]| Callers::new(configs).map(drop).unwrap_err();
        let same_key = refused(&[config("a", "k"), config("b", "k")]);
        assert_eq!((same_key.index, same_key.field), (1, "key_sha256"));
        let same_name = refused(&[config("a", "k"), config("a", "l")]);
        assert_eq!((same_name.index, same_name.field), (1, "name"));
        for name in ["", "a:b", "a\nb", &"a".repeat(65)] {
            assert_eq!(refused(&[config(name, "k")]).field, "name");
        }
    }

    #[test]
    fn what_is_spent_of_a_rate_stays_spent_while_name_key_and_rate_stay() {
        let limited = |name: &str, key: &str, requests_per_second| Config { requests_per_second, ..config(name, key) };
        let rate = |callers: &Callers, name: &str| callers.named(name).unwrap().rate.clone().unwrap();
        let before = Callers::new(&[limited("a", "k", 7), limited("b", "l", 7)]).unwrap();
        let same = before.renewed(&[limited("new", "n", 7), limited("a", "k", 7)]).unwrap();
        assert!(Arc::ptr_eq(&rate(&before, "a"), &rate(&same, "a")));
        for (name, other) in [("a", limited("a", "k", 8)), ("a", limited("a", "m", 7)), ("c", limited("c", "k", 7))] {
            let changed = before.renewed(&[other]).unwrap();
            assert!(!Arc::ptr_eq(&rate(&before, "a"), &rate(&changed, name)), "{name}");
        }
        assert!(before.renewed(&[config("a", "k")]).unwrap().named("a").unwrap().rate.is_none());
    }

    #[test]
    fn a_digest_is_never_shown() {
        let shown = format!("{:?}", Callers::new(&[config("a", "k")]).unwrap());
        assert!(!shown.contains(&config("a", "k").key_sha256) && shown.contains("[redacted]"), "{shown}");
    }
}
