//! Why a configuration cannot be used.

use std::fmt;

use serde::de::{Expected, Unexpected};

use super::nearest::nearest;
use super::tree::Origin;

/// What `std` reports of an address that is not an IP address with a port.
const NOT_AN_ADDRESS: &str = "invalid socket address syntax";

/// What `humantime` says that it expects.
pub(super) const DURATION: &str = "a duration";

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The path of the setting, such as `tenant[0].upstream.client_secret`.
    pub path: String,
    /// The origin of the value, if it is known.
    pub origin: Option<Origin>,
    /// What is wrong and what is expected.
    pub reason: String,
}

impl SettingError {
    /// Creates the error for a setting.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), origin: None, reason: reason.into() }
    }

    /// Adds the path and the origin, unless more precise ones are known.
    pub(super) fn at(mut self, path: &str, origin: &Origin) -> Self {
        if self.path.is_empty() {
            path.clone_into(&mut self.path);
        }
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }

    /// Completes the path by that of the value in which the error is: a missing field knows only its own name, and a value
    /// that is parsed from a text knows none.
    pub(super) fn within(mut self, path: &str, origin: &Origin) -> Self {
        if !self.path.is_empty() && !self.path.starts_with(path) {
            self.path = format!("{path}.{}", self.path);
        }
        self.at(path, origin)
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl std::error::Error for SettingError {}

impl serde::de::Error for SettingError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        match message.to_string() {
            message if message == NOT_AN_ADDRESS => Self::new(
                "",
                "must be an IP address and a port, such as 127.0.0.1:8080; the name of a host cannot be used here",
            ),
            message => Self::new("", message),
        }
    }

    // None of these shows the value: it may be a secret in the wrong place.
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("", format!("must be {}, not {}", kind_of_expected(expected), kind_of(found)))
    }

    fn invalid_value(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("", format!("must be {}", kind_of_expected(expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let near = nearest(variant, expected.iter().copied()).map(|near| format!("; the nearest is \"{near}\""));
        Self::new("", format!("must be one of {}{}", quoted(expected), near.unwrap_or_default()))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let near = nearest(field, expected.iter().copied()).map(|near| format!("the nearest is `{near}`"));
        let known = || format!("the known keys are {}", expected.join(", "));
        Self::new(field, format!("is not a known key; {}", near.unwrap_or_else(known)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

fn kind_of(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number",
        Unexpected::Str(_) | Unexpected::Char(_) => "a string",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

/// Names what serde expects in the words of TOML.
fn kind_of_expected(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        name if name.starts_with("struct ") => "a table".to_owned(),
        DURATION => "a duration such as \"300s\"".to_owned(),
        // What `ByteSize` expects.
        "an integer or string" | "parsable string" | "integer overflow" => "a size such as \"1MiB\"".to_owned(),
        "u8" => whole_number(u8::MAX),
        "u16" => whole_number(u16::MAX),
        "u32" => whole_number(u32::MAX),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        other => other.to_owned(),
    }
}

fn whole_number(most: impl fmt::Display) -> String {
    format!("a whole number from 0 to {most}")
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct LoadErrors(pub Vec<SettingError>);

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadErrors {}

impl From<SettingError> for LoadErrors {
    fn from(error: SettingError) -> Self {
        Self(vec![error])
    }
}
