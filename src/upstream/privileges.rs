//! What a token may do, and whether that is too little or too much.
//!
//! A token is judged before it fetches its first profile, in the task that renewed it, so that once for each
//! renewal and never at the cost of a lookup of its own. A cache needs to see contacts and nothing else:
//! without the permission to see them nothing works, and with one to change them a stolen token does harm. So
//! a missing privilege and a forbidden one are both refusals, not warnings: no profile is fetched.
//!
//! # Where it is read
//!
//! From the scopes of the token's own answer (RFC 6749 section 5.1) where it names any: then they decide.
//! Genesys names none for client credentials; there it is in two documents that need no permission:
//!
//! 1. `GET /api/v2/tokens/me`: the scopes, which are judged like those of a token's answer.
//! 2. `GET /api/v2/authorization/subjects/me`: grants, each of a role, each role of policies, each policy a
//!    domain, an entity and actions; together the permissions `domain:entity:action`. `*` in any part stands
//!    for all. Conditions and divisions narrow where a permission holds, not whether it is held, so they are
//!    not looked at.
//!
//! With neither required nor forbidden permissions there is nothing to ask, and nothing is asked.
//!
//! Nothing of these documents is kept or told; a refusal names the configured rules that are broken.

use std::sync::Arc;

use http::header;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;

use super::Error;
use super::exchange::Answer;
use super::token::Token;

/// The largest document about a token, in bytes: an administrator's roles in many divisions are long.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// A permission of Genesys Cloud: `domain:entity:action`, of which each part may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permission {
    text: String,
}

/// The text is no permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be permissions of the form domain:entity:action, such as externalContacts:contact:view")]
pub struct InvalidPermission;

/// An OAuth scope (RFC 6749 section 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(String);

/// The text is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be scopes: not empty, without spaces, quotes, backslashes or control characters")]
pub struct InvalidScope;

/// What a token must be able to do, and what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Permissions that it must hold.
    pub(super) required_permissions: Vec<Permission>,
    /// Permissions of which it must hold no part.
    pub(super) forbidden_permissions: Vec<Permission>,
    /// Scopes that it must have.
    pub(super) required_scopes: Vec<Scope>,
    /// Scopes that it must not have.
    pub(super) forbidden_scopes: Vec<Scope>,
}

/// Where a token's privileges are told.
#[derive(Clone, Debug)]
pub(super) struct Introspection {
    /// Whose token it is, and its scopes.
    pub(super) token: Url,
    /// What it may do.
    pub(super) subject: Url,
}

/// Judges the tokens of one tenant.
#[derive(Debug)]
pub(super) struct Privileges {
    client: Client,
    rules: Rules,
    introspection: Introspection,
}

impl Privileges {
    /// Makes a judge; nothing is sent before the first token.
    pub(super) const fn new(client: Client, rules: Rules, introspection: Introspection) -> Self {
        Self { client, rules, introspection }
    }

    /// Judges a token, asking Genesys about it where its answer did not tell, until `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Privileges`] when they are wrong; anything else when Genesys did not tell.
    pub(super) async fn verify(&self, token: &Token, deadline: Instant) -> Result<(), Error> {
        let scopes: Vec<&str> = token.scopes().collect();
        if !scopes.is_empty() {
            return refuse(self.rules.broken_by_scopes(&scopes));
        }
        if self.rules.ask_nothing() {
            return refuse(self.rules.broken_by_scopes(&[]));
        }
        let (about, subject) = tokio::try_join!(
            self.ask::<TokenInfo>(&self.introspection.token, token, deadline),
            self.ask::<Subject>(&self.introspection.subject, token, deadline),
        )?;
        let mut broken = self.rules.broken_by_scopes(&about.scopes());
        broken.extend(self.rules.broken_by_permissions(&subject.held()));
        refuse(broken)
    }

    async fn ask<T: for<'de> Deserialize<'de>>(&self, url: &Url, token: &Token, deadline: Instant) -> Result<T, Error> {
        let request = self.client.get(url.clone()).header(header::AUTHORIZATION, token.header());
        let answer = Answer::to(request.header(header::ACCEPT, "application/json"), MAX_ANSWER, deadline).await?;
        if answer.status != http::StatusCode::OK {
            return Err(answer.refusal());
        }
        serde_json::from_slice(&answer.body)
            .map_err(|_| Error::Unusable { reason: "no description of a token where one was asked for" })
    }
}

fn refuse(broken: Vec<String>) -> Result<(), Error> {
    if broken.is_empty() { Ok(()) } else { Err(Error::Privileges { reason: Arc::from(broken.join(", ")) }) }
}

impl Rules {
    /// Tells whether permissions do not matter.
    const fn ask_nothing(&self) -> bool {
        self.required_permissions.is_empty() && self.forbidden_permissions.is_empty()
    }

    /// Returns the rules about scopes that these break, in words.
    fn broken_by_scopes(&self, scopes: &[&str]) -> Vec<String> {
        let has = |scope: &&Scope| scopes.iter().any(|has| scope.0.eq_ignore_ascii_case(has));
        let missing = self.required_scopes.iter().filter(|scope| !has(scope)).map(|scope| lacks("scope", &scope.0));
        let excess = self.forbidden_scopes.iter().filter(has).map(|scope| holds("scope", &scope.0));
        missing.chain(excess).collect()
    }

    /// Returns the rules about permissions that these break, in words.
    fn broken_by_permissions(&self, held: &[Held<'_>]) -> Vec<String> {
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

/// A held permission; each part may be `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held<'a>([&'a str; 3]);

impl Held<'_> {
    /// Tells whether it grants all that a rule names.
    fn covers(&self, rule: &Permission) -> bool {
        self.0.iter().zip(rule.parts()).all(|(held, asked)| *held == "*" || held.eq_ignore_ascii_case(asked))
    }

    /// Tells whether it grants anything that a rule names.
    fn overlaps(&self, rule: &Permission) -> bool {
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
        let is_one = permission.parts().count() == 3 && permission.parts().all(part);
        is_one.then_some(permission).ok_or(InvalidPermission)
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
        let is_one = !text.is_empty() && text.bytes().all(allowed);
        is_one.then_some(Self(text)).ok_or(InvalidScope)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0
    }
}

/// `GET /api/v2/tokens/me`, of which only the scopes matter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenInfo {
    #[serde(default)]
    authorized_scope: Option<Vec<String>>,
    #[serde(default, rename = "OAuthClient")]
    client: Option<OAuthClient>,
}

#[derive(Deserialize)]
struct OAuthClient {
    #[serde(default)]
    scope: Option<Vec<String>>,
}

impl TokenInfo {
    fn scopes(&self) -> Vec<&str> {
        let own = self.authorized_scope.iter().flatten();
        let of_client = self.client.iter().flat_map(|client| client.scope.iter().flatten());
        own.chain(of_client).map(String::as_str).collect()
    }
}

/// `GET /api/v2/authorization/subjects/me`. One without grants would be no such document.
#[derive(Deserialize)]
struct Subject {
    grants: Vec<Grant>,
}

#[derive(Deserialize)]
struct Grant {
    role: Role,
}

#[derive(Deserialize)]
struct Role {
    #[serde(default)]
    policies: Option<Vec<Policy>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    domain: String,
    #[serde(default)]
    entity_name: Option<String>,
    #[serde(default)]
    actions: Option<Vec<String>>,
}

impl Subject {
    /// Returns every permission that the grants hold. A policy that names no entity is of all of them.
    fn held(&self) -> Vec<Held<'_>> {
        let policies = self.grants.iter().flat_map(|grant| grant.role.policies.iter().flatten());
        let permissions = policies.flat_map(|policy| {
            let entity = policy.entity_name.as_deref().unwrap_or("*");
            let actions = policy.actions.iter().flatten();
            actions.map(move |action| Held([&policy.domain, entity, action]))
        });
        permissions.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permissions(texts: &[&str]) -> Vec<Permission> {
        texts.iter().map(|text| Permission::try_from((*text).to_owned()).unwrap()).collect()
    }

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|text| Scope::try_from((*text).to_owned()).unwrap()).collect()
    }

    fn rules() -> Rules {
        Rules {
            required_permissions: permissions(&["externalContacts:contact:view"]),
            forbidden_permissions: permissions(&[
                "externalContacts:contact:add",
                "externalContacts:contact:edit",
                "externalContacts:contact:delete",
            ]),
            required_scopes: Vec::new(),
            forbidden_scopes: scopes(&["cloud.cust.write"]),
        }
    }

    fn broken(policies: &str) -> Vec<String> {
        let document =
            format!(r#"{{"id":"c","grants":[{{"division":{{"id":"d"}},"role":{{"id":"r","policies":{policies}}}}}]}}"#);
        let subject: Subject = serde_json::from_str(&document).unwrap();
        rules().broken_by_permissions(&subject.held())
    }

    fn policy(domain: &str, entity: &str, actions: &str) -> String {
        format!(r#"{{"domain":"{domain}","entityName":"{entity}","actions":{actions}}}"#)
    }

    #[test]
    fn to_see_contacts_is_all_that_a_token_may_and_must_do() {
        assert!(broken(&format!("[{}]", policy("externalContacts", "contact", r#"["view"]"#))).is_empty());
        let beside = policy("externalContacts", "externalOrganization", r#"["edit","*"]"#);
        let others = policy("conversation", "*", r#"["*"]"#);
        let view = policy("externalContacts", "contact", r#"["search","view"]"#);
        assert!(broken(&format!("[{beside},{others},{view}]")).is_empty());
    }

    #[test]
    fn a_token_without_sight_is_refused() {
        let lacks = ["the token lacks the permission externalContacts:contact:view"];
        assert_eq!(broken("[]"), lacks);
        assert_eq!(broken("null"), lacks);
        assert_eq!(broken(&format!("[{}]", policy("externalContacts", "note", r#"["view"]"#))), lacks);
        assert_eq!(broken(&format!("[{}]", policy("externalContacts", "contact", r#"["viewer"]"#))), lacks);
        assert_eq!(broken(&format!("[{}]", policy("externalContacts", "contact", "null"))), lacks);
    }

    #[test]
    fn each_write_permission_is_named() {
        for action in ["add", "edit", "delete"] {
            let policies = format!("[{}]", policy("externalContacts", "contact", &format!(r#"["view","{action}"]"#)));
            let expected = format!("the token holds the forbidden permission externalContacts:contact:{action}");
            assert_eq!(broken(&policies), [expected]);
        }
    }

    #[test]
    fn wildcards_give_sight_and_the_power_to_write() {
        for (domain, entity, action) in [
            ("externalContacts", "contact", "*"),
            ("externalContacts", "*", "*"),
            ("*", "*", "*"),
            ("*", "contact", "*"),
        ] {
            let broken = broken(&format!("[{}]", policy(domain, entity, &format!(r#"["{action}"]"#))));
            assert_eq!(broken.len(), 3, "{domain}:{entity}:{action}: {broken:?}");
            assert!(broken.iter().all(|rule| rule.contains("forbidden")));
        }
        assert!(broken(&format!("[{}]", policy("externalContacts", "*", r#"["view"]"#))).is_empty());
        assert_eq!(broken(r#"[{"domain":"externalContacts","actions":["*"]}]"#).len(), 3, "no entity is every entity");
    }

    #[test]
    fn grants_of_several_roles_add_up() {
        let role =
            |action: &str| format!(r#"{{"role":{{"policies":[{}]}}}}"#, policy("externalContacts", "contact", action));
        let document = format!(r#"{{"grants":[{},{}]}}"#, role(r#"["view"]"#), role(r#"["edit"]"#));
        let subject: Subject = serde_json::from_str(&document).unwrap();
        assert_eq!(rules().broken_by_permissions(&subject.held()).len(), 1);
    }

    #[test]
    fn a_rule_with_a_wildcard_forbids_every_part_and_requires_all() {
        let held = [Held(["externalContacts", "contact", "view"])];
        let all = Rules {
            required_permissions: permissions(&["externalContacts:contact:*"]),
            forbidden_permissions: permissions(&["externalContacts:*:*", "*:*:delete"]),
            ..rules()
        };
        let broken = all.broken_by_permissions(&held);
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].contains("lacks") && broken[1].ends_with("externalContacts:*:*"), "{broken:?}");
    }

    #[test]
    fn scopes_are_judged_where_there_are_any() {
        let rules = Rules { required_scopes: scopes(&["external-contacts:readonly"]), ..rules() };
        let broken = |scopes: &[&str]| rules.broken_by_scopes(scopes);
        assert!(broken(&["external-contacts:readonly", "other"]).is_empty());
        assert_eq!(broken(&["other"]), ["the token lacks the scope external-contacts:readonly"]);
        let excess = broken(&["external-contacts:readonly", "Cloud.Cust.Write"]);
        assert_eq!(excess, ["the token holds the forbidden scope cloud.cust.write"]);
    }

    #[test]
    fn the_documents_of_genesys_are_read() {
        // GENESYS.md section 2.3.
        let about: TokenInfo = serde_json::from_str(
            r#"{"organization":{"id":"o"},"authorizedScope":[],"clonedUser":null,"dateTokenIdles":null,
                "OAuthClient":{"id":"c","scope":["a"],"roleDivisions":[{"roleId":"r1","divisionId":"*"}]}}"#,
        )
        .unwrap();
        assert_eq!(about.scopes(), ["a"]);
        assert!(serde_json::from_str::<TokenInfo>("{}").unwrap().scopes().is_empty());
        assert!(serde_json::from_str::<Subject>("{}").is_err(), "an error document is not a subject without grants");
    }

    #[test]
    fn only_permissions_and_scopes_are_read_as_such() {
        for text in ["", "a", "a:b", "a:b:", "a:b:c:d", "a:b c:d", ":::", "a:**:c"] {
            assert!(Permission::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["", "a b", "a\"", "a\\", "a\n"] {
            assert!(Scope::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_covers_a_rule_overlaps_it(held in prop::array::uniform3("a|b|\\*"), rule in prop::array::uniform3("a|b|\\*")) {
            let rule = Permission::try_from(rule.join(":")).unwrap();
            let held = Held([&held[0], &held[1], &held[2]]);
            prop_assert!(!held.covers(&rule) || held.overlaps(&rule));
        }
    }
}
