//! The Genesys adapter: one tenant's profiles over the External Contacts API.
//!
//! One fetch is one request, with one exception: a 401 renews the token once and asks once more. It
//! is bounded by the deadline and by nothing else; what keeps Genesys safe from us stands in front
//! of it, in [`guard`](super::guard).
//!
//! | Genesys answers | the fetch answers |
//! |---|---|
//! | 200 with a JSON object | [`Fetched::Found`], the bytes verbatim |
//! | 404, 410 | [`Fetched::Absent`] |
//! | 401 with a renewed token, 403 | [`Error::Denied`] |
//! | 429 | [`Error::Throttled`] |
//! | 408, 5xx | [`Error::Failed`] |
//! | anything else | [`Error::Unusable`] |

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, header};
use reqwest::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use url::Url;

use crate::domain::{CustomerId, Modified, Profile, ProfileBody, TenantId};

use super::endpoints::ProfileUrl;
use super::exchange::Answer;
use super::token::Token;
use super::tokens::Tokens;
use super::{Error, Expand, Fetched, Upstream};

/// The largest profile, in bytes. Genesys itself accepts half of that.
const MAX_PROFILE: usize = 1024 * 1024;

/// One tenant's Genesys.
#[derive(Debug)]
pub(super) struct Genesys {
    client: Client,
    profile_url: ProfileUrl,
    tokens: Tokens,
}

impl Genesys {
    /// Makes the adapter; nothing is sent before the first fetch.
    pub(super) const fn new(client: Client, profile_url: ProfileUrl, tokens: Tokens) -> Self {
        Self { client, profile_url, tokens }
    }

    async fn ask(&self, token: &Token, url: &Url, deadline: Instant) -> Result<Answer, Error> {
        let request = self
            .client
            .get(url.clone())
            .header(header::AUTHORIZATION, token.header())
            .header(header::ACCEPT, "application/json");
        Answer::to(request, MAX_PROFILE, deadline).await
    }

    async fn get(&self, url: &Url, deadline: Instant) -> Result<Fetched, Error> {
        let token = self.tokens.get(deadline).await?;
        let mut answer = self.ask(&token, url, deadline).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            let renewed = self.tokens.replace(&token, deadline).await?;
            answer = self.ask(&renewed, url, deadline).await?;
            if answer.status == StatusCode::UNAUTHORIZED {
                self.tokens.distrust(&renewed);
            }
        }
        match answer.status {
            StatusCode::OK => read_profile(answer.body).map(Fetched::Found),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Fetched::Absent),
            _ => Err(answer.refusal()),
        }
    }
}

#[async_trait]
impl Upstream for Genesys {
    async fn fetch(&self, _tenant: &TenantId, customer: &CustomerId, deadline: Instant) -> Result<Fetched, Error> {
        self.get(&self.profile_url.of(customer, None)?, deadline).await
    }

    async fn fetch_expanded(
        &self,
        _tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.get(&self.profile_url.of(customer, Some(expand))?, deadline).await
    }
}

/// The two fields of a profile that the cache must know; the others are checked and skipped.
///
/// They are taken raw, since another path template may answer with a numeric `id`: that is no
/// customer id of ours, but no reason to refuse the profile either.
#[derive(Deserialize)]
struct Stamped<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "modifyDate")]
    modify_date: Option<&'a RawValue>,
}

/// Reads a profile, proving that all of it is one JSON object.
fn read_profile(body: Bytes) -> Result<Profile, Error> {
    let unusable = |reason| Error::Unusable { reason };
    // Skipped strings are not checked to be UTF-8 by the parser, so the whole is checked first.
    let text = std::str::from_utf8(&body).map_err(|_| unusable("the body is not UTF-8"))?;
    // A derived struct would also be read from an array.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(unusable("the body is no JSON object"));
    }
    let stamped: Stamped<'_> = serde_json::from_str(text).map_err(|_| unusable("the body is malformed JSON"))?;
    let text_of = |raw: Option<&RawValue>| serde_json::from_str::<String>(raw?.get()).ok();
    let modified = text_of(stamped.modify_date).and_then(|date| date.parse::<Modified>().ok());
    let canonical = text_of(stamped.id).and_then(|id| id.parse::<CustomerId>().ok());
    Ok(Profile { body: ProfileBody::new(body), modified, canonical })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: impl Into<Bytes>) -> Result<Profile, Error> {
        read_profile(body.into())
    }

    #[test]
    fn a_profile_is_kept_verbatim_with_its_stamp_and_canonical_id() {
        let body = " {\"id\":\"c-\\u0031\", \"x\":[{\"id\":\"other\"}], \"modifyDate\":\"2025-03-04T05:06:07.089Z\"}\n";
        let profile = read(body).unwrap();
        assert_eq!(profile.body.expose(), body);
        assert_eq!(profile.modified, Some(Modified::from_millis(1_741_064_767_089)));
        assert_eq!(profile.canonical, Some("c-1".parse().unwrap()));
    }

    #[test]
    fn fields_that_tell_nothing_are_no_reason_to_refuse_a_profile() {
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

    proptest! {
        #[test]
        fn any_object_is_a_profile_and_any_cut_of_it_is_not(keys in proptest::collection::vec("[a-z]{3,8}", 1..6), cut in 0usize..500) {
            let object: serde_json::Map<_, _> = keys.into_iter().map(|key| (key.clone(), key.into())).collect();
            let json = serde_json::to_string(&object).unwrap();
            let cut = cut % json.len();
            prop_assert!(read(json[..cut].to_owned()).is_err());
            prop_assert!(read(json).is_ok());
        }
    }
}
