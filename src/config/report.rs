//! The output of `check-config`: every effective setting and its origin.

use serde_json::json;

use super::settings::Secrets;
use super::tree::{Node, Origin};

/// The effective settings with their values, secrets redacted, and their origins.
#[derive(Clone, Debug)]
pub struct SettingsReport(Vec<(String, String, Origin)>);

impl SettingsReport {
    pub(super) fn of(tree: &Node, secrets: &Secrets) -> Self {
        let mut lines = Vec::new();
        tree.walk("", &mut |path, value, origin| {
            // The members of a list of secrets have paths of their own.
            let secret = secrets.contains_key(path) || secrets.contains_key(&format!("{path}[0]"));
            let value = if secret { "\"[redacted]\"".to_owned() } else { value };
            lines.push((path.to_owned(), value, origin.clone()));
        });
        Self(lines)
    }

    /// Returns one `key = value  # origin` line for each setting.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.iter().map(|(path, value, origin)| format!("{path} = {value}  # {origin}\n")).collect()
    }

    /// Returns one JSON object on a line for each setting.
    #[must_use]
    pub fn json_lines(&self) -> String {
        let line = |(path, value, origin): &(String, String, Origin)| {
            let value = serde_json::from_str(value).unwrap_or(serde_json::Value::String(value.clone()));
            format!("{}\n", json!({ "key": path, "value": value, "from": origin.to_string() }))
        };
        self.0.iter().map(line).collect()
    }
}
