//! The door that lookups come through: who is it, and may it ask again already?
//!
//! A caller shows its key in `X-API-Key`, or as a bearer token (RFC 6750), or with its name in Basic
//! authentication (RFC 7617), or shows a token that it was given for them ([`Tokens`]). Exactly one of these:
//! a request with two credentials is refused, since whoever wrote it and we may not mean the same one.
//! Whatever is missing or wrong is told in the same words.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode;

use crate::domain::Secret;
use crate::metrics::{self, Metrics};
use crate::reload::Reloadable;

use crate::http::auth::callers::{Caller, Callers};
use crate::http::auth::jwt::Tokens;
use crate::http::auth::rate_limit::{Allowance, Spent};
use crate::http::response::problem::Problem;

/// Who may come in.
#[derive(Debug)]
pub struct CallerAuth {
    /// Who may come in; when they are replaced, rates go on and tokens stay valid for those whose name and key stay.
    callers: Reloadable<Callers>,
    tokens: Tokens,
    metrics: Arc<Metrics>,
}

/// A request whose caller has proved itself and is within its rate.
#[derive(Debug)]
pub struct Admitted {
    /// Who it is.
    pub caller: Arc<Caller>,
    /// What it has left of its rate, if it has one.
    pub allowance: Option<Allowance>,
}

/// A request that is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    /// What it is told.
    pub problem: Problem,
    /// The name of its caller, if that has proved itself.
    pub caller: Option<Arc<str>>,
}

/// A token for a caller that has proved itself.
#[derive(Debug)]
pub struct Granted {
    /// The token.
    pub token: Secret,
    /// For how many seconds it is valid.
    pub expires_in: u64,
}

/// What a request presents.
enum Presented<'a> {
    /// A key, or a token.
    Bearer(&'a [u8]),
    /// A key, and nothing else.
    Key(&'a [u8]),
    /// A name and a key.
    Basic(Pair),
}

/// A name and a key.
pub(in crate::http) struct Pair {
    pub(in crate::http) name: Vec<u8>,
    pub(in crate::http) key: Vec<u8>,
}

impl CallerAuth {
    /// Makes the door of those who may come in.
    #[must_use]
    pub fn new(callers: Reloadable<Callers>, tokens: Tokens, metrics: Arc<Metrics>) -> Self {
        Self { callers, tokens, metrics }
    }

    /// Lets a request in.
    ///
    /// # Errors
    ///
    /// 401, in the same words whatever was missing or wrong; 429 when the caller's rate is spent.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Admitted, TurnedAway> {
        let Some(caller) = self.authenticate(headers) else {
            self.metrics.auth_failures.with(metrics::Door::Lookup).increment(1);
            let problem = Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "a valid caller key or token is needed, in X-API-Key or in Authorization",
            );
            return Err(TurnedAway { problem, caller: None });
        };
        let allowance = match &caller.rate {
            None => None,
            Some(rate) => Some(rate.spend().map_err(|spent| self.over_rate(&caller, spent))?),
        };
        Ok(Admitted { caller, allowance })
    }

    /// Gives a token for a caller's name and key; `None` if there are none, or they are not a caller's.
    ///
    /// Clients that follow RFC 6749 section 2.3.1 encode both before they put them into Basic
    /// authentication, Genesys' SDKs do not; both are understood.
    pub fn grant(&self, client: Option<(&[u8], &[u8])>) -> Option<Granted> {
        let callers = self.callers.load();
        let plain = |name: &[u8], key: &[u8]| with_name_and_key(&callers, name, key);
        let caller = client.and_then(|(name, key)| {
            plain(name, key).or_else(|| {
                let encoded = name.iter().chain(key).any(|b| matches!(b, b'%' | b'+'));
                encoded.then(|| plain(&decoded(name), &decoded(key))).flatten()
            })
        });
        let Some(caller) = caller else {
            self.metrics.auth_failures.with(metrics::Door::Token).increment(1);
            return None;
        };
        let token = self.tokens.issue(&caller.name, &caller.key);
        Some(Granted { token: Secret::new(token), expires_in: self.tokens.lifetime().as_secs() })
    }

    fn authenticate(&self, headers: &HeaderMap) -> Option<Arc<Caller>> {
        let callers = self.callers.load();
        match presented(headers)? {
            Presented::Bearer(token) if Tokens::is_token(token) => {
                let valid = self.tokens.check(token)?;
                let caller = callers.named(&valid.caller)?;
                self.tokens.is_for(&valid, &caller.key).then(|| Arc::clone(caller))
            }
            Presented::Bearer(key) | Presented::Key(key) => callers.with_key(key).cloned(),
            Presented::Basic(pair) => with_name_and_key(&callers, &pair.name, &pair.key).cloned(),
        }
    }

    fn over_rate(&self, caller: &Caller, spent: Spent) -> TurnedAway {
        self.metrics.lookup_throttled.increment(1);
        let detail = "too many requests of this caller per second";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_exceeded", detail);
        let problem = problem.retry_after(spent.retry_after).allowance(spent.allowance);
        TurnedAway { problem, caller: Some(Arc::clone(&caller.name)) }
    }
}

/// Returns the caller with this name and key. The key is judged first, so that names cannot be tried out.
fn with_name_and_key<'a>(callers: &'a Callers, name: &[u8], key: &[u8]) -> Option<&'a Arc<Caller>> {
    callers.with_key(key).filter(|caller| caller.name.as_bytes() == name)
}

/// Returns the name and key of Basic authentication, if a request has any.
///
/// # Errors
///
/// It has an `Authorization` that is something else, or more than one.
pub(in crate::http) fn basic(headers: &HeaderMap) -> Result<Option<Pair>, NotBasic> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match authorization(value.as_bytes()) {
            Some(Presented::Basic(pair)) => Ok(Some(pair)),
            Some(Presented::Bearer(_) | Presented::Key(_)) | None => Err(NotBasic),
        },
        (Some(_), Some(_)) => Err(NotBasic),
    }
}

/// A request's `Authorization` is not Basic authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct NotBasic;

/// Returns what a request presents: exactly one credential, or none.
fn presented(headers: &HeaderMap) -> Option<Presented<'_>> {
    let mut api_keys = headers.get_all("x-api-key").iter();
    let mut authorizations = headers.get_all(header::AUTHORIZATION).iter();
    let found = match (api_keys.next(), authorizations.next()) {
        (Some(key), None) => Presented::Key(key.as_bytes()),
        (None, Some(value)) => authorization(value.as_bytes())?,
        (Some(_), Some(_)) | (None, None) => return None,
    };
    (api_keys.next().is_none() && authorizations.next().is_none()).then_some(found)
}

fn authorization(value: &[u8]) -> Option<Presented<'_>> {
    let space = value.iter().position(|b| *b == b' ')?;
    let (scheme, credential) = (&value[..space], value[space + 1..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some(Presented::Bearer(credential))
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = STANDARD.decode(credential).ok()?;
        let colon = pair.iter().position(|b| *b == b':')?;
        Some(Presented::Basic(Pair { name: pair[..colon].to_vec(), key: pair[colon + 1..].to_vec() }))
    } else {
        None
    }
}

/// Undoes `application/x-www-form-urlencoded`.
fn decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    Cow::from(percent_decode(&spaced)).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use crate::clock::SystemClock;
    use crate::http::auth::callers::Config;
    use crate::http::auth::callers::tests::config;

    use super::*;

    fn door(configs: &[Config]) -> CallerAuth {
        let tokens = Tokens::new(None, Duration::from_secs(60), SystemClock::shared()).unwrap();
        CallerAuth::new(Reloadable::new(Callers::new(configs).unwrap()), tokens, Metrics::new())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn who(door: &CallerAuth, pairs: &[(&'static str, &str)]) -> Option<String> {
        door.admit(&headers(pairs)).ok().map(|admitted| admitted.caller.name.to_string())
    }

    #[test]
    fn the_key_is_taken_from_each_of_the_places_and_so_is_a_token() {
        let door = door(&[config("architect", "demo-key")]);
        let basic = format!("Basic {}", STANDARD.encode("architect:demo-key"));
        let token = format!("bearer {}", door.grant(Some((b"architect", b"demo-key"))).unwrap().token.expose());
        let places = [("x-api-key", "demo-key"), ("authorization", "Bearer demo-key"), ("authorization", &basic)];
        for pair in places.into_iter().chain([("authorization", token.as_str())]) {
            assert_eq!(who(&door, &[pair]).as_deref(), Some("architect"));
        }
    }

    #[test]
    fn whatever_is_wrong_is_told_in_the_same_words() {
        let door = door(&[config("architect", "demo-key")]);
        let other = format!("Basic {}", STANDARD.encode("someone:demo-key"));
        let granted = door.grant(Some((b"architect", b"demo-key"))).unwrap();
        let token = granted.token.expose();
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
        let first = door.admit(&headers(attempts[0])).unwrap_err();
        for attempt in attempts {
            assert_eq!(door.admit(&headers(attempt)).unwrap_err(), first);
        }
    }

    #[test]
    fn a_token_lives_as_long_as_its_callers_key_does() {
        let door = door(&[config("a", "one")]);
        let token = format!("Bearer {}", door.grant(Some((b"a", b"one"))).unwrap().token.expose());
        let who = || who(&door, &[("authorization", &token)]);
        door.callers.replace(Callers::new(&[config("b", "two"), config("a", "one")]).unwrap());
        assert_eq!(who().as_deref(), Some("a"));
        door.callers.replace(Callers::new(&[config("a", "rotated")]).unwrap());
        assert_eq!(who(), None);
        door.callers.replace(Callers::new(&[config("b", "one")]).unwrap());
        assert_eq!(who(), None);
        door.callers.replace(Callers::new(&[config("a", "one")]).unwrap());
        assert_eq!(who().as_deref(), Some("a"));
    }

    #[test]
    fn a_token_is_given_for_a_name_with_its_own_key_encoded_or_not() {
        let door = door(&[config("a b", "k+/%="), config("other", "plain")]);
        assert!(door.grant(Some((b"a b", b"k+/%="))).is_some());
        assert!(door.grant(Some((b"a+b", b"k%2B%2F%25%3D"))).is_some());
        assert!(door.grant(Some((b"a%20b", b"k%2b%2f%25%3d"))).is_some());
        for (name, key) in [("a b", "plain"), ("other", "k+/%="), ("a b", ""), ("", "plain"), ("other", "PLAIN")] {
            assert!(door.grant(Some((name.as_bytes(), key.as_bytes()))).is_none(), "{name}");
        }
    }

    #[test]
    fn a_caller_over_its_rate_is_told_when_to_come_again_and_others_are_let_in() {
        let slow = Config { requests_per_second: 1, ..config("slow", "s") };
        let door = door(&[slow, config("quick", "q")]);
        let come = |key| door.admit(&headers(&[("x-api-key", key)]));
        let refused = std::iter::repeat_with(|| come("s")).take(1000).find_map(Result::err).unwrap();
        assert_eq!(refused.problem.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.caller.as_deref(), Some("slow"));
        assert!(come("q").unwrap().allowance.is_none());
    }
}
