//! The privileges that a token must hold and must not hold, as configured.

use serde::{Deserialize, Serialize};

/// A permission of Genesys Cloud: `domain:entity:action`, of which each part may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permission {
    text: String,
}

/// The text is not a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be permissions of the form domain:entity:action, such as externalContacts:contact:view")]
pub struct InvalidPermission;

/// An OAuth scope (RFC 6749 section 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(String);

/// The text is not a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be scopes: not empty, without spaces, quotes, backslashes or control characters")]
pub struct InvalidScope;

/// The privileges that a token must hold, and those that it must not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct PrivilegePolicy {
    /// Permissions that it must hold.
    pub(in crate::upstream) required_permissions: Vec<Permission>,
    /// Permissions of which it must hold no part.
    pub(in crate::upstream) forbidden_permissions: Vec<Permission>,
    /// Scopes that it must have.
    pub(in crate::upstream) required_scopes: Vec<Scope>,
    /// Scopes that it must not have.
    pub(in crate::upstream) forbidden_scopes: Vec<Scope>,
}

impl PrivilegePolicy {
    /// Returns whether no rule is about permissions.
    pub(super) const fn ignores_permissions(&self) -> bool {
        self.required_permissions.is_empty() && self.forbidden_permissions.is_empty()
    }

    /// Returns the rules that these scopes break, in words.
    pub(super) fn broken_by_scopes(&self, scopes: &[&str]) -> Vec<String> {
        let has = |scope: &&Scope| scopes.iter().any(|has| scope.0.eq_ignore_ascii_case(has));
        let missing = self.required_scopes.iter().filter(|scope| !has(scope)).map(|scope| lacks("scope", &scope.0));
        let excess = self.forbidden_scopes.iter().filter(has).map(|scope| holds("scope", &scope.0));
        missing.chain(excess).collect()
    }

    /// Returns the rules that these permissions break, in words.
    pub(super) fn broken_by_permissions(&self, held: &[HeldPermission<'_>]) -> Vec<String> {
        let covered = |rule: &&Permission| held.iter().any(|held| held.covers(rule));
        let touched = |rule: &&Permission| held.iter().any(|held| held.overlaps(rule));
        let required = self.required_permissions.iter().filter(|rule| !covered(rule));
        let forbidden = self.forbidden_permissions.iter().filter(touched);
        let missing = required.map(|rule| lacks("permission", &rule.text));
        missing.chain(forbidden.map(|rule| holds("permission", &rule.text))).collect()
    }
}

fn lacks(what: &str, name: &str) -> String {
    format!("the token lacks the {what} {name}")
}

fn holds(what: &str, name: &str) -> String {
    format!("the token holds the forbidden {what} {name}")
}

/// A permission that a token holds. Each part may be `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldPermission<'a>(pub(super) [&'a str; 3]);

impl HeldPermission<'_> {
    /// Returns whether it grants all that a rule names.
    pub(super) fn covers(&self, rule: &Permission) -> bool {
        self.0.iter().zip(rule.parts()).all(|(held, asked)| *held == "*" || held.eq_ignore_ascii_case(asked))
    }

    /// Returns whether it grants anything that a rule names.
    pub(super) fn overlaps(&self, rule: &Permission) -> bool {
        let meets = |(held, named): (&&str, &str)| *held == "*" || named == "*" || held.eq_ignore_ascii_case(named);
        self.0.iter().zip(rule.parts()).all(meets)
    }
}

impl Permission {
    fn parts(&self) -> impl Iterator<Item = &str> {
        self.text.split(':')
    }
}

impl TryFrom<String> for Permission {
    type Error = InvalidPermission;

    fn try_from(text: String) -> Result<Self, InvalidPermission> {
        let part = |part: &str| {
            part == "*"
                || (!part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')))
        };
        let permission = Self { text };
        let is_valid = permission.parts().count() == 3 && permission.parts().all(part);
        is_valid.then_some(permission).ok_or(InvalidPermission)
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> Self {
        permission.text
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        let allowed = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        let is_valid = !text.is_empty() && text.bytes().all(allowed);
        is_valid.then_some(Self(text)).ok_or(InvalidScope)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0
    }
}
