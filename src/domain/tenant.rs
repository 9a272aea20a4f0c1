//! Tenant identifiers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Identifies a tenant (one Genesys Cloud organisation): 1–64 characters of `[A-Za-z0-9._-]`.
///
/// A tenant id is not personal data: keys, logs and audit records contain it. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// The text is not a tenant id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'")]
pub struct InvalidTenantId;

impl TenantId {
    /// The maximum length of a tenant id, in bytes.
    pub const MAX_LEN: usize = 64;

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns whether a text has the grammar of names in logs and audit records, of tenants and callers: 1 to 64 characters
/// of `[A-Za-z0-9._-]`. The redaction of `conf/shipping` passes such names unchanged.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=TenantId::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed)
}

impl FromStr for TenantId {
    type Err = InvalidTenantId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text) { Ok(Self(text.into())) } else { Err(InvalidTenantId) }
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn format_and_parse_are_inverses(text in "[A-Za-z0-9._-]{1,64}") {
            let tenant: TenantId = text.parse().unwrap();
            prop_assert_eq!(tenant.to_string(), text);
        }

        #[test]
        fn anything_else_is_refused(text in ".*[^A-Za-z0-9._-].*") {
            prop_assert_eq!(text.parse::<TenantId>(), Err(InvalidTenantId));
        }
    }

    #[test]
    fn length_is_bounded() {
        assert!("".parse::<TenantId>().is_err());
        assert!("a".repeat(64).parse::<TenantId>().is_ok());
        assert!("a".repeat(65).parse::<TenantId>().is_err());
    }
}
