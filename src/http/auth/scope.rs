//! The scope of a token (RFC 6749 section 3.3): what it may do of all that its caller may.
//!
//! | part | means |
//! |---|---|
//! | `tenant:10001` | only this tenant |
//! | `fields:id,firstName` | only these fields; `fields:*`: all |
//!
//! Parts are separated by spaces. What no part names is as the caller's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::domain::TenantId;

use crate::http::auth::field_set::{FieldSet, MAX_FIELDS};

/// The longest scope, in bytes: it is a part of the token, and the token of each request.
const MAX_SCOPE: usize = 1024;

/// A scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenScope {
    /// The only tenant.
    pub tenant: Option<TenantId>,
    /// The only fields.
    pub fields: Option<FieldSet>,
    text: Arc<str>,
}

/// A text is not a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scope must be at most 1024 bytes, with tenant:ID and fields:NAME,NAME (at most 64) at most once each")]
pub struct InvalidScope;

impl TokenScope {
    /// Returns the scope as a text, as [`FromStr`] parses it.
    #[must_use]
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Returns the scope for the audit trail: its tenant and how many fields it names. The names are a text of the caller, and
    /// each record of a lookup has those that were shown.
    #[must_use]
    pub fn recorded(&self) -> Arc<str> {
        let tenant = self.tenant.as_ref().map(|tenant| format!("tenant:{tenant}"));
        let fields = self.text.split_once("fields:").map(|(_, names)| {
            let names = names.split(' ').next().unwrap_or_default();
            format!("fields:{}", names.split(',').count())
        });
        tenant.into_iter().chain(fields).collect::<Vec<_>>().join(" ").into()
    }
}

impl FromStr for TokenScope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        let (mut tenant, mut fields) = (None, None);
        if text.len() > MAX_SCOPE || text.is_empty() {
            return Err(InvalidScope);
        }
        for part in text.split(' ') {
            let is_repeated = match part.split_once(':').ok_or(InvalidScope)? {
                ("tenant", id) => tenant.replace(id.parse().map_err(|_| InvalidScope)?).is_some(),
                ("fields", names) if names.split(',').nth(MAX_FIELDS).is_none() => {
                    fields.replace(FieldSet::parse(names.split(',')).map_err(|_| InvalidScope)?).is_some()
                }
                _ => return Err(InvalidScope),
            };
            if is_repeated {
                return Err(InvalidScope);
            }
        }
        Ok(Self { tenant, fields, text: text.into() })
    }
}

impl fmt::Display for TokenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_each_part_at_most_once() {
        for text in ["tenant:10001", "fields:id", "fields:*", "tenant:a fields:id,workPhone.e164", "fields:b tenant:a"]
        {
            assert_eq!(text.parse::<TokenScope>().unwrap().to_string(), text);
        }
        let long = format!("fields:{}", "a,".repeat(600));
        let bad = [
            "",
            " ",
            "x",
            "read",
            "tenant:",
            "tenant:a b",
            "tenant:a tenant:a",
            "fields:",
            "fields:a,",
            "fields:a  tenant:b",
            "fields:a fields:b",
            "fields:a b",
            "Tenant:a",
            "tenant:a/b",
            "fields:+15550199871",
            &long,
        ];
        for text in bad {
            assert_eq!(text.parse::<TokenScope>(), Err(InvalidScope), "{text}");
        }
    }
}
