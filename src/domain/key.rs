//! Entry keys: `cust:profile:{tenant_id}:{digest}` of a customer, `cust:ident:{tenant_id}:{digest}` of an identifier.
//!
//! The digest is the first 16 bytes of a SHA-256 (or HMAC-SHA-256) over the customer id, so a key contains no personal
//! data and is the same on every deployment. A record contains all 32 bytes ([`Identity`]), so that a digest collision
//! and a value that was copied to another key are detected.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::customer::CustomerId;
use super::tenant::TenantId;

/// What a key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum KeyKind {
    Customer,
    Identifier,
}

impl KeyKind {
    const ALL: [Self; 2] = [Self::Customer, Self::Identifier];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Customer => "cust:profile:",
            Self::Identifier => "cust:ident:",
        }
    }
}

/// The 16 bytes that identify a customer in a key, a queue message and an audit record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 16]);

/// The text is not a digest or a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not 32 lowercase hex digits.
    #[error("a digest is 32 lowercase hex digits")]
    Digest,
    /// Neither `cust:profile:{tenant_id}:{digest}` nor `cust:ident:{tenant_id}:{digest}`.
    #[error("a key is cust:profile:{{tenant_id}}:{{digest}} or cust:ident:{{tenant_id}}:{{digest}}")]
    Key,
}

impl Digest {
    /// Creates a digest from its 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Writes the digest as 32 hex digits, and returns them.
    fn text<'a>(&self, digits: &'a mut [u8; 32]) -> &'a str {
        // A 16-byte slice always fits 32 digits, so the encoding cannot fail.
        let _ = hex::encode_to_slice(self.0, digits);
        std::str::from_utf8(digits).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; 32]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        let lowercase = !text.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lowercase => Ok(Self(bytes)),
            _ => Err(InvalidKey::Digest),
        }
    }
}

/// The key of the entry of one customer, or of one identifier, in the store. Cloning is cheap.
#[derive(Clone)]
pub struct Key {
    name: Arc<str>,
    kind: KeyKind,
    tenant: TenantId,
    digest: Digest,
}

impl Key {
    /// Creates the key of a tenant's customer.
    #[must_use]
    pub fn new(tenant: &TenantId, digest: Digest) -> Self {
        Self::of(KeyKind::Customer, tenant, digest)
    }

    /// Creates the key of a tenant's identifier.
    #[must_use]
    pub fn of_identifier(tenant: &TenantId, digest: Digest) -> Self {
        Self::of(KeyKind::Identifier, tenant, digest)
    }

    fn of(kind: KeyKind, tenant: &TenantId, digest: Digest) -> Self {
        // Every lookup creates one; `format!` would be slower.
        let mut name = String::with_capacity(kind.prefix().len() + tenant.as_str().len() + 1 + 32);
        name.push_str(kind.prefix());
        name.push_str(tenant.as_str());
        name.push(':');
        name.push_str(digest.text(&mut [0; 32]));
        Self { name: name.into(), kind, tenant: tenant.clone(), digest }
    }

    /// Returns the key as text, as Redis stores it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns the digest of the customer id or the identifier.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns whether it is the key of an identifier.
    #[must_use]
    pub fn is_identifier(&self) -> bool {
        self.kind == KeyKind::Identifier
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.tenant == other.tenant && self.kind == other.kind
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
        self.tenant.hash(state);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let stripped = KeyKind::ALL.into_iter().find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)));
        let (kind, rest) = stripped.ok_or(InvalidKey::Key)?;
        let (tenant, digest) = rest.rsplit_once(':').ok_or(InvalidKey::Key)?;
        Ok(Self::of(kind, &tenant.parse().map_err(|_| InvalidKey::Key)?, digest.parse()?))
    }
}

/// What a record is about: the tenant and the full digest of the customer id, or of an identifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    kind: KeyKind,
    tenant: TenantId,
    full: [u8; 32],
}

impl Identity {
    /// Creates the identity of a customer from the parts that a stored record contains.
    #[must_use]
    pub const fn new(tenant: TenantId, full: [u8; 32]) -> Self {
        Self { kind: KeyKind::Customer, tenant, full }
    }

    /// Creates the identity of an identifier from the parts that a stored record contains.
    #[must_use]
    pub const fn of_identifier(tenant: TenantId, full: [u8; 32]) -> Self {
        Self { kind: KeyKind::Identifier, tenant, full }
    }

    /// Returns whether it is that of an identifier.
    #[must_use]
    pub const fn is_identifier(&self) -> bool {
        matches!(self.kind, KeyKind::Identifier)
    }

    /// Returns the tenant.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns all 32 bytes of the digest.
    #[must_use]
    pub const fn full_digest(&self) -> &[u8; 32] {
        &self.full
    }

    /// Returns the 16 bytes that the key contains.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut short = [0; 16];
        short.copy_from_slice(&self.full[..16]);
        Digest(short)
    }

    /// Returns the key of its entry.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::of(self.kind, &self.tenant, self.digest())
    }
}

/// Hashes customer ids with one of the two schemes of `keys.scheme`.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyHasher {
    /// SHA-256 over the id (FIPS 180-4).
    Sha256,
    /// HMAC-SHA-256 over the id (RFC 2104), keyed with `keys.secret`.
    HmacSha256(Zeroizing<Vec<u8>>),
}

impl KeyHasher {
    /// Returns the identity of a tenant's customer.
    #[must_use]
    pub fn identify(&self, tenant: &TenantId, customer: &CustomerId) -> Identity {
        Identity::new(tenant.clone(), self.hash(&customer.hashed_form()))
    }

    /// Hashes a text that may identify a customer, with the scheme of the customers' keys, so that it is as hard to
    /// guess.
    #[must_use]
    pub fn hash(&self, text: &str) -> [u8; 32] {
        match self {
            Self::Sha256 => Sha256::digest(text.as_bytes()).into(),
            Self::HmacSha256(secret) => {
                // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
                let mac = Hmac::<Sha256>::new_from_slice(secret).expect("hmac takes keys of any length");
                mac.chain_update(text.as_bytes()).finalize().into_bytes().into()
            }
        }
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "Sha256",
            Self::HmacSha256(_) => "HmacSha256([redacted])",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identify(hasher: &KeyHasher, customer: &str) -> Identity {
        hasher.identify(&"10001".parse().unwrap(), &customer.parse().unwrap())
    }

    #[test]
    fn sha256_scheme_truncates_the_digest_of_the_id() {
        // printf 'CUST-42' | sha256sum
        let full = hex::encode(Sha256::digest(b"CUST-42"));
        let key = identify(&KeyHasher::Sha256, "CUST-42").key();
        assert_eq!(key.as_str(), format!("cust:profile:10001:{}", &full[..32]));
        let upper = identify(&KeyHasher::Sha256, "5F0D9C1E-0000-4000-8000-000000000001");
        let lower = identify(&KeyHasher::Sha256, "5f0d9c1e-0000-4000-8000-000000000001");
        assert_eq!(upper, lower);
    }

    #[test]
    fn hmac_scheme_follows_rfc_4231_case_2() {
        let hasher = KeyHasher::HmacSha256(Zeroizing::new(b"Jefe".to_vec()));
        let digest = hasher.identify(&"t".parse().unwrap(), &"what do ya want for nothing".parse().unwrap()).digest();
        // The data of RFC 4231 case 2 ends with '?', which a customer id must not contain. So this checks only that
        // the secret matters, and that the schemes differ.
        assert_ne!(digest, identify(&KeyHasher::Sha256, "what do ya want for nothing").digest());
        let other = KeyHasher::HmacSha256(Zeroizing::new(b"Jeff".to_vec()));
        assert_ne!(digest, identify(&other, "what do ya want for nothing").digest());
    }

    #[test]
    fn tenants_never_share_a_key() {
        let customer = "CUST-42".parse().unwrap();
        let of = |tenant: &str| KeyHasher::Sha256.identify(&tenant.parse().unwrap(), &customer).key();
        assert_ne!(of("10001"), of("10002"));
    }

    proptest! {
        #[test]
        fn format_and_parse_are_inverses(tenant in "[A-Za-z0-9._-]{1,64}", bytes in any::<[u8; 16]>()) {
            let key = Key::new(&tenant.parse().unwrap(), Digest::from_bytes(bytes));
            let parsed: Key = key.as_str().parse().unwrap();
            prop_assert_eq!(&parsed, &key);
            prop_assert_eq!(parsed.tenant().as_str(), tenant);
            prop_assert_eq!(key.digest().to_string().parse::<Digest>().unwrap(), key.digest());
        }

        #[test]
        fn a_key_does_not_contain_the_id(id in "[g-z]{6,40}") {
            prop_assert!(!identify(&KeyHasher::Sha256, &id).key().as_str()[KeyKind::Customer.prefix().len()..].contains(&id));
        }
    }
}
