//! Authentication of callers: who sends a lookup, and whether its rate limit allows it.
//!
//! A caller presents its key in `X-API-Key`, as a bearer token (RFC 6750), or with its name in Basic authentication
//! (RFC 7617); or it presents a token that it got for them ([`TokenSigner`]). A request must have exactly one of these:
//! with two it is not clear which caller is meant. Every failure gets the same answer.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode;

use crate::authorization::Authorization;
use crate::domain::Secret;
use crate::metrics::{self, Metrics};
use crate::reload::Reloadable;

use crate::http::auth::callers::{Caller, Callers};
use crate::http::auth::jwt::TokenSigner;
use crate::http::auth::profile_handles::ProfileHandles;
use crate::http::auth::rate_limit::RateExceeded;
use crate::http::response::problem::Problem;
use crate::http::response::rate_limit_headers::Allowance;

/// Authenticates callers and issues their tokens.
#[derive(Debug)]
pub struct CallerAuth {
    /// The configured callers. After a reload, rate limits and tokens stay valid for a caller with the same name and key.
    callers: Reloadable<Callers>,
    tokens: TokenSigner,
    handles: ProfileHandles,
    metrics: Arc<Metrics>,
}

/// A request with an authenticated caller that is within its rate limit.
#[derive(Debug)]
pub struct Admitted {
    /// The caller.
    pub caller: Arc<Caller>,
    /// What is left of its rate limit, if it has one.
    pub allowance: Option<Allowance>,
}

/// A request that failed authentication or exceeds the rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCaller {
    /// The answer.
    pub problem: Problem,
    /// The name of the caller, if it is authenticated.
    pub caller: Option<Arc<str>>,
}

/// A token for an authenticated caller.
#[derive(Debug)]
pub struct IssuedToken {
    /// The token.
    pub token: Secret,
    /// Its lifetime, in seconds.
    pub expires_in: u64,
}

impl CallerAuth {
    /// Creates the authentication of these callers.
    #[must_use]
    pub fn new(callers: Reloadable<Callers>, tokens: TokenSigner, metrics: Arc<Metrics>) -> Self {
        let handles = ProfileHandles::new(&tokens.derive_key("profile handles"));
        Self { callers, tokens, handles, metrics }
    }

    /// Returns what computes the handles of customers.
    #[must_use]
    pub const fn handles(&self) -> &ProfileHandles {
        &self.handles
    }

    /// Authenticates a request and counts it against its caller's rate limit.
    ///
    /// # Errors
    ///
    /// 401, with the same text for every missing or wrong credential; 429 when the rate limit is reached.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Admitted, RefusedCaller> {
        let Some(caller) = self.authenticate(headers) else {
            self.metrics.auth_failures.with(metrics::AuthEndpoint::Lookup).increment(1);
            let problem = Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "a valid caller key or token is needed, in X-API-Key or in Authorization",
            );
            return Err(RefusedCaller { problem, caller: None });
        };
        let allowance = self.count(&caller, NonZeroU32::MIN)?;
        Ok(Admitted { caller, allowance })
    }

    /// Counts lookups against a caller's rate limit, and returns what is left of it, if it has one.
    ///
    /// # Errors
    ///
    /// 429 when the rate limit is reached.
    pub fn count(&self, caller: &Caller, lookups: NonZeroU32) -> Result<Option<Allowance>, RefusedCaller> {
        let counted = caller.rate.as_ref().map(|rate| rate.count(lookups));
        counted.transpose().map_err(|exceeded| self.over_rate(caller, exceeded))
    }

    /// Issues a token for a caller's name and key; `None` if they are missing or wrong.
    ///
    /// Clients that follow RFC 6749 section 2.3.1 percent-encode both before Basic authentication, Genesys' SDKs do not;
    /// both forms are accepted.
    pub fn issue_token(&self, client: Option<(&[u8], &[u8])>) -> Option<IssuedToken> {
        let callers = self.callers.load();
        let plain = |name: &[u8], key: &[u8]| with_name_and_key(&callers, name, key);
        let caller = client.and_then(|(name, key)| {
            plain(name, key).or_else(|| {
                let encoded = name.iter().chain(key).any(|b| matches!(b, b'%' | b'+'));
                encoded.then(|| plain(&decoded(name), &decoded(key))).flatten()
            })
        });
        let Some(caller) = caller else {
            self.metrics.auth_failures.with(metrics::AuthEndpoint::Token).increment(1);
            return None;
        };
        let token = self.tokens.issue(&caller.name, &caller.key);
        Some(IssuedToken { token: Secret::new(token), expires_in: self.tokens.lifetime().as_secs() })
    }

    fn authenticate(&self, headers: &HeaderMap) -> Option<Arc<Caller>> {
        let callers = self.callers.load();
        let mut api_keys = headers.get_all("x-api-key").iter();
        match (api_keys.next(), api_keys.next(), Authorization::of(headers).ok()?) {
            (Some(key), None, None) => callers.with_key(key.as_bytes()).cloned(),
            (None, None, Some(Authorization::Bearer(token))) if TokenSigner::is_token(token) => {
                let verified = self.tokens.verify(token)?;
                let caller = callers.named(&verified.caller)?;
                self.tokens.is_for(&verified, &caller.key).then(|| Arc::clone(caller))
            }
            (None, None, Some(Authorization::Bearer(key))) => callers.with_key(key).cloned(),
            (None, None, Some(Authorization::Basic(pair))) => {
                with_name_and_key(&callers, pair.user(), pair.password()).cloned()
            }
            (Some(_), Some(_), _) | (Some(_), None, Some(_)) | (None, _, None) | (None, Some(_), _) => None,
        }
    }

    fn over_rate(&self, caller: &Caller, exceeded: RateExceeded) -> RefusedCaller {
        self.metrics.lookup_throttled.increment(1);
        let detail = "too many lookups of this caller per second";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_exceeded", detail);
        let problem = problem.retry_after(exceeded.retry_after).allowance(exceeded.allowance);
        RefusedCaller { problem, caller: Some(Arc::clone(&caller.name)) }
    }
}

/// Returns the caller with this name and key. The key is checked first, so that nobody can probe for names.
fn with_name_and_key<'a>(callers: &'a Callers, name: &[u8], key: &[u8]) -> Option<&'a Arc<Caller>> {
    callers.with_key(key).filter(|caller| caller.name.as_bytes() == name)
}

/// Decodes `application/x-www-form-urlencoded`.
fn decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    Cow::from(percent_decode(&spaced)).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderValue;

    use crate::clock::SystemClock;
    use crate::http::auth::callers::Config;
    use crate::http::auth::callers::tests::config;

    use super::*;

    fn auth(configs: &[Config]) -> CallerAuth {
        let tokens = TokenSigner::new(None, Duration::from_secs(60), SystemClock::shared()).unwrap();
        CallerAuth::new(Reloadable::new(Callers::new(configs).unwrap()), tokens, Metrics::new())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn admitted(auth: &CallerAuth, pairs: &[(&'static str, &str)]) -> Option<String> {
        auth.admit(&headers(pairs)).ok().map(|admitted| admitted.caller.name.to_string())
    }

    #[test]
    fn keys_and_tokens_are_accepted_in_every_supported_header() {
        let auth = auth(&[config("architect", "demo-key")]);
        let basic = format!("Basic {}", STANDARD.encode("architect:demo-key"));
        let token = format!("bearer {}", auth.issue_token(Some((b"architect", b"demo-key"))).unwrap().token.expose());
        let headers = [("x-api-key", "demo-key"), ("authorization", "Bearer demo-key"), ("authorization", &basic)];
        for pair in headers.into_iter().chain([("authorization", token.as_str())]) {
            assert_eq!(admitted(&auth, &[pair]).as_deref(), Some("architect"));
        }
    }

    #[test]
    fn every_wrong_credential_gets_the_same_answer() {
        let auth = auth(&[config("architect", "demo-key")]);
        let other = format!("Basic {}", STANDARD.encode("someone:demo-key"));
        let issued = auth.issue_token(Some((b"architect", b"demo-key"))).unwrap();
        let token = issued.token.expose();
        let altered = format!("Bearer {token}x");
        let attempts: [&[(&'static str, &str)]; 10] = [
            &[],
            &[("x-api-key", "demo-kez")],
            &[("x-api-key", "")],
            &[("x-api-key", token)],
            &[("authorization", "Bearer nope")],
            &[("authorization", &altered)],
            &[("authorization", "Digest demo-key")],
            &[("authorization", &other)],
            &[("x-api-key", "demo-key"), ("authorization", "Bearer demo-key")],
            &[("x-api-key", "demo-key"), ("x-api-key", "demo-key")],
        ];
        let first = auth.admit(&headers(attempts[0])).unwrap_err();
        for attempt in attempts {
            assert_eq!(auth.admit(&headers(attempt)).unwrap_err(), first);
        }
    }

    #[test]
    fn a_token_is_valid_only_while_its_caller_has_the_same_key() {
        let auth = auth(&[config("a", "one")]);
        let token = format!("Bearer {}", auth.issue_token(Some((b"a", b"one"))).unwrap().token.expose());
        let admitted = || admitted(&auth, &[("authorization", &token)]);
        auth.callers.replace(Callers::new(&[config("b", "two"), config("a", "one")]).unwrap());
        assert_eq!(admitted().as_deref(), Some("a"));
        auth.callers.replace(Callers::new(&[config("a", "rotated")]).unwrap());
        assert_eq!(admitted(), None);
        auth.callers.replace(Callers::new(&[config("b", "one")]).unwrap());
        assert_eq!(admitted(), None);
        auth.callers.replace(Callers::new(&[config("a", "one")]).unwrap());
        assert_eq!(admitted().as_deref(), Some("a"));
    }

    #[test]
    fn a_token_is_issued_for_a_matching_name_and_key_encoded_or_not() {
        let auth = auth(&[config("a", "k+/%="), config("other", "plain")]);
        assert!(auth.issue_token(Some((b"a", b"k+/%="))).is_some());
        assert!(auth.issue_token(Some((b"a", b"k%2B%2F%25%3D"))).is_some());
        assert!(auth.issue_token(Some((b"%61", b"k%2b%2f%25%3d"))).is_some());
        for (name, key) in [("a", "plain"), ("other", "k+/%="), ("a", ""), ("", "plain"), ("other", "PLAIN")] {
            assert!(auth.issue_token(Some((name.as_bytes(), key.as_bytes()))).is_none(), "{name}");
        }
    }

    #[test]
    fn a_caller_over_its_rate_is_refused_and_others_are_admitted() {
        let slow = Config { requests_per_second: 1, ..config("slow", "s") };
        let auth = auth(&[slow, config("quick", "q")]);
        let request = |key| auth.admit(&headers(&[("x-api-key", key)]));
        let refused = std::iter::repeat_with(|| request("s")).take(1000).find_map(Result::err).unwrap();
        assert_eq!(refused.problem.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.caller.as_deref(), Some("slow"));
        assert!(request("q").unwrap().allowance.is_none());
    }
}
