//! The text form of answers of the admin listener, for the command line.

use serde_json::Value;

/// Formats an answer as text: one line for each value, with its path.
#[must_use]
pub fn lines(answer: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", answer, &mut lines);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Formats one dead letter as one line of text.
#[must_use]
pub fn line(letter: &Value) -> String {
    let text = |name: &str| letter[name].as_str().unwrap_or("-");
    let what = match (letter["eventId"].as_str(), letter["length"].as_u64()) {
        (Some(event), _) => format!("{} of tenant {}, event {event}", text("kind"), text("tenantId")),
        (None, Some(length)) => format!("{length} bytes that are not an event, SHA-256 {}", text("sha256")),
        (None, None) => "-".to_owned(),
    };
    format!("{}  {}  {}  {what}\n", text("id"), text("since"), text("reason"))
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&below, member, lines);
            }
        }
        Value::String(text) => lines.push((path.to_owned(), text.clone())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            lines.push((path.to_owned(), value.to_string()));
        }
    }
}
