//! Requests for contacts by something else than their id.

use std::fmt;

use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use crate::domain::{Identifier, LookupBy};

/// The longest query that is passed on, in bytes.
const MAX_QUERY: usize = 2048;

/// What Genesys is asked for.
#[derive(Clone, PartialEq, Eq)]
pub enum Search {
    /// The contact that has an identifier: the profile.
    Identifier(Identifier),
    /// Contacts by a phone number or an address; the answer is a list.
    ReverseWhitePages(SearchQuery),
    /// Contacts by a text; the answer is a list.
    Contacts(SearchQuery),
}

/// The query of a search, as the caller sent it: personal data, so it cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchQuery(String);

/// The query of a search is too long or is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be at most 2048 bytes of UTF-8")]
pub struct InvalidSearch;

impl SearchQuery {
    /// Takes a query string and writes it in one form.
    ///
    /// # Errors
    ///
    /// It is longer than 2048 bytes.
    pub fn parse(query: &str) -> Result<Self, InvalidSearch> {
        if query.len() > MAX_QUERY {
            return Err(InvalidSearch);
        }
        let pairs = form_urlencoded::parse(query.as_bytes());
        Ok(Self(form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()))
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identifier(_) => "Search(identifier, [redacted])",
            Self::ReverseWhitePages(_) => "Search(reverse, [redacted])",
            Self::Contacts(_) => "Search(contacts, [redacted])",
        })
    }
}

impl fmt::Debug for SearchQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchQuery([redacted])")
    }
}

/// The URLs of searches of one tenant.
#[derive(Clone, Debug)]
pub(super) struct SearchUrls {
    /// Of the lookup of an identifier.
    pub(super) identifier: Url,
    /// Of the reverse lookup.
    pub(super) reverse: Url,
    /// Of the search for a text.
    pub(super) contacts: Url,
}

impl SearchUrls {
    /// Returns the URL of a search that is a GET.
    pub(super) fn with_query(url: &Url, query: &SearchQuery) -> Url {
        let mut url = url.clone();
        url.set_query(Some(&query.0));
        url
    }
}

/// Returns the body of the lookup of an identifier: a `ContactIdentifier`.
pub(super) fn body_of(identifier: &Identifier) -> Value {
    let parts = identifier.expose();
    let kind = match parts.by {
        LookupBy::Phone => "Phone",
        LookupBy::Email => "Email",
        LookupBy::ExternalId | LookupBy::CustomerId => "ExternalId",
    };
    let mut body = json!({ "type": kind, "value": parts.value });
    if let Some(source) = parts.source {
        body["externalSource"] = json!({ "id": source });
    }
    body
}
