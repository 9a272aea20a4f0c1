use proptest::prelude::*;

use super::policy::HeldPermission;
use super::*;

fn permissions(texts: &[&str]) -> Vec<Permission> {
    texts.iter().map(|text| Permission::try_from((*text).to_owned()).unwrap()).collect()
}

fn scopes(texts: &[&str]) -> Vec<Scope> {
    texts.iter().map(|text| Scope::try_from((*text).to_owned()).unwrap()).collect()
}

fn rules() -> PrivilegePolicy {
    PrivilegePolicy {
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
    let subject: TokenSubject = serde_json::from_str(&document).unwrap();
    rules().broken_by_permissions(&subject.permissions())
}

fn policy(domain: &str, entity: &str, actions: &str) -> String {
    format!(r#"{{"domain":"{domain}","entityName":"{entity}","actions":{actions}}}"#)
}

#[test]
fn a_token_must_be_able_to_view_contacts_and_nothing_else() {
    assert!(broken(&format!("[{}]", policy("externalContacts", "contact", r#"["view"]"#))).is_empty());
    let beside = policy("externalContacts", "externalOrganization", r#"["edit","*"]"#);
    let others = policy("conversation", "*", r#"["*"]"#);
    let view = policy("externalContacts", "contact", r#"["search","view"]"#);
    assert!(broken(&format!("[{beside},{others},{view}]")).is_empty());
}

#[test]
fn a_token_without_the_view_permission_is_refused() {
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
fn wildcards_grant_view_and_write_permissions() {
    for (domain, entity, action) in
        [("externalContacts", "contact", "*"), ("externalContacts", "*", "*"), ("*", "*", "*"), ("*", "contact", "*")]
    {
        let broken = broken(&format!("[{}]", policy(domain, entity, &format!(r#"["{action}"]"#))));
        assert_eq!(broken.len(), 3, "{domain}:{entity}:{action}: {broken:?}");
        assert!(broken.iter().all(|rule| rule.contains("forbidden")));
    }
    assert!(broken(&format!("[{}]", policy("externalContacts", "*", r#"["view"]"#))).is_empty());
    assert_eq!(broken(r#"[{"domain":"externalContacts","actions":["*"]}]"#).len(), 3, "no entity means every entity");
}

#[test]
fn grants_of_several_roles_add_up() {
    let role =
        |action: &str| format!(r#"{{"role":{{"policies":[{}]}}}}"#, policy("externalContacts", "contact", action));
    let document = format!(r#"{{"grants":[{},{}]}}"#, role(r#"["view"]"#), role(r#"["edit"]"#));
    let subject: TokenSubject = serde_json::from_str(&document).unwrap();
    assert_eq!(rules().broken_by_permissions(&subject.permissions()).len(), 1);
}

#[test]
fn a_wildcard_rule_requires_all_and_forbids_every_part() {
    let held = [HeldPermission(["externalContacts", "contact", "view"])];
    let all = PrivilegePolicy {
        required_permissions: permissions(&["externalContacts:contact:*"]),
        forbidden_permissions: permissions(&["externalContacts:*:*", "*:*:delete"]),
        ..rules()
    };
    let broken = all.broken_by_permissions(&held);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].contains("lacks") && broken[1].ends_with("externalContacts:*:*"), "{broken:?}");
}

#[test]
fn scopes_are_checked_if_there_are_any() {
    let rules = PrivilegePolicy { required_scopes: scopes(&["external-contacts:readonly"]), ..rules() };
    let broken = |scopes: &[&str]| rules.broken_by_scopes(scopes);
    assert!(broken(&["external-contacts:readonly", "other"]).is_empty());
    assert_eq!(broken(&["other"]), ["the token lacks the scope external-contacts:readonly"]);
    let excess = broken(&["external-contacts:readonly", "Cloud.Cust.Write"]);
    assert_eq!(excess, ["the token holds the forbidden scope cloud.cust.write"]);
}

#[test]
fn the_documents_of_genesys_are_parsed() {
    let info: TokenInfo = serde_json::from_str(
        r#"{"organization":{"id":"o"},"authorizedScope":[],"clonedUser":null,"dateTokenIdles":null,
            "OAuthClient":{"id":"c","scope":["a"],"roleDivisions":[{"roleId":"r1","divisionId":"*"}]}}"#,
    )
    .unwrap();
    assert_eq!(info.scopes(), ["a"]);
    assert!(serde_json::from_str::<TokenInfo>("{}").unwrap().scopes().is_empty());
    assert!(serde_json::from_str::<TokenSubject>("{}").is_err(), "an error document is not a subject");
}

#[test]
fn invalid_permissions_and_scopes_are_rejected() {
    for text in ["", "a", "a:b", "a:b:", "a:b:c:d", "a:b c:d", ":::", "a:**:c"] {
        assert!(Permission::try_from(text.to_owned()).is_err(), "{text}");
    }
    for text in ["", "a b", "a\"", "a\\", "a\n"] {
        assert!(Scope::try_from(text.to_owned()).is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn a_permission_that_covers_a_rule_overlaps_it(held in prop::array::uniform3("a|b|\\*"), rule in prop::array::uniform3("a|b|\\*")) {
        let rule = Permission::try_from(rule.join(":")).unwrap();
        let held = HeldPermission([&held[0], &held[1], &held[2]]);
        prop_assert!(!held.covers(&rule) || held.overlaps(&rule));
    }
}
