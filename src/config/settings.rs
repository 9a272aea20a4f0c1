//! The effective settings by path, to find what another configuration changes.

use std::collections::BTreeMap;
use std::fmt;

use super::tree::Node;

/// The effective settings by path. Of a secret only the hash is kept, so a changed file of a secret is a difference.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

/// The SHA-256 of each secret, by path.
pub(super) type Secrets = BTreeMap<String, [u8; 32]>;

impl Settings {
    pub(super) fn of(tree: &Node, secrets: &Secrets) -> Self {
        let mut settings: BTreeMap<_, _> =
            secrets.iter().map(|(path, digest)| (path.clone(), hex::encode(digest))).collect();
        tree.walk("", &mut |path, value, _| {
            // The members of a list of secrets have paths of their own.
            if !secrets.contains_key(path) && !secrets.contains_key(&format!("{path}[0]")) {
                settings.insert(path.to_owned(), value);
            }
        });
        Self(settings)
    }

    /// Returns the paths of the settings that differ, or that only one of the two configurations has.
    #[must_use]
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let changed = self.0.iter().filter(|(path, value)| other.0.get(*path) != Some(value));
        let added = other.0.iter().filter(|(path, _)| !self.0.contains_key(*path));
        changed.chain(added).map(|(path, _)| path.as_str()).collect()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, from_toml};

    const TENANT: &str = r#"
        [[tenant]]
        id = "10001"
        upstream = { region = "us_east_1", client_id = "id", client_secret = "one" }
        webhook = [{ scheme = "api-key", secrets = ["two-two-two-two-two", "three-three-three-three-three"] }]
        "#;

    fn config(text: &str) -> Config {
        from_toml(text).unwrap().config
    }

    #[test]
    fn a_changed_secret_is_a_difference_and_its_text_is_not_kept() {
        let before = config(TENANT).settings;
        assert!(before.differences(&config(TENANT).settings).is_empty());
        let (secret, webhook) = (TENANT.replace("one", "uno"), TENANT.replace("three", "tre"));
        assert_eq!(before.differences(&config(&secret).settings), ["tenant[0].upstream.client_secret"]);
        assert_eq!(before.differences(&config(&webhook).settings), ["tenant[0].webhook[0].secrets[1]"]);
        assert!(!before.0.values().any(|value| ["one", "two", "three"].iter().any(|secret| value.contains(secret))));
    }

    #[test]
    fn an_explicit_default_is_no_difference_an_added_setting_is() {
        let before = config(TENANT).settings;
        let webhook = TENANT.replace("webhook = [{ scheme = \"api-key\", secrets = [\"two-two-two-two-two\", \"three-three-three-three-three\"] }]", "");
        assert_eq!(config(&webhook).settings.differences(&before).len(), 3);
        let spelled = format!("lookup.ttl = \"300s\"\n{TENANT}");
        assert!(before.differences(&config(&spelled).settings).is_empty());
    }
}
