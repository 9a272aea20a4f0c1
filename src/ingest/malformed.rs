//! Errors of JSON texts that quote nothing of the text.
//!
//! The messages of the parser quote the text. These errors contain only the path of the field and what was expected.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A field that is not as expected. Except for the name of the field, it contains nothing of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The path of the field, such as `[3].detail.eventBody.id`; `body` for the whole text.
    pub field: String,
    /// What was expected.
    pub expected: String,
}

impl Malformed {
    /// Creates the error from the path of a field and what was expected.
    pub fn new(field: impl Into<String>, expected: impl fmt::Display) -> Self {
        Self { field: field.into(), expected: expected.to_string() }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.expected)
    }
}

impl std::error::Error for Malformed {}

/// Parses a JSON object strictly; `prefix` is its path within a larger text, or empty.
///
/// # Errors
///
/// The text is empty, not UTF-8 or not a JSON object; or a field is missing, is given twice, or has another type.
pub fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8], prefix: &str) -> Result<T, Malformed> {
    // Serde also reads a struct from an array, by the order of its fields.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Malformed::new(whole(prefix), "expected a JSON object"));
    }
    parse_any(bytes, prefix)
}

/// Returns the elements of a JSON array that is a whole body.
///
/// # Errors
///
/// As of [`parse`], for an array.
pub fn elements(bytes: &[u8]) -> Result<Vec<&RawValue>, Malformed> {
    parse_any(bytes, "")
}

const fn whole(prefix: &str) -> &str {
    if prefix.is_empty() { "body" } else { prefix }
}

fn parse_any<'de, T: Deserialize<'de>>(bytes: &'de [u8], prefix: &str) -> Result<T, Malformed> {
    #[cfg(test)]
    tests::PARSED.set(tests::PARSED.get() + bytes.len());
    if bytes.trim_ascii().is_empty() {
        return Err(Malformed::new(whole(prefix), "is missing: expected JSON"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::new(whole(prefix), "must be UTF-8"))?;
    // Tracking the path doubles the cost, and only an error needs it.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&join(prefix, if path == "." { "" } else { &path }), error.inner())
    })?;
    json.end().map_err(|_| Malformed::new(whole(prefix), "must be one JSON value and nothing after it"))?;
    Ok(value)
}

/// The deepest nesting of a JSON text.
pub const MAX_DEPTH: usize = 64;

/// Checks the nesting of a JSON text in one pass, before anything parses it.
///
/// # Errors
///
/// The text is nested deeper than [`MAX_DEPTH`].
pub fn check_depth(bytes: &[u8], prefix: &str) -> Result<(), Malformed> {
    let (mut depth, mut in_text, mut is_escaped) = (0usize, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(Malformed::new(whole(prefix), format!("expected at most {MAX_DEPTH} levels of nesting")));
        }
    }
    Ok(())
}

/// Joins a path and a path within it.
#[must_use]
pub fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        (prefix, "") => prefix.to_owned(),
        ("", path) => path.to_owned(),
        (prefix, path) if path.starts_with('[') => format!("{prefix}{path}"),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

fn explain(path: &str, error: &serde_json::Error) -> Malformed {
    let whole = whole(path);
    if !error.is_data() {
        let (line, column) = (error.line(), error.column());
        return Malformed::new("body", format!("is not valid JSON (line {line}, column {column})"));
    }
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    if let Some(name) = named(message, "missing field `") {
        return Malformed::new(join(path, name), "is missing");
    }
    if let Some(name) = named(message, "duplicate field `") {
        let already = path == name || path.ends_with(&format!(".{name}"));
        return Malformed::new(if already { path.to_owned() } else { join(path, name) }, "is given more than once");
    }
    // The part after the last ", expected " is the description of our type; the part before it quotes the text.
    match message.rsplit_once(", expected ") {
        // The names of our types say nothing to the sender.
        Some((_, expected)) if expected.starts_with("struct ") => Malformed::new(whole, "expected a JSON object"),
        Some((_, expected)) if message.starts_with("invalid ") => Malformed::new(whole, format!("expected {expected}")),
        Some((_, expected)) if message.starts_with("unknown ") => {
            Malformed::new(whole, format!("is not known here, expected {expected}"))
        }
        Some(_) | None => Malformed::new(whole, "is not as expected"),
    }
}

/// Returns the name in backquotes after `prefix`: one of our field names.
fn named<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    message.strip_prefix(prefix)?.strip_suffix('`')
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// How many bytes this thread has parsed.
        pub(crate) static PARSED: Cell<usize> = const { Cell::new(0) };
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OuterSample {
        #[expect(dead_code, reason = "only its parsing matters")]
        inner: InnerSample,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct InnerSample {
        #[expect(dead_code, reason = "only its parsing matters")]
        customer_id: String,
    }

    fn wrong(text: &str) -> String {
        parse::<OuterSample>(text.as_bytes(), "").unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_field_and_what_was_expected() {
        assert_eq!(wrong("{}"), "inner: is missing");
        assert_eq!(wrong(r#"{"inner":{}}"#), "inner.customerId: is missing");
        assert_eq!(wrong(r#"{"inner":{"customerId":7}}"#), "inner.customerId: expected a string");
        assert_eq!(
            wrong(r#"{"inner":{"customerId":"a","customerId":"b"}}"#),
            "inner.customerId: is given more than once"
        );
        assert_eq!(wrong("5"), "body: expected a JSON object");
        assert_eq!(wrong(r#" [{"customerId":"a"}]"#), "body: expected a JSON object");
        assert_eq!(wrong(r#"{"inner":5}"#), "inner: expected a JSON object");
        assert_eq!(wrong(""), "body: is missing: expected JSON");
        assert_eq!(wrong("{"), "body: is not valid JSON (line 1, column 1)");
        assert_eq!(parse::<OuterSample>(b"\xff", "").unwrap_err().to_string(), "body: must be UTF-8");
        let within = parse::<InnerSample>(b"{}", "[3].detail").unwrap_err();
        assert_eq!(within.to_string(), "[3].detail.customerId: is missing");
    }

    proptest! {
        #[test]
        fn errors_never_quote_the_text(value in "canary[a-z, `:]{0,20}") {
            for text in [
                serde_json::json!({ "inner": value }),
                serde_json::json!({ "inner": { "customerId": [value] } }),
                serde_json::json!({ value.clone(): value }),
                serde_json::json!([value]),
            ] {
                prop_assert!(!wrong(&text.to_string()).contains("canary"));
            }
        }
    }
}
