//! Authentication of callers: who sends a lookup, and whether its rate limit allows it.
//!
//! A caller presents its key in `X-API-Key`, as a bearer token (RFC 6750), or with its name in Basic authentication
//! (RFC 7617); or it presents a token that it got for them ([`TokenSigner`]), which may be narrower than it ([`TokenScope`]). Where
//! a tenant allows it, an agent presents its own Genesys token ([`Agents`]). A request must have exactly one of these: with two
//! it is not clear which caller is meant. Every failure gets the same answer.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode;

use crate::audit::DenialReason;
use crate::authorization::Authorization;
use crate::domain::Secret;
use crate::lookup::LookupError;
use crate::metrics::{self, Metrics};
use crate::reload::Reloadable;

use crate::http::auth::agents::{AdmittedAgent, AgentToken, Agents};
use crate::http::auth::callers::{Caller, Callers};
use crate::http::auth::jwt::TokenSigner;
use crate::http::auth::profile_handles::ProfileHandles;
use crate::http::auth::rate_limit::RateExceeded;
use crate::http::auth::scope::TokenScope;
use crate::http::response::problem::Problem;
use crate::http::response::rate_limit_headers::Allowance;

/// Authenticates callers and issues their tokens.
#[derive(Debug)]
pub struct CallerAuth {
    /// The configured callers. After a reload, rate limits and tokens stay valid for a caller with the same name and key.
    callers: Reloadable<Callers>,
    tokens: TokenSigner,
    agents: Arc<Agents>,
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
    /// The time until its token ends, or must be verified again; absent: it has none.
    pub valid_for: Option<Duration>,
}

/// A request that failed authentication or exceeds the rate limit.
#[derive(Clone, Debug)]
pub struct RefusedCaller {
    /// The answer.
    pub problem: Problem,
    /// The caller, if it is authenticated.
    pub caller: Option<Arc<Caller>>,
    /// Why it is refused.
    pub reason: DenialReason,
}

/// What a caller asks of a token.
#[derive(Debug, Default)]
pub struct WantedToken {
    /// What it may do; absent: all that the caller may.
    pub scope: Option<TokenScope>,
    /// Its lifetime; absent or longer than allowed: the longest.
    pub lifetime: Option<Duration>,
}

/// A token for an authenticated caller.
#[derive(Debug)]
pub struct IssuedToken {
    /// The token.
    pub token: Secret,
    /// Its lifetime, in seconds.
    pub expires_in: u64,
    /// What it may do; absent: all that the caller may.
    pub scope: Option<TokenScope>,
}

/// Why no token is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusedToken {
    /// The name or the key is missing or wrong.
    WrongClient,
    /// The scope is wider than the rights of this caller.
    WiderScope(Arc<str>),
}

/// Who sends a request.
enum Presented {
    /// This caller, with the time until its token ends.
    Caller(Arc<Caller>, Option<Duration>),
    /// Perhaps an agent.
    Agent(AgentToken),
}

impl CallerAuth {
    /// Creates the authentication of these callers and agents.
    #[must_use]
    pub fn new(callers: Reloadable<Callers>, agents: Arc<Agents>, tokens: TokenSigner, metrics: Arc<Metrics>) -> Self {
        let handles = ProfileHandles::new(&tokens.derive_key("profile handles"));
        Self { callers, tokens, agents, handles, metrics }
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
    /// 401, with the same text for every missing or wrong credential; 429 when the rate limit is reached; 502 or 503 if Genesys
    /// does not say whether the token of an agent is valid.
    pub async fn admit(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Admitted, RefusedCaller> {
        let (caller, valid_for) = match self.authenticate(headers, query) {
            Some(Presented::Caller(caller, valid_for)) => (caller, valid_for),
            // Boxed, so that the future of other requests stays small.
            Some(Presented::Agent(token)) => match Box::pin(self.agents.admit(token)).await {
                Ok(Some(AdmittedAgent { caller, valid_for })) => (caller, Some(valid_for)),
                Ok(None) => return Err(self.unauthorized(headers)),
                Err(error) => {
                    let problem = Problem::of_failure(&LookupError::Upstream(error));
                    return Err(RefusedCaller { problem, caller: None, reason: DenialReason::Unverified });
                }
            },
            None => return Err(self.unauthorized(headers)),
        };
        match caller.rate.as_ref().map(|rate| rate.count(NonZeroU32::MIN)).transpose() {
            Ok(allowance) => Ok(Admitted { caller, allowance, valid_for }),
            Err(exceeded) => {
                let problem = self.over_rate(exceeded);
                Err(RefusedCaller { problem, caller: Some(caller), reason: DenialReason::Rate })
            }
        }
    }

    fn unauthorized(&self, headers: &HeaderMap) -> RefusedCaller {
        self.metrics.auth_failures.with(metrics::AuthEndpoint::Lookup).increment(1);
        let detail = "a valid caller key or token is needed, in X-API-Key or in Authorization";
        let has_credential = headers.contains_key("x-api-key") || headers.contains_key(header::AUTHORIZATION);
        let problem = Problem::unauthorized(detail, has_credential);
        RefusedCaller { problem, caller: None, reason: DenialReason::Unauthorized }
    }

    /// Counts the lookups of an admitted request beyond its first against its caller's rate limit, and returns what is left of
    /// it, if it has one.
    ///
    /// # Errors
    ///
    /// 429 when the rate limit is reached, or is smaller than the request.
    pub fn count_further(&self, caller: &Caller, lookups: NonZeroU32) -> Result<Option<Allowance>, Problem> {
        let counted = caller.rate.as_ref().map(|rate| rate.count_further(lookups));
        counted.transpose().map_err(|exceeded| self.over_rate(exceeded))
    }

    /// Issues a token for a caller's name and key.
    ///
    /// Clients that follow RFC 6749 section 2.3.1 percent-encode both before Basic authentication, Genesys' SDKs do not;
    /// both forms are accepted.
    ///
    /// # Errors
    ///
    /// The name or key is missing or wrong, or the scope is wider than what the caller may.
    pub fn issue_token(
        &self,
        client: Option<(&[u8], &[u8])>,
        wanted: WantedToken,
    ) -> Result<IssuedToken, RefusedToken> {
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
            return Err(RefusedToken::WrongClient);
        };
        let WantedToken { scope, lifetime } = wanted;
        if scope.as_ref().is_some_and(|scope| caller.narrowed(scope).is_none()) {
            return Err(RefusedToken::WiderScope(Arc::clone(&caller.name)));
        }
        let longest = self.tokens.lifetime();
        let lifetime = lifetime.map_or(longest, |lifetime| lifetime.min(longest));
        let text = scope.as_ref().map(|scope| &**scope.text());
        let token = Secret::new(self.tokens.issue(&caller.name, &caller.key, text, lifetime));
        Ok(IssuedToken { token, expires_in: lifetime.as_secs(), scope })
    }

    /// Returns the caller of a token.
    fn of_token(&self, callers: &Callers, token: &[u8]) -> Option<Presented> {
        let verified = self.tokens.verify(token)?;
        let caller = callers.named(&verified.caller)?;
        if !self.tokens.is_for(&verified, &caller.key) {
            return None;
        }
        let caller = match &verified.scope {
            None => Arc::clone(caller),
            // The caller may have lost rights since.
            Some(scope) => Arc::new(caller.narrowed(&scope.parse().ok()?)?),
        };
        Some(Presented::Caller(caller, Some(verified.expires_in)))
    }

    fn authenticate(&self, headers: &HeaderMap, query: Option<&str>) -> Option<Presented> {
        let callers = self.callers.load();
        let mut api_keys = headers.get_all("x-api-key").iter();
        match (api_keys.next(), api_keys.next(), Authorization::of(headers).ok()?) {
            (Some(key), None, None) => callers.with_key(key.as_bytes()).map(of_caller),
            (None, None, Some(Authorization::Bearer(token))) if TokenSigner::is_token(token) => {
                self.of_token(&callers, token)
            }
            (None, None, Some(Authorization::Bearer(key))) => match callers.with_key(key) {
                Some(caller) => Some(of_caller(caller)),
                None => self.agents.presented(key, headers, query).map(Presented::Agent),
            },
            (None, None, Some(Authorization::Basic(pair))) => {
                with_name_and_key(&callers, pair.user(), pair.password()).map(of_caller)
            }
            (Some(_), Some(_), _) | (Some(_), None, Some(_)) | (None, _, None) | (None, Some(_), _) => None,
        }
    }

    fn over_rate(&self, exceeded: RateExceeded) -> Problem {
        self.metrics.lookup_throttled.increment(1);
        let problem = |detail: &str| Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_exceeded", detail);
        let RateExceeded { retry_after, allowance } = exceeded;
        let problem = match retry_after {
            Some(after) => problem("too many lookups of this caller per second").retry_after(after),
            // A client that waits would send it again for ever.
            None => problem(&format!(
                "the batch has more customers than this caller may look up in a second: send at most {} at once",
                allowance.quota
            )),
        };
        problem.allowance(allowance)
    }
}

fn of_caller(caller: &Arc<Caller>) -> Presented {
    Presented::Caller(Arc::clone(caller), None)
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
    use futures_util::FutureExt;
    use http::HeaderValue;

    use crate::clock::SystemClock;
    use crate::http::auth::callers::Config;
    use crate::http::auth::callers::tests::config;
    use crate::shutdown::Shutdown;
    use crate::upstream::agents::AgentVerifiers;

    use super::*;

    fn auth(configs: &[Config]) -> CallerAuth {
        let tokens = TokenSigner::new(None, Duration::from_secs(60), SystemClock::shared()).unwrap();
        let (verifiers, shutdown) = (AgentVerifiers::default(), Shutdown::default());
        let agents = Agents::new([], verifiers, &[0; 32], shutdown).unwrap();
        CallerAuth::new(Reloadable::new(Callers::new(configs).unwrap()), agents, tokens, Metrics::new())
    }

    /// Without agents nothing waits.
    fn admit(auth: &CallerAuth, pairs: &[(&'static str, &str)]) -> Result<Admitted, RefusedCaller> {
        auth.admit(&headers(pairs), None).now_or_never().unwrap()
    }

    fn token(auth: &CallerAuth, name: &str, key: &str, wanted: WantedToken) -> Result<IssuedToken, RefusedToken> {
        auth.issue_token(Some((name.as_bytes(), key.as_bytes())), wanted)
    }

    fn bearer(auth: &CallerAuth, name: &str, key: &str, scope: Option<&str>) -> String {
        let scope = scope.map(|scope| scope.parse().unwrap());
        let issued = token(auth, name, key, WantedToken { scope, lifetime: None }).unwrap();
        format!("bearer {}", issued.token.expose())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn admitted(auth: &CallerAuth, pairs: &[(&'static str, &str)]) -> Option<String> {
        admit(auth, pairs).ok().map(|admitted| admitted.caller.name.to_string())
    }

    #[test]
    fn keys_and_tokens_are_accepted_in_every_supported_header() {
        let auth = auth(&[config("architect", "demo-key")]);
        let basic = format!("Basic {}", STANDARD.encode("architect:demo-key"));
        let token = bearer(&auth, "architect", "demo-key", None);
        let headers = [("x-api-key", "demo-key"), ("authorization", "Bearer demo-key"), ("authorization", &basic)];
        for pair in headers.into_iter().chain([("authorization", token.as_str())]) {
            assert_eq!(admitted(&auth, &[pair]).as_deref(), Some("architect"));
        }
    }

    #[test]
    fn every_wrong_credential_gets_the_same_answer() {
        let auth = auth(&[config("architect", "demo-key")]);
        let other = format!("Basic {}", STANDARD.encode("someone:demo-key"));
        let bearer = bearer(&auth, "architect", "demo-key", None);
        let (token, altered) = (bearer.trim_start_matches("bearer "), format!("{bearer}x"));
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
        let refused = |attempt| {
            let problem = admit(&auth, attempt).unwrap_err().problem;
            (problem.status(), problem.code(), problem.detail().to_owned())
        };
        for attempt in attempts {
            assert_eq!(refused(attempt), refused(attempts[0]));
        }
    }

    #[test]
    fn a_token_is_valid_only_while_its_caller_has_the_same_key() {
        let auth = auth(&[config("a", "one")]);
        let token = bearer(&auth, "a", "one", None);
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
        let issued = |name, key| token(&auth, name, key, WantedToken::default());
        assert!(issued("a", "k+/%=").is_ok());
        assert!(issued("a", "k%2B%2F%25%3D").is_ok());
        assert!(issued("%61", "k%2b%2f%25%3d").is_ok());
        for (name, key) in [("a", "plain"), ("other", "k+/%="), ("a", ""), ("", "plain"), ("other", "PLAIN")] {
            assert_eq!(issued(name, key).unwrap_err(), RefusedToken::WrongClient, "{name}");
        }
    }

    #[test]
    fn a_scoped_token_has_a_part_of_the_rights_while_its_caller_has_them() {
        let auth = auth(&[Config { fields: vec!["id".to_owned()], ..config("a", "one") }]);
        let scope = |scope: &str| WantedToken { scope: Some(scope.parse().unwrap()), lifetime: None };
        assert_eq!(token(&auth, "a", "one", scope("fields:*")).unwrap_err(), RefusedToken::WiderScope("a".into()));
        let bearer = bearer(&auth, "a", "one", Some("tenant:10001 fields:id"));
        let admitted = || admit(&auth, &[("authorization", &bearer)]);
        let caller = admitted().unwrap().caller;
        assert_eq!((&*caller.name, caller.scope.as_deref()), ("a", Some("tenant:10001 fields:1")));
        auth.callers
            .replace(Callers::new(&[Config { fields: vec!["title".to_owned()], ..config("a", "one") }]).unwrap());
        assert_eq!(admitted().unwrap_err().reason, DenialReason::Unauthorized);
    }

    #[test]
    fn the_lifetime_of_a_token_is_bounded() {
        let auth = auth(&[config("a", "one")]);
        for (asked, granted) in [(None, 60), (Some(7), 7), (Some(600), 60)] {
            let wanted = WantedToken { scope: None, lifetime: asked.map(Duration::from_secs) };
            let issued = token(&auth, "a", "one", wanted).unwrap();
            assert_eq!(issued.expires_in, granted);
            let bearer = format!("Bearer {}", issued.token.expose());
            let valid_for = admit(&auth, &[("authorization", &bearer)]).unwrap().valid_for.unwrap();
            assert!(valid_for.as_secs() <= granted && valid_for.as_secs() + 2 >= granted, "{valid_for:?}");
        }
    }

    #[test]
    fn a_caller_over_its_rate_is_refused_and_others_are_admitted() {
        let slow = Config { requests_per_second: 1, ..config("slow", "s") };
        let auth = auth(&[slow, config("quick", "q")]);
        let request = |key| admit(&auth, &[("x-api-key", key)]);
        let refused = std::iter::repeat_with(|| request("s")).take(1000).find_map(Result::err).unwrap();
        assert_eq!(refused.problem.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.caller.map(|caller| caller.name.to_string()).as_deref(), Some("slow"));
        assert!(request("q").unwrap().allowance.is_none());
    }
}
