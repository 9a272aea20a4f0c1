//! The Genesys adapter: the profiles of one tenant through the External Contacts API.
//!
//! One fetch is one request, with one exception: after a 401 it renews the token once and repeats the request. Only the
//! deadline limits it. The limits that protect Genesys are in [`guard`](super::guard), which wraps this adapter.
//!
//! | Genesys answers | the fetch returns |
//! |---|---|
//! | 200 with a JSON object of at most 64 levels | [`Fetched::Found`], the bytes verbatim |
//! | 404, 410 | [`Fetched::Absent`] |
//! | 401 also with a renewed token, 403 | [`Error::Denied`] |
//! | 429 | [`Error::Throttled`] |
//! | 408, 5xx | [`Error::Failed`] |
//! | anything else | [`Error::Unusable`] |

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, header};
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use url::Url;

use crate::domain::{CustomerId, Identifier, Modified, Profile, ProfileBody, TenantId};

use super::audits::{AuditPage, AuditQuery};
use super::bulk::{self, BulkRequest};
use super::endpoints::ProfileUrl;
use super::exchange::GenesysResponse;
use super::http_client::HttpClient;
use super::search::{SearchUrls, body_of};
use super::token::Token;
use super::tokens::TokenCache;
use super::{Error, Expand, Fetched, FetchedMany, Requester, Search, SearchQuery, Upstream};

/// The largest profile, in bytes. Genesys itself accepts half of that.
const MAX_PROFILE: usize = 1024 * 1024;

/// The largest answer to a bulk request, in bytes. The customers of a larger one are fetched alone.
const MAX_BULK: usize = 16 * MAX_PROFILE;

/// The Genesys of one tenant.
#[derive(Debug)]
pub(super) struct Genesys {
    client: HttpClient,
    profile_url: ProfileUrl,
    bulk_url: Url,
    audits_url: Url,
    search_urls: SearchUrls,
    tokens: TokenCache,
}

impl Genesys {
    /// Creates the adapter. It sends nothing before the first fetch.
    pub(super) const fn new(
        client: HttpClient,
        profile_url: ProfileUrl,
        bulk_url: Url,
        audits_url: Url,
        search_urls: SearchUrls,
        tokens: TokenCache,
    ) -> Self {
        Self { client, profile_url, bulk_url, audits_url, search_urls, tokens }
    }

    /// Reads a page of audits until `deadline`.
    pub(super) async fn audits(&self, query: &AuditQuery, deadline: Instant) -> Result<AuditPage, Error> {
        let request = || self.client.post(self.audits_url.clone()).json(&query.request());
        let response = self.ask(request, MAX_BULK, deadline).await?;
        match response.status {
            StatusCode::OK => query.read(&response.body),
            _ => Err(response.error()),
        }
    }

    /// Sends a request with a token, and repeats it once with a renewed one after a 401.
    async fn ask(
        &self,
        build: impl Fn() -> RequestBuilder + Send + Sync,
        limit: usize,
        deadline: Instant,
    ) -> Result<GenesysResponse, Error> {
        let send = async |token: &Token| {
            let request =
                build().header(header::AUTHORIZATION, token.header()).header(header::ACCEPT, "application/json");
            GenesysResponse::receive(request, limit, deadline).await
        };
        let token = self.tokens.get(deadline).await?;
        let mut response = send(&token).await?;
        if response.status == StatusCode::UNAUTHORIZED {
            let renewed = self.tokens.replace(&token, deadline).await?;
            response = send(&renewed).await?;
            if response.status == StatusCode::UNAUTHORIZED {
                self.tokens.reject(&renewed);
            }
        }
        Ok(response)
    }

    async fn get(&self, url: &Url, deadline: Instant) -> Result<Fetched, Error> {
        let response = self.ask(|| self.client.get(url.clone()), MAX_PROFILE, deadline).await?;
        match response.status {
            StatusCode::OK => read_profile(response.body).map(Fetched::Found),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Fetched::Absent),
            _ => Err(response.error()),
        }
    }

    /// Looks an identifier up. How Genesys says that nobody has it is not documented: as any of these it is an answer.
    async fn identify(&self, identifier: &Identifier, deadline: Instant) -> Result<Fetched, Error> {
        let (url, body) = (&self.search_urls.identifier, body_of(identifier));
        let response = self.ask(|| self.client.post(url.clone()).json(&body), MAX_PROFILE, deadline).await?;
        let is_empty = |body: &Bytes| matches!(body.trim_ascii(), b"" | b"null" | b"{}");
        match response.status {
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Fetched::Absent),
            StatusCode::OK if is_empty(&response.body) => Ok(Fetched::Absent),
            StatusCode::OK => match read_profile(response.body)? {
                profile if profile.canonical.is_some() => Ok(Fetched::Found(profile)),
                _ => Err(Error::Unusable { reason: "the contact of an identifier has no id" }),
            },
            _ => Err(response.error()),
        }
    }

    async fn list(&self, url: &Url, query: &SearchQuery, deadline: Instant) -> Result<Fetched, Error> {
        self.get(&SearchUrls::with_query(url, query), deadline).await
    }
}

#[async_trait]
impl Upstream for Genesys {
    async fn fetch(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        _: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.get(&self.profile_url.of(customer, None)?, deadline).await
    }

    async fn fetch_expanded(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        _: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.get(&self.profile_url.of(customer, Some(expand))?, deadline).await
    }

    async fn fetch_many(
        &self,
        _tenant: &TenantId,
        customers: &[CustomerId],
        _: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        let request = || self.client.post(self.bulk_url.clone()).json(&BulkRequest::of(customers));
        let response = self.ask(request, MAX_BULK, deadline).await?;
        match response.status {
            StatusCode::OK => bulk::assign(&response.body, customers, read_profile),
            _ => Err(response.error()),
        }
    }

    async fn search(
        &self,
        _tenant: &TenantId,
        search: &Search,
        _: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        match search {
            Search::Identifier(identifier) => self.identify(identifier, deadline).await,
            Search::ReverseWhitePages(query) => self.list(&self.search_urls.reverse, query, deadline).await,
            Search::Contacts(query) => self.list(&self.search_urls.contacts, query, deadline).await,
        }
    }
}

/// The two fields of a profile that the cache needs. The others are checked and skipped.
///
/// They are raw, because with another path template `id` may be a number. That is not a customer id, but the profile
/// is valid all the same.
#[derive(Deserialize)]
struct ProfileHead<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "modifyDate")]
    modify_date: Option<&'a RawValue>,
}

/// Parses a profile and checks that the whole body is one JSON object, and not nested too deeply.
fn read_profile(body: Bytes) -> Result<Profile, Error> {
    let unusable = |reason| Error::Unusable { reason };
    let body = ProfileBody::new(body);
    if body.is_nested_too_deep() {
        return Err(unusable("the body is nested too deeply"));
    }
    // The parser does not check the UTF-8 of skipped strings, so all of it is checked first.
    let text = std::str::from_utf8(body.expose()).map_err(|_| unusable("the body is not UTF-8"))?;
    // A derived struct can also be parsed from an array.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(unusable("the body is not a JSON object"));
    }
    let head: ProfileHead<'_> = serde_json::from_str(text).map_err(|_| unusable("the body is malformed JSON"))?;
    let text_of = |raw: Option<&RawValue>| serde_json::from_str::<String>(raw?.get()).ok();
    let modified = text_of(head.modify_date).and_then(|date| date.parse::<Modified>().ok());
    let canonical = text_of(head.id).and_then(|id| id.parse::<CustomerId>().ok());
    Ok(Profile { body, modified, canonical })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: impl Into<Bytes>) -> Result<Profile, Error> {
        read_profile(body.into())
    }

    #[test]
    fn a_profile_is_kept_verbatim_with_modify_date_and_canonical_id() {
        let body = " {\"id\":\"c-\\u0031\", \"x\":[{\"id\":\"other\"}], \"modifyDate\":\"2025-03-04T05:06:07.089Z\"}\n";
        let profile = read(body).unwrap();
        assert_eq!(profile.body.expose(), body);
        assert_eq!(profile.modified, Some(Modified::from_millis(1_741_064_767_089)));
        assert_eq!(profile.canonical, Some("c-1".parse().unwrap()));
    }

    #[test]
    fn a_profile_with_unknown_field_values_is_valid() {
        for body in ["{}", r#"{"id":7,"modifyDate":"today"}"#, r#"{"id":null,"modifyDate":null}"#, r#"{"id":"a/b"}"#] {
            let profile = read(body).unwrap();
            assert_eq!((profile.modified, profile.canonical), (None, None), "{body}");
        }
    }

    #[test]
    fn anything_but_one_json_object_is_unusable() {
        let bad: [&[u8]; 13] = [
            b"",
            b"null",
            b"[]",
            b"[\"a\",\"b\"]",
            b"\"text\"",
            b"7",
            b"{",
            b"{\"id\":\"a\"",
            b"{} {}",
            b"{\"a\":01}",
            b"{\"id\":\"a\",\"id\":\"b\"}",
            b"<html>",
            b"{\"a\":\"\xff\"}",
        ];
        for body in bad {
            let error = read(body).unwrap_err();
            assert!(matches!(error, Error::Unusable { .. }), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_profile_of_more_than_64_levels_is_unusable() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(read(nested(64)).is_ok());
        assert!(matches!(read(nested(65)).unwrap_err(), Error::Unusable { reason: "the body is nested too deeply" }));
    }

    proptest! {
        #[test]
        fn any_object_is_a_profile_and_a_truncated_one_is_not(keys in proptest::collection::vec("[a-z]{3,8}", 1..6), cut in 0usize..500) {
            let object: serde_json::Map<_, _> = keys.into_iter().map(|key| (key.clone(), key.into())).collect();
            let json = serde_json::to_string(&object).unwrap();
            let cut = cut % json.len();
            prop_assert!(read(json[..cut].to_owned()).is_err());
            prop_assert!(read(json).is_ok());
        }
    }
}
