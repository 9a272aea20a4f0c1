//! Callers: the clients that look profiles up, and what each may read.
//!
//! The configuration has only the SHA-256 of a caller's key. The presented key is hashed and found by its hash. That takes
//! the same time for every wrong key: the hash table uses a key that only this process has, and the hashes are compared
//! in constant time. So timing reveals nothing, not even about the configured hashes, and a lookup costs the same for one
//! caller and for a thousand. A name is checked only after the key, or after the signature of a token, so that nobody can
//! probe for names.
//!
//! Access is denied by default: a caller may read only the tenants and fields that are configured for it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::{LookupBy, TenantId, is_name};
use crate::http::auth::field_set::FieldSet;
use crate::http::auth::scope::TokenScope;
use crate::upstream::Requester;

use crate::http::auth::rate_limit::CallerRate;

/// `[[caller]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name: in logs and audit, in Basic authentication, and as `client_id`.
    pub name: String,
    /// The SHA-256 of its key, in hex (see `profile-edge hash-key`).
    pub key_sha256: String,
    /// The tenants whose customers it may look up.
    pub tenants: Vec<TenantId>,
    /// The fields it may read: `*`, or dotted paths such as `workPhone.e164`.
    pub fields: Vec<String>,
    /// The rate limit, in requests per second and process; 0: no limit.
    pub requests_per_second: u32,
    /// Whether it may demand an answer that is fetched anew.
    pub may_refresh: bool,
    /// What it may look customers up by.
    pub lookup_by: Vec<LookupBy>,
    /// Whether its answers have the header `Server-Timing`.
    pub timing: bool,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its configured name.
    pub name: Arc<str>,
    /// The fields it may read.
    pub fields: FieldSet,
    /// Its rate limit, if it has one.
    pub rate: Option<Arc<CallerRate>>,
    /// Whether it may demand an answer that is fetched anew.
    pub may_refresh: bool,
    /// Whether its answers have the header `Server-Timing`.
    pub timing: bool,
    /// What is left of its rights with the token of this request, if that is narrower.
    pub scope: Option<Arc<str>>,
    /// The handle of the agent's token, if the caller is an agent.
    pub agent: Option<Arc<str>>,
    /// The hash of its key.
    pub key: KeyDigest,
    pub(super) tenants: Vec<TenantId>,
    pub(super) lookup_by: Vec<LookupBy>,
}

/// All configured callers. A reload replaces them all at once.
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
    /// The position of the caller, from 0.
    pub index: usize,
    /// The invalid field.
    pub field: &'static str,
    /// What is expected.
    pub reason: String,
}

impl Config {
    /// Checks the name.
    ///
    /// # Errors
    ///
    /// What is expected of a name.
    fn validate_name(&self) -> Result<(), &'static str> {
        let expected = "must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'";
        if is_name(&self.name) { Ok(()) } else { Err(expected) }
    }
}

/// Returns all faults of the callers' configuration, in the callers' order.
///
/// A fault is a malformed or repeated name, a key that is not 64 hex digits or that two callers share, or a malformed
/// field path.
#[must_use]
pub fn validate(configs: &[Config]) -> Vec<InvalidCaller> {
    parse(configs).err().unwrap_or_default()
}

/// Returns the key and the fields of each caller.
///
/// # Errors
///
/// All faults; at least one.
fn parse(configs: &[Config]) -> Result<Vec<(KeyDigest, FieldSet)>, Vec<InvalidCaller>> {
    let (mut parsed, mut faults) = (Vec::new(), Vec::new());
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    for (index, config) in configs.iter().enumerate() {
        let mut fault = |field, reason: &str| faults.push(InvalidCaller { index, field, reason: reason.to_owned() });
        if let Err(reason) = config.validate_name() {
            fault("name", reason);
        }
        if !names.insert(&config.name) {
            fault("name", "another caller has the same name");
        }
        let mut digest = [0; 32];
        if hex::decode_to_slice(&config.key_sha256, &mut digest).is_err() {
            fault("key_sha256", "must be 64 hex digits, as profile-edge hash-key prints them");
        } else if !keys.insert(digest) {
            fault("key_sha256", "another caller has the same key");
        }
        match FieldSet::parse(config.fields.iter().map(String::as_str)) {
            Ok(fields) => parsed.push((KeyDigest(digest), fields)),
            Err(error) => fault("fields", &error.to_string()),
        }
    }
    if faults.is_empty() { Ok(parsed) } else { Err(faults) }
}

impl Callers {
    /// Creates the callers from their configuration.
    ///
    /// # Errors
    ///
    /// The first fault that [`validate`] finds.
    pub fn new(configs: &[Config]) -> Result<Self, InvalidCaller> {
        Self::create(configs, None)
    }

    /// Creates the callers of a new configuration. A caller with the same name, key and rate limit keeps its used quota.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn renewed(&self, configs: &[Config]) -> Result<Self, InvalidCaller> {
        Self::create(configs, Some(self))
    }

    fn create(configs: &[Config], before: Option<&Self>) -> Result<Self, InvalidCaller> {
        let parsed = parse(configs).map_err(|mut faults| faults.swap_remove(0))?;
        let mut callers = Self { by_key: HashMap::new(), by_name: HashMap::new() };
        for (config, (key, fields)) in configs.iter().zip(parsed) {
            let mut tenants = config.tenants.clone();
            tenants.sort_unstable();
            tenants.dedup();
            let same = before.and_then(|before| before.named(&config.name)).filter(|caller| caller.key == key);
            let running = same.and_then(|caller| caller.rate.as_ref());
            let rate = NonZeroU32::new(config.requests_per_second).map(|requests| {
                let running = running.filter(|rate| rate.quota() == requests.get());
                running.map_or_else(|| Arc::new(CallerRate::per_second(requests)), Arc::clone)
            });
            let (name, may_refresh, timing) = (config.name.as_str().into(), config.may_refresh, config.timing);
            let (scope, agent, lookup_by) = (None, None, config.lookup_by.clone());
            let caller =
                Arc::new(Caller { name, fields, rate, may_refresh, timing, scope, agent, key, tenants, lookup_by });
            callers.by_key.insert(caller.key, Arc::clone(&caller));
            callers.by_name.insert(Arc::clone(&caller.name), caller);
        }
        Ok(callers)
    }

    /// Returns the caller with this key.
    #[must_use]
    pub fn with_key(&self, key: &[u8]) -> Option<&Arc<Caller>> {
        self.by_key.get(&KeyDigest::of(key))
    }

    /// Returns the caller with this name. Use it only after the caller is authenticated.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Caller>> {
        self.by_name.get(name)
    }

    /// Returns whether any caller may look up a tenant's customers by this.
    #[must_use]
    pub fn any_may_look_up_by(&self, tenant: &TenantId, by: LookupBy) -> bool {
        self.by_name.values().any(|caller| caller.may_read(tenant) && caller.may_look_up_by(by))
    }
}

impl Caller {
    /// Returns whose share of a tenant's budget the lookups of this caller spend.
    #[must_use]
    pub fn requester(&self) -> Requester {
        Requester::Caller(Arc::clone(&self.name))
    }

    /// Returns this caller with no more rights than a scope names; `None` if the scope is wider than its rights.
    #[must_use]
    pub fn narrowed(&self, scope: &TokenScope) -> Option<Self> {
        let (mut tenants, mut fields) = (self.tenants.clone(), self.fields.clone());
        if let Some(tenant) = &scope.tenant {
            if !self.may_read(tenant) {
                return None;
            }
            tenants = vec![tenant.clone()];
        }
        if let Some(named) = &scope.fields {
            if !self.fields.covers(named) {
                return None;
            }
            fields = named.clone();
        }
        Some(Self { tenants, fields, scope: Some(scope.recorded()), ..self.clone() })
    }

    /// Returns whether the caller may look up a tenant's customers.
    #[must_use]
    pub fn may_read(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }

    /// Returns whether the caller may look customers up by this.
    #[must_use]
    pub fn may_look_up_by(&self, by: LookupBy) -> bool {
        self.lookup_by.contains(&by)
    }

    /// Returns the caller's tenant, if it has exactly one.
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

    /// Returns a caller of the demo tenant that may read every field.
    pub(in crate::http) fn config(name: &str, key: &str) -> Config {
        Config {
            name: name.to_owned(),
            key_sha256: hex::encode(Sha256::digest(key)),
            tenants: vec!["10001".parse().unwrap()],
            fields: vec!["*".to_owned()],
            requests_per_second: 0,
            may_refresh: false,
            lookup_by: vec![LookupBy::CustomerId],
            timing: false,
        }
    }

    #[test]
    fn a_caller_is_found_by_its_exact_key_only() {
        let callers = Callers::new(&[config("a", "one"), config("b", "other")]).unwrap();
        assert_eq!(&*callers.with_key(b"one").unwrap().name, "a");
        assert_eq!(&*callers.with_key(b"other").unwrap().name, "b");
        let digest = config("a", "one").key_sha256;
        for wrong in [b"".as_slice(), b"onf", b"one ", b"ONE", digest.as_bytes()] {
            assert!(callers.with_key(wrong).is_none());
        }
    }

    #[test]
    fn a_caller_has_only_its_configured_tenants() {
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
    fn a_scope_narrows_a_caller_and_never_widens_it() {
        let tenants = ["1", "2"].map(|id| id.parse().unwrap()).to_vec();
        let fields = vec!["id".to_owned(), "workPhone".to_owned()];
        let callers = Callers::new(&[Config { tenants, fields, ..config("a", "k") }]).unwrap();
        let caller = callers.named("a").unwrap();
        let narrowed = |scope: &str| caller.narrowed(&scope.parse().unwrap());
        let one = narrowed("tenant:1 fields:id,workPhone.e164").unwrap();
        assert_eq!(one.only_tenant(), Some(&"1".parse().unwrap()));
        assert!(!one.fields.covers(&caller.fields) && caller.fields.covers(&one.fields));
        assert_eq!(one.scope.as_deref(), Some("tenant:1 fields:2"), "names that a caller chose are not recorded");
        assert_eq!(narrowed("fields:id").unwrap().only_tenant(), None);
        for wider in ["tenant:3", "fields:*", "fields:lastName", "tenant:1 fields:id,lastName"] {
            assert!(narrowed(wider).is_none(), "{wider}");
        }
    }

    #[test]
    fn repeated_and_malformed_names_and_keys_are_refused() {
        let refused = |configs: &[Config]| Callers::new(configs).map(drop).unwrap_err();
        let same_key = refused(&[config("a", "k"), config("b", "k")]);
        assert_eq!((same_key.index, same_key.field), (1, "key_sha256"));
        let same_name = refused(&[config("a", "k"), config("a", "l")]);
        assert_eq!((same_name.index, same_name.field), (1, "name"));
        for name in ["", "a:b", "a\nb", "a b", "desk \"7\"", "büro", &"a".repeat(65)] {
            assert_eq!(refused(&[config(name, "k")]).field, "name");
        }
    }

    #[test]
    fn validation_reports_every_fault_with_its_caller_and_field() {
        let broken = Config { key_sha256: "x".to_owned(), fields: vec!["a..b".to_owned()], ..config("a:b", "k") };
        let faults = validate(&[config("a", "k"), broken, config("a", "k")]);
        let places: Vec<_> = faults.iter().map(|fault| (fault.index, fault.field)).collect();
        assert_eq!(places, [(1, "name"), (1, "key_sha256"), (1, "fields"), (2, "name"), (2, "key_sha256")]);
        assert!(validate(&[config("a", "k"), config("b", "l")]).is_empty());
    }

    #[test]
    fn a_reload_keeps_the_used_quota_while_name_key_and_rate_stay() {
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
    fn key_digests_are_redacted_in_debug_output() {
        let shown = format!("{:?}", Callers::new(&[config("a", "k")]).unwrap());
        assert!(!shown.contains(&config("a", "k").key_sha256) && shown.contains("[redacted]"), "{shown}");
    }
}
