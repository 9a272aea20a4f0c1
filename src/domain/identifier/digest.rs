//! Digests of identifiers. Phone numbers can be enumerated, so they are always keyed.

use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::domain::key::{Identity, KeyHasher};
use crate::domain::tenant::TenantId;

use super::query::CustomerQuery;
use super::value::{Identifier, MAX_IDENTIFIERS};

/// The bytes of a mark. An accidental match of two identifiers has a probability of 2⁻⁶⁴, and nobody without the key can
/// search for one.
const MARK: usize = 8;

/// Hashes identifiers: HMAC-SHA-256 (RFC 2104) over kind, source and normal form, keyed with `keys.secret`.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentifierHasher(Zeroizing<Vec<u8>>);

impl IdentifierHasher {
    /// Creates a hasher with this key.
    #[must_use]
    pub const fn new(key: Zeroizing<Vec<u8>>) -> Self {
        Self(key)
    }

    /// Returns the identity of a tenant's identifier.
    #[must_use]
    pub fn identify(&self, tenant: &TenantId, identifier: &Identifier) -> Identity {
        let parts = identifier.expose();
        // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("hmac takes keys of any length");
        // A customer id, which may be hashed under the same key, has no zero byte; nor has any of the parts.
        for part in [parts.by.as_str(), parts.source.unwrap_or_default()] {
            mac.update(part.as_bytes());
            mac.update(&[0]);
        }
        mac.update(parts.value.as_bytes());
        Identity::of_identifier(tenant.clone(), mac.finalize().into_bytes().into())
    }

    /// Returns the marks of the identifiers of a contact.
    #[must_use]
    pub fn mark(&self, tenant: &TenantId, identifiers: &[Identifier]) -> IdentifierMarks {
        let marks = identifiers.iter().take(MAX_IDENTIFIERS).map(|identifier| self.identify(tenant, identifier));
        IdentifierMarks(marks.flat_map(|identity| mark_of(&identity)).collect())
    }
}

impl fmt::Debug for IdentifierHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentifierHasher([redacted])")
    }
}

/// The short digests of the identifiers that a profile shows, so that reading a stored profile needs no parsing.
/// Cloning is cheap. The `Debug` form has their number.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct IdentifierMarks(Bytes);

impl fmt::Debug for IdentifierMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentifierMarks([redacted], {})", self.0.len() / MARK)
    }
}

impl IdentifierMarks {
    /// Takes the bytes of [`as_bytes`](Self::as_bytes); `None` for any other length.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        (bytes.len().is_multiple_of(MARK) && bytes.len() <= MARK * MAX_IDENTIFIERS).then_some(Self(bytes))
    }

    /// Returns the marks, one after the other: at most 512 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Returns whether the profile shows this identifier.
    #[must_use]
    pub fn contains(&self, identifier: &Identity) -> bool {
        let mark = mark_of(identifier);
        self.0.chunks_exact(MARK).any(|shown| shown == mark)
    }
}

fn mark_of(identity: &Identity) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark.copy_from_slice(&identity.full_digest()[..MARK]);
    mark
}

/// Turns the customers of lookups into the identities of their keys.
#[derive(Clone, Debug)]
pub struct QueryHasher {
    /// Hashes customer ids.
    pub customers: KeyHasher,
    /// Hashes identifiers; `None` without a key for them.
    pub identifiers: Option<IdentifierHasher>,
}

impl QueryHasher {
    /// Returns the identity of a tenant's customer or identifier; `None` for an identifier without a key for it.
    #[must_use]
    pub fn identify(&self, tenant: &TenantId, query: &CustomerQuery) -> Option<Identity> {
        match query {
            CustomerQuery::Id(customer) => Some(self.customers.identify(tenant, customer)),
            CustomerQuery::Identifier(identifier) => {
                self.identifiers.as_ref().map(|hasher| hasher.identify(tenant, identifier))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(key: &[u8]) -> IdentifierHasher {
        IdentifierHasher::new(Zeroizing::new(key.to_vec()))
    }

    #[test]
    fn kind_source_value_key_and_tenant_matter_and_customers_differ() {
        let (tenant, other): (TenantId, TenantId) = ("10001".parse().unwrap(), "10002".parse().unwrap());
        let external = |source, value| Identifier::external_id(source, value).unwrap();
        let of = |identifier: &Identifier| hasher(b"k").identify(&tenant, identifier);
        let base = external("ab", "c@d");
        let customer: crate::domain::CustomerId = "c@d".parse().unwrap();
        for another in [
            of(&external("a", "bc@d")),
            of(&Identifier::email("c@d").unwrap()),
            hasher(b"l").identify(&tenant, &base),
            hasher(b"k").identify(&other, &base),
            KeyHasher::HmacSha256(Zeroizing::new(b"k".to_vec())).identify(&tenant, &customer),
        ] {
            assert_ne!(another, of(&base));
        }
        assert!(of(&base).key().as_str().starts_with("cust:ident:10001:"));
        assert_eq!(of(&base).key().as_str().parse::<crate::domain::Key>().unwrap(), of(&base).key());
    }

    #[test]
    fn marks_show_exactly_their_identifiers() {
        let tenant: TenantId = "10001".parse().unwrap();
        let email = |text: &str| Identifier::email(text).unwrap();
        let marks = hasher(b"k").mark(&tenant, &[email("a@x"), email("b@x")]);
        let shows = |text: &str| marks.contains(&hasher(b"k").identify(&tenant, &email(text)));
        assert!(shows("a@x") && shows("b@x") && !shows("c@x"));
        assert_eq!(IdentifierMarks::from_bytes(marks.as_bytes().clone()), Some(marks.clone()));
        assert_eq!(IdentifierMarks::from_bytes(marks.as_bytes().slice(1..)), None);
        let many: Vec<_> = (0..100).map(|n| email(&format!("{n}@x"))).collect();
        assert_eq!(hasher(b"k").mark(&tenant, &many).as_bytes().len(), 512);
    }
}
