//! The `expand` parameter of a profile request.

use url::form_urlencoded;

/// The most names in one request.
const MAX_NAMES: usize = 16;

/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// The names of fields to expand (`externalOrganization`, `identifiers`, …), sorted, without duplicates. Genesys decides
/// which names exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand(String);

/// The `expand` parameter is not a list of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be up to 16 names of letters, joined by commas")]
pub struct InvalidExpand;

impl Expand {
    /// Parses the `expand` parameter of a query; `None` without one. It may occur more than once, and its commas may be
    /// percent-encoded, since the SDKs differ.
    ///
    /// # Errors
    ///
    /// A name contains other characters than letters, or there are too many names.
    pub fn parse(query: &str) -> Result<Option<Self>, InvalidExpand> {
        let mut names = Vec::new();
        let values = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "expand");
        for (_, value) in values.filter(|(_, value)| !value.is_empty()) {
            for name in value.split(',') {
                if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
                    return Err(InvalidExpand);
                }
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        names.dedup();
        match names.len() {
            0 => Ok(None),
            1..=MAX_NAMES => Ok(Some(Self(names.join(",")))),
            _ => Err(InvalidExpand),
        }
    }

    /// Returns the names, joined by commas.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Option<String> {
        Expand::parse(query).unwrap().map(|expand| expand.as_str().to_owned())
    }

    #[test]
    fn all_spellings_of_expand_are_the_same() {
        for query in ["expand=b,a", "expand=a%2Cb", "expand=a&expand=b", "x=1&expand=b,a,b&expand=", "%65xpand=a,b"] {
            assert_eq!(parse(query).as_deref(), Some("a,b"), "{query}");
        }
        for query in ["", "expand=", "expand", "expanded=a"] {
            assert_eq!(parse(query), None, "{query}");
        }
    }

    #[test]
    fn invalid_names_are_rejected() {
        let many: String = (b'a'..=b'q').map(|letter| format!("expand={}&", char::from(letter))).collect();
        for query in [
            "expand=a.b",
            "expand=a,",
            "expand=,",
            "expand=a,%20b",
            "expand=a%26x=1",
            "expand=%ff",
            "expand=a%20b",
            many.as_str(),
        ] {
            assert_eq!(Expand::parse(query), Err(InvalidExpand), "{query}");
        }
    }
}
