//! What a profile may be asked to be expanded with.

use url::form_urlencoded;

/// The most names that are passed on.
const MAX_NAMES: usize = 16;

/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// Names of what is to be expanded (`externalOrganization`, `identifiers`, …), sorted, each once. Which there
/// are is for Genesys to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand(String);

/// An `expand` is not a list of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be up to 16 names of letters, joined by commas")]
pub struct InvalidExpand;

impl Expand {
    /// Reads the `expand` of a query; `None` if there is none. It may be given more than once, and its commas
    /// may be encoded: the SDKs do not agree on it.
    ///
    /// # Errors
    ///
    /// A name has anything but letters, or there are too many.
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
    fn however_it_is_written_it_is_the_same() {
        for query in ["expand=b,a", "expand=a%2Cb", "expand=a&expand=b", "x=1&expand=b,a,b&expand=", "%65xpand=a,b"] {
            assert_eq!(parse(query).as_deref(), Some("a,b"), "{query}");
        }
        for query in ["", "expand=", "expand", "expanded=a"] {
            assert_eq!(parse(query), None, "{query}");
        }
    }

    #[test]
    fn only_names_are_passed_on() {
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
