//! Callers: who looks profiles up, and what each may see.
//!
//! A caller proves itself by its key, in `X-API-Key`, as a bearer token (RFC 6750) or as the password
//! of Basic authentication (RFC 7617). Only the key's SHA-256 is configured; what is presented is hashed
//! first and found by its hash, so no comparison depends on the key. Denied by default: a caller has the
//! tenants and fields that are configured for it, and nothing else.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::domain::TenantId;
use crate::lookup::visibility::FieldSet;

use super::error::Problem;

/// `[[caller]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, for logs and audit.
    pub name: String,
    /// SHA-256 of its key, in hex (see `profile-edge hash-key`).
    pub key_sha256: String,
    /// The tenants whose customers it may look up.
    pub tenants: Vec<TenantId>,
    /// The fields it may see: `*`, or dotted paths such as `workPhone.e164`.
    pub fields: Vec<String>,
}

/// A caller that has proved itself.
#[derive(Debug)]
pub struct Caller {
    /// Its configured name.
    pub name: String,
    /// The fields it may see.
    pub fields: FieldSet,
    tenants: Vec<TenantId>,
}

/// All configured callers.
#[derive(Debug)]
pub struct Callers {
    by_key: HashMap<[u8; 32], Arc<Caller>>,
}

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

impl Callers {
    /// Makes the callers of their configuration.
    ///
    /// # Errors
    ///
    /// A key that is not 64 hex digits or that two callers share, or a malformed field path.
    pub fn new(configs: &[Config]) -> Result<Self, InvalidCaller> {
        let mut by_key = HashMap::with_capacity(configs.len());
        for (index, config) in configs.iter().enumerate() {
            let invalid = |field, reason: &str| InvalidCaller { index, field, reason: reason.to_owned() };
            let mut digest = [0; 32];
            hex::decode_to_slice(&config.key_sha256, &mut digest)
                .map_err(|_| invalid("key_sha256", "must be 64 hex digits, as profile-edge hash-key prints them"))?;
            let fields = FieldSet::parse(config.fields.iter().map(String::as_str))
                .map_err(|error| invalid("fields", &error.to_string()))?;
            let caller = Caller { name: config.name.clone(), fields, tenants: config.tenants.clone() };
            if by_key.insert(digest, Arc::new(caller)).is_some() {
                return Err(invalid("key_sha256", "another caller has the same key"));
            }
        }
        Ok(Self { by_key })
    }

    /// Returns the caller whose key a request presents.
    ///
    /// # Errors
    ///
    /// 401, in the same words whatever was missing or wrong.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<&Arc<Caller>, Problem> {
        let unauthorized = || {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "a valid caller key is needed, in X-API-Key or in Authorization",
            )
        };
        let (name, key) = presented(headers).ok_or_else(unauthorized)?;
        let caller = self.by_key.get(&<[u8; 32]>::from(Sha256::digest(&key))).ok_or_else(unauthorized)?;
        if name.is_some_and(|name| name != caller.name.as_bytes()) {
            return Err(unauthorized());
        }
        Ok(caller)
    }
}

impl Caller {
    /// Tells whether the caller may look up a tenant's customers.
    #[must_use]
    pub fn may_read(&self, tenant: &TenantId) -> bool {
        self.tenants.contains(tenant)
    }
}

/// The name (of Basic only) and the key.
type Presented<'a> = (Option<Vec<u8>>, Cow<'a, [u8]>);

/// Returns the name (of Basic only) and the key that a request presents: exactly one, or none.
fn presented(headers: &HeaderMap) -> Option<Presented<'_>> {
    let mut api_keys = headers.get_all("x-api-key").iter();
    let mut authorizations = headers.get_all(header::AUTHORIZATION).iter();
    let found = match (api_keys.next(), authorizations.next()) {
        (Some(key), None) => (None, Cow::Borrowed(key.as_bytes())),
        (None, Some(value)) => authorization(value.as_bytes())?,
        (Some(_), Some(_)) | (None, None) => return None,
    };
    (api_keys.next().is_none() && authorizations.next().is_none()).then_some(found)
}

fn authorization(value: &[u8]) -> Option<Presented<'_>> {
    let space = value.iter().position(|b| *b == b' ')?;
    let (scheme, credential) = (&value[..space], value[space + 1..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some((None, Cow::Borrowed(credential)))
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = STANDARD.decode(credential).ok()?;
        let colon = pair.iter().position(|b| *b == b':')?;
        Some((Some(pair[..colon].to_vec()), Cow::Owned(pair[colon + 1..].to_vec())))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn callers() -> Callers {
        Callers::new(&[Config {
            name: "architect".to_owned(),
            key_sha256: hex::encode(Sha256::digest("demo-key")),
            tenants: vec!["10001".parse().unwrap()],
            fields: vec!["*".to_owned()],
        }])
        .unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_key_is_taken_from_each_of_the_three_places() {
        let basic = format!("Basic {}", STANDARD.encode("architect:demo-key"));
        for pair in [("x-api-key", "demo-key"), ("authorization", "Bearer demo-key"), ("authorization", &basic)] {
            assert_eq!(callers().authenticate(&headers(&[pair])).unwrap().name, "architect");
        }
    }

    #[test]
    fn whatever_is_wrong_is_told_in_the_same_words() {
        let other = format!("Basic {}", STANDARD.encode("someone:demo-key"));
        let attempts: [&[(&'static str, &str)]; 8] = [
            &[],
            &[("x-api-key", "demo-kez")],
            &[("x-api-key", "")],
            &[("authorization", "Bearer nope")],
            &[("authorization", "Digest demo-key")],
            &[("authorization", &other)],
            &[("x-api-key", "demo-key"), ("authorization", "Bearer demo-key")],
            &[("x-api-key", "demo-key"), ("x-api-key", "demo-key")],
        ];
        let first = callers().authenticate(&headers(attempts[0])).unwrap_err();
        for attempt in attempts {
            assert_eq!(callers().authenticate(&headers(attempt)).unwrap_err(), first, "{attempt:?}");
        }
    }

    #[test]
    fn two_callers_cannot_share_a_key() {
        let config = Config {
            name: "a".to_owned(),
            key_sha256: hex::encode(Sha256::digest("k")),
            tenants: Vec::new(),
            fields: Vec::new(),
        };
        assert_eq!(Callers::new(&[config.clone(), config]).unwrap_err().index, 1);
    }
}
