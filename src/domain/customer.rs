//! Customer identifiers: personal data, so they cannot be printed.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Identifies a customer at Genesys: 1–256 bytes of UTF-8 without control characters and without
/// `/ \ ? # %`, and neither `.` nor `..`, so that it is always exactly one URL path segment.
///
/// It is personal data: there is no `Display`, and `Debug` shows `[redacted]`. Only [`CustomerId::expose`] returns the
/// text. Its callers are the key hasher, the upstream adapter, the sandbox, ingest (an event id must not contain a
/// customer id), and the faults that prove that tests detect a leak.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CustomerId(Arc<str>);

/// Why a text is not a customer id. The error never contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCustomerId {
    /// The text is empty or longer than [`CustomerId::MAX_LEN`] bytes.
    #[error("must be 1 to 256 bytes long")]
    Length,
    /// The text contains a control character.
    #[error("must not contain control characters")]
    Control,
    /// The text contains a character that is reserved in a URL path.
    #[error("must not contain any of / \\ ? # %")]
    Reserved,
    /// The text is `.` or `..`.
    #[error("must not be '.' or '..'")]
    DotSegment,
}

impl CustomerId {
    /// The maximum length of a customer id, in bytes.
    pub const MAX_LEN: usize = 256;

    /// Returns the text, for hashing or for a request to Genesys; never for printing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the form that is hashed: a UUID in lower case, any other id unchanged.
    #[must_use]
    pub fn hashed_form(&self) -> Cow<'_, str> {
        if is_uuid(&self.0) && self.0.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(self.0.to_ascii_lowercase())
        } else {
            Cow::Borrowed(&self.0)
        }
    }

    /// Returns whether the id is a UUID in its hyphenated form (RFC 9562), as Genesys' own ids are.
    #[must_use]
    pub fn is_uuid(&self) -> bool {
        is_uuid(&self.0)
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

impl FromStr for CustomerId {
    type Err = InvalidCustomerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(1..=Self::MAX_LEN).contains(&text.len()) {
            Err(InvalidCustomerId::Length)
        } else if text.chars().any(char::is_control) {
            Err(InvalidCustomerId::Control)
        } else if text.contains(['/', '\\', '?', '#', '%']) {
            Err(InvalidCustomerId::Reserved)
        } else if matches!(text, "." | "..") {
            Err(InvalidCustomerId::DotSegment)
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl fmt::Debug for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerId([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_keeps_the_text(text in "[^\\p{Cc}/\\\\?#%]{1,60}") {
            prop_assume!(text != "." && text != "..");
            let customer: CustomerId = text.parse().unwrap();
            prop_assert_eq!(customer.expose(), text);
        }

        #[test]
        fn debug_never_shows_the_text(text in "[a-z0-9]{12,40}") {
            let shown = format!("{:?}", text.parse::<CustomerId>().unwrap());
            prop_assert!(!shown.contains(&text));
        }
    }

    #[test]
    fn ids_that_are_not_one_path_segment_are_refused() {
        let parse = |text: &str| text.parse::<CustomerId>().unwrap_err();
        assert_eq!(parse(""), InvalidCustomerId::Length);
        assert_eq!(parse(&"é".repeat(129)), InvalidCustomerId::Length);
        assert_eq!(parse("a\nb"), InvalidCustomerId::Control);
        assert_eq!(parse("a/b"), InvalidCustomerId::Reserved);
        assert_eq!(parse("a\\b"), InvalidCustomerId::Reserved);
        assert_eq!(parse("%2e"), InvalidCustomerId::Reserved);
        assert_eq!(parse(".."), InvalidCustomerId::DotSegment);
        assert_eq!(parse("."), InvalidCustomerId::DotSegment);
    }

    #[test]
    fn hashing_lower_cases_only_uuids() {
        let form = |text: &str| text.parse::<CustomerId>().unwrap().hashed_form().into_owned();
        assert_eq!(form("5F0D9C1E-0000-4000-8000-00000000000A"), "5f0d9c1e-0000-4000-8000-00000000000a");
        assert_eq!(form("CUST-42"), "CUST-42");
    }
}
