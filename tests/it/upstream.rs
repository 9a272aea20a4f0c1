//! The Genesys adapter with its guard, over real connections to a scripted Genesys.

#![expect(clippy::unwrap_used, reason = "a fixture fails its test by panicking, as the test itself does")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::join_all;
use parking_lot::Mutex;
use profile_edge::domain::{CustomerId, Modified, Profile, Secret, TenantId};
use profile_edge::metrics::Metrics;
use profile_edge::shutdown::{Controller, Shutdown};
use profile_edge::upstream::open::{Config, TenantConfig, open};
use profile_edge::upstream::privileges::Permission;
use profile_edge::upstream::{Error, Fetched, Requester, Upstream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::support::servers::proxy::Proxy;

/// A test that waits this long has failed.
const LONG: Duration = Duration::from_secs(20);

/// The permissions document of a token that may only view contacts.
const VIEWER: &str =
    r#"{"grants":[{"role":{"policies":[{"domain":"externalContacts","entityName":"contact","actions":["view"]}]}}]}"#;

/// The permissions document of a token that may also change contacts.
const EDITOR: &str = r#"{"grants":[{"role":{"policies":[{"domain":"externalContacts","entityName":"contact","actions":["view","edit"]}]}}]}"#;

const PROFILE: &str = r#"{"id":"c-1","modifyDate":"2025-03-04T05:06:07.089Z","firstName":"planted-Ada"}"#;

/// One answer of the scripted Genesys.
#[derive(Clone, Debug)]
struct Reply {
    status: u16,
    retry_after: Option<&'static str>,
    coding: Option<&'static str>,
    body: Bytes,
}

impl Reply {
    fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, retry_after: None, coding: None, body: body.into() }
    }

    fn status(status: u16) -> Self {
        Self::new(status, r#"{"message":"planted-message"}"#)
    }

    fn profile() -> Self {
        Self::new(200, PROFILE)
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::from_u16(self.status).unwrap(), self.body).into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, after.parse().unwrap());
        }
        if let Some(coding) = self.coding {
            response.headers_mut().insert(header::CONTENT_ENCODING, coding.parse().unwrap());
        }
        response
    }
}

/// The behaviour and the requests of the scripted Genesys. Tokens are `token-1`, `token-2`, …
#[derive(Debug)]
struct Script {
    /// The next answers to profile requests; afterwards [`Script::usual`].
    next: Mutex<VecDeque<Reply>>,
    usual: Mutex<Reply>,
    /// The answer of the token endpoint instead of a token.
    token_failure: Mutex<Option<Reply>>,
    expires_in: u64,
    /// The scopes in the answer of the token endpoint.
    scope: Mutex<&'static str>,
    /// The permissions document of a token.
    subject: Mutex<Reply>,
    /// How often it was read.
    judged: AtomicUsize,
    /// Tokens up to this one are rejected.
    revoked: AtomicUsize,
    tokens: AtomicUsize,
    profiles: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    /// The paths and the authorizations of the profile requests.
    seen: Mutex<Vec<(String, String)>>,
    /// Whether answers are held back.
    hold_tokens: watch::Sender<bool>,
    hold_profiles: watch::Sender<bool>,
}

impl Script {
    fn tokens(&self) -> usize {
        self.tokens.load(Ordering::SeqCst)
    }

    fn profiles(&self) -> usize {
        self.profiles.load(Ordering::SeqCst)
    }

    fn judged(&self) -> usize {
        self.judged.load(Ordering::SeqCst)
    }

    fn revoke_tokens(&self) {
        self.revoked.store(self.tokens(), Ordering::SeqCst);
    }

    fn last_authorization(&self) -> String {
        self.seen.lock().last().unwrap().1.clone()
    }

    async fn pass(gate: &watch::Sender<bool>) {
        gate.subscribe().wait_for(|held| !held).await.unwrap();
    }
}

async fn token(State(script): State<Arc<Script>>, headers: HeaderMap, body: String) -> Response {
    let number = script.tokens.fetch_add(1, Ordering::SeqCst) + 1;
    assert_eq!(headers[header::AUTHORIZATION], "Basic Y2xpZW50OnBsYW50ZWQtc2VjcmV0");
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-www-form-urlencoded");
    assert_eq!(body, "grant_type=client_credentials");
    Script::pass(&script.hold_tokens).await;
    if let Some(failure) = script.token_failure.lock().clone() {
        return failure.into_response();
    }
    let (expires_in, scope) = (script.expires_in, *script.scope.lock());
    let (about, times) =
        (format!(r#""token_type":"bearer","scope":"{scope}""#), format!(r#""expires_in":{expires_in}"#));
    format!(r#"{{"access_token":"token-{number}",{about},{times}}}"#).into_response()
}

async fn subject(State(script): State<Arc<Script>>) -> Reply {
    script.judged.fetch_add(1, Ordering::SeqCst);
    script.subject.lock().clone()
}

async fn profile(State(script): State<Arc<Script>>, uri: Uri, headers: HeaderMap) -> Reply {
    script.profiles.fetch_add(1, Ordering::SeqCst);
    let in_flight = script.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    script.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
    assert_eq!(headers[header::ACCEPT_ENCODING], "identity");
    let authorization = headers[header::AUTHORIZATION].to_str().unwrap();
    script.seen.lock().push((uri.to_string(), authorization.to_owned()));
    Script::pass(&script.hold_profiles).await;
    script.in_flight.fetch_sub(1, Ordering::SeqCst);
    let number: usize = authorization.strip_prefix("Bearer token-").unwrap().parse().unwrap();
    if number <= script.revoked.load(Ordering::SeqCst) {
        return Reply::status(401);
    }
    let next = script.next.lock().pop_front();
    next.unwrap_or_else(|| script.usual.lock().clone())
}

/// An upstream in front of a scripted Genesys.
struct Harness {
    upstream: Arc<dyn Upstream>,
    script: Arc<Script>,
    metrics: Arc<Metrics>,
    controller: Controller,
    server: tokio::task::JoinHandle<()>,
    address: std::net::SocketAddr,
}

struct Options {
    expires_in: u64,
    requests_per_minute: u32,
    max_in_flight: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { expires_in: 86_399, requests_per_minute: 1_000_000, max_in_flight: 64 }
    }
}

fn open_at(url: &str, options: &Options, metrics: &Arc<Metrics>, shutdown: &Shutdown) -> Arc<dyn Upstream> {
    let max_connection_age = Duration::from_secs(1);
    let config = Config { timeout: LONG, max_in_flight: options.max_in_flight, max_connection_age };
    let tenant_config = TenantConfig {
        region: None,
        api_url: Some(url.parse().unwrap()),
        login_url: Some(url.parse().unwrap()),
        client_id: "client".to_owned(),
        client_secret: Secret::new("planted-secret"),
        profile_path: "/api/v2/externalcontacts/contacts/{customer_id}".to_owned(),
        requests_per_minute: options.requests_per_minute,
        required_permissions: permissions(&["externalContacts:contact:view"]),
        forbidden_permissions: permissions(&["externalContacts:contact:edit"]),
        required_scopes: Vec::new(),
        forbidden_scopes: vec!["cloud.cust.write".to_owned().try_into().unwrap()],
    };
    open(&config, [(tenant(), &tenant_config)], metrics, shutdown).unwrap().upstream
}

fn permissions(texts: &[&str]) -> Vec<Permission> {
    texts.iter().map(|text| Permission::try_from((*text).to_owned()).unwrap()).collect()
}

fn tenant() -> TenantId {
    "10001".parse().unwrap()
}

fn requester() -> Requester {
    Requester::Caller("architect".into())
}

fn customer(id: &str) -> CustomerId {
    id.parse().unwrap()
}

impl Harness {
    async fn start(options: Options) -> Self {
        let script = Arc::new(Script {
            next: Mutex::default(),
            usual: Mutex::new(Reply::profile()),
            token_failure: Mutex::default(),
            expires_in: options.expires_in,
            scope: Mutex::default(),
            subject: Mutex::new(Reply::new(200, VIEWER)),
            judged: AtomicUsize::default(),
            revoked: AtomicUsize::default(),
            tokens: AtomicUsize::default(),
            profiles: AtomicUsize::default(),
            in_flight: AtomicUsize::default(),
            most_in_flight: AtomicUsize::default(),
            seen: Mutex::default(),
            hold_tokens: watch::Sender::new(false),
            hold_profiles: watch::Sender::new(false),
        });
        let router = Router::new()
            .route("/oauth/token", post(token))
            .route("/api/v2/externalcontacts/contacts/{id}", get(profile))
            .route("/api/v2/tokens/me", get(async || r#"{"authorizedScope":[],"OAuthClient":{"scope":[]}}"#))
            .route("/api/v2/authorization/subjects/me", get(subject))
            .with_state(Arc::clone(&script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}");
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (metrics, (controller, shutdown)) = (Metrics::new(), Shutdown::new());
        let upstream = open_at(&url, &options, &metrics, &shutdown);
        Self { upstream, script, metrics, controller, server, address }
    }

    async fn fetch_within(&self, time: Duration) -> Result<Fetched, Error> {
        self.upstream.fetch(&tenant(), &customer("planted-id"), &requester(), Instant::now() + time).await
    }

    async fn fetch(&self) -> Result<Fetched, Error> {
        self.fetch_within(LONG).await
    }

    async fn found(&self) -> Profile {
        match self.fetch().await {
            Ok(Fetched::Found(profile)) => profile,
            other => panic!("no profile: {other:?}"),
        }
    }

    /// Fetches, expects that the token's privileges are wrong, and returns the reason.
    async fn refused(&self) -> Arc<str> {
        match self.fetch().await {
            Err(Error::Privileges { reason }) => reason,
            other => panic!("not refused for its privileges: {other:?}"),
        }
    }

    async fn all_found(&self, fetches: usize) {
        join_all((0..fetches).map(|_| self.found())).await;
    }

    fn count(&self, metric: &str) -> u64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("profile_edge_{metric} "))).unwrap();
        value.parse().unwrap()
    }

    /// Stops everything. The tasks of the upstream must end too.
    async fn end(self) {
        assert!(self.controller.drain(LONG).await);
        self.server.abort();
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_profile_is_fetched_verbatim_with_modify_date_and_canonical_id() {
    let it = Harness::start(Options::default()).await;
    let profile = it.found().await;
    assert_eq!(profile.body.expose(), PROFILE);
    assert_eq!(profile.modified, Some(Modified::from_millis(1_741_064_767_089)));
    assert_eq!(profile.canonical, Some(customer("c-1")));
    assert_eq!(it.count("upstream_requests_total{outcome=\"found\"}"), 1);
    assert_eq!(it.count("upstream_duration_seconds_count"), 1);
    it.end().await;
}

#[tokio::test]
async fn a_compressed_answer_is_unusable_and_says_so() {
    let it = Harness::start(Options::default()).await;
    for (coding, is_used) in [("identity", true), ("gzip", false), ("Identity", true), ("br", false)] {
        it.script.next.lock().push_back(Reply { coding: Some(coding), ..Reply::profile() });
        match it.fetch().await {
            Ok(Fetched::Found(_)) => assert!(is_used, "{coding}"),
            Err(error @ Error::Unusable { .. }) => {
                assert!(!is_used && error.to_string().contains("compressed"), "{coding}: {error}");
            }
            other => panic!("{coding}: {other:?}"),
        }
    }
    it.end().await;
}

/// The name is `localhost`; for new connections it leads to another server from some time on.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_genesys_that_moves_is_followed_and_no_fetch_fails() {
    let (old, new) = (Harness::start(Options::default()).await, Harness::start(Options::default()).await);
    let mut before = Proxy::to(old.address.port()).await;
    let (port, (controller, shutdown)) = (before.address.port(), Shutdown::new());
    let upstream = open_at(&format!("http://localhost:{port}"), &Options::default(), &old.metrics, &shutdown);
    let fetch = async || {
        let fetched = upstream.fetch(&tenant(), &customer("planted-id"), &requester(), Instant::now() + LONG).await;
        assert!(matches!(fetched, Ok(Fetched::Found(_))), "{fetched:?}");
    };
    fetch().await;
    before.retire().await;
    let _after = Proxy::at(("127.0.0.1", port), new.address.port()).await;
    let deadline = Instant::now() + LONG;
    while new.script.profiles() == 0 {
        assert!(Instant::now() < deadline, "the new server is never asked");
        fetch().await;
    }
    assert!(controller.drain(LONG).await);
    old.end().await;
    new.end().await;
}

#[tokio::test]
async fn an_id_is_sent_as_one_encoded_segment() {
    let it = Harness::start(Options::default()).await;
    for (id, segment) in [("a b", "a%20b"), ("é", "%C3%A9"), ("a+b", "a%2Bb"), ("x@y.z", "x%40y.z"), ("a;b", "a%3Bb")]
    {
        it.upstream.fetch(&tenant(), &customer(id), &requester(), Instant::now() + LONG).await.unwrap();
        let path = it.script.seen.lock().last().unwrap().0.clone();
        assert_eq!(path, format!("/api/v2/externalcontacts/contacts/{segment}"));
    }
    it.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_fetches_use_one_token() {
    let it = Harness::start(Options::default()).await;
    it.all_found(1000).await;
    assert_eq!((it.script.tokens(), it.script.profiles()), (1, 1000));
    assert_eq!(it.count("token_renewals_total{outcome=\"ok\"}"), 1);
    it.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_renewed_once_for_a_thousand_fetches() {
    let it = Harness::start(Options::default()).await;
    it.found().await;
    it.script.revoke_tokens();
    it.all_found(1000).await;
    assert_eq!(it.script.tokens(), 2);
    it.end().await;
}

#[tokio::test]
async fn an_expiring_token_is_renewed_early_and_used_meanwhile() {
    let it = Harness::start(Options { expires_in: 20, ..Options::default() }).await;
    it.found().await;
    it.script.hold_tokens.send_replace(true);
    // A token of 20 seconds is renewed when 10 are left.
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(9_900)).await;
    tokio::time::resume();
    it.found().await;
    assert_eq!(it.script.tokens(), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(200)).await;
    tokio::time::resume();
    it.found().await;
    until("a renewal is under way", || it.script.tokens() == 2).await;
    it.found().await;
    assert_eq!(it.script.last_authorization(), "Bearer token-1");

    it.script.hold_tokens.send_replace(false);
    until("the renewal has ended", || it.count("token_renewals_total{outcome=\"ok\"}") == 2).await;
    it.found().await;
    assert_eq!((it.script.last_authorization().as_str(), it.script.tokens()), ("Bearer token-2", 2));
    it.end().await;
}

#[tokio::test]
async fn a_cancelled_fetch_does_not_cancel_the_renewal() {
    let it = Harness::start(Options::default()).await;
    it.script.hold_tokens.send_replace(true);
    let error = it.fetch_within(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    until("the renewal is under way", || it.script.tokens() == 1).await;
    it.script.hold_tokens.send_replace(false);
    it.found().await;
    assert_eq!(it.script.tokens(), 1);
    it.end().await;
}

#[tokio::test]
async fn a_failing_token_endpoint_gets_few_requests_and_recovers() {
    let it = Harness::start(Options::default()).await;
    *it.script.token_failure.lock() = Some(Reply::status(401));
    for _ in 0..50 {
        for outcome in join_all((0..10).map(|_| it.fetch())).await {
            assert_eq!(outcome.unwrap_err(), Error::Denied { status: 401 });
        }
    }
    assert_eq!(it.script.profiles(), 0);
    assert!(it.script.tokens() <= 20, "{} requests for tokens", it.script.tokens());

    *it.script.token_failure.lock() = None;
    let deadline = Instant::now() + LONG;
    while it.fetch().await.is_err() {
        assert!(Instant::now() < deadline, "it never recovers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    it.end().await;
}

#[tokio::test]
async fn one_failure_of_the_token_endpoint_fails_no_fetch() {
    let it = Harness::start(Options::default()).await;
    *it.script.token_failure.lock() = Some(Reply::status(503));
    it.script.hold_tokens.send_replace(true);
    let heal = async {
        until("a token is asked for", || it.script.tokens() == 1).await;
        it.script.hold_tokens.send_replace(false);
        until("the renewal has failed", || it.count("token_renewals_total{outcome=\"error\"}") == 1).await;
        *it.script.token_failure.lock() = None;
    };
    tokio::join!(heal, it.found());
    it.end().await;
}

#[tokio::test]
async fn a_rejected_new_token_is_a_denial_and_not_renewed_at_once() {
    let it = Harness::start(Options::default()).await;
    it.script.revoked.store(usize::MAX, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(it.fetch().await.unwrap_err(), Error::Denied { status: 401 });
    }
    assert!(it.script.tokens() < 20, "{} requests for tokens", it.script.tokens());
    it.end().await;
}

#[tokio::test]
async fn a_server_error_is_retried_until_genesys_answers() {
    let it = Harness::start(Options::default()).await;
    *it.script.next.lock() = [Reply::status(500), Reply::status(503)].into();
    it.found().await;
    assert_eq!(it.script.profiles(), 3);
    assert_eq!(it.count("upstream_requests_total{outcome=\"failed\"}"), 2);
    it.end().await;
}

#[tokio::test]
async fn each_status_gives_the_documented_result() {
    let it = Harness::start(Options::default()).await;
    for status in [404, 410] {
        it.script.next.lock().push_back(Reply::status(status));
        assert!(matches!(it.fetch().await, Ok(Fetched::Absent)), "{status}");
    }
    it.script.next.lock().push_back(Reply::status(403));
    assert_eq!(it.fetch().await.unwrap_err(), Error::Denied { status: 403 });
    let unusable = [
        Reply::new(200, ""),
        Reply::new(200, "[]"),
        Reply::new(200, r#"["planted-id"]"#),
        Reply::new(200, "{\"firstName\":"),
        Reply::new(200, "<html>planted-html</html>"),
        Reply::new(200, format!("{{\"firstName\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000))),
        Reply::new(200, vec![b' '; 1024 * 1024 + 1]),
        Reply::status(204),
        Reply::status(302),
        Reply::status(400),
    ];
    for reply in unusable {
        it.script.next.lock().push_back(reply.clone());
        let error = it.fetch().await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error} for {}", reply.status);
    }
    assert_eq!(it.script.profiles(), 13, "none of them is retried");
    it.end().await;
}

#[tokio::test]
async fn no_error_shows_a_body_an_id_or_a_secret() {
    let it = Harness::start(Options::default()).await;
    let mut shown = String::new();
    for reply in [Reply::status(500), Reply::status(403), Reply::status(400), Reply::new(200, "\"planted-body\"")] {
        *it.script.usual.lock() = reply;
        let error = it.fetch().await.unwrap_err();
        shown.push_str(&format!("{error} {error:?} "));
    }
    shown.push_str(&format!("{:?}", it.upstream));
    *it.script.usual.lock() = Reply::profile();
    shown.push_str(&format!("{:?}", it.fetch().await.unwrap()));
    assert!(!shown.contains("planted") && !shown.contains("token-1"), "{shown}");
    it.end().await;
}

#[tokio::test]
async fn retry_after_is_honoured_and_nothing_is_sent_before() {
    let it = Harness::start(Options::default()).await;
    it.script.next.lock().push_back(Reply { retry_after: Some("30"), ..Reply::status(429) });
    assert_eq!(it.fetch().await.unwrap_err(), Error::Throttled { retry_after: Duration::from_secs(30) });
    for outcome in join_all((0..50).map(|_| it.fetch())).await {
        let remaining = outcome.unwrap_err().retry_after().unwrap();
        assert!(remaining <= Duration::from_secs(30) && remaining > Duration::from_secs(10), "{remaining:?}");
    }
    assert_eq!(it.script.profiles(), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30)).await;
    tokio::time::resume();
    it.found().await;
    it.end().await;
}

#[tokio::test]
async fn no_answer_from_genesys_is_a_timeout_at_the_deadline() {
    let it = Harness::start(Options::default()).await;
    it.found().await;
    it.script.hold_profiles.send_replace(true);
    let began = Instant::now();
    let error = it.fetch_within(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(began.elapsed() >= Duration::from_millis(100));
    it.script.hold_profiles.send_replace(false);
    it.found().await;
    it.end().await;
}

#[tokio::test]
async fn a_refused_connection_fails_before_the_deadline_with_its_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (metrics, (_controller, shutdown)) = (Metrics::new(), Shutdown::new());
    let upstream = open_at(&url, &Options::default(), &metrics, &shutdown);
    let error = upstream.fetch(&tenant(), &customer("c"), &requester(), Instant::now() + LONG).await.unwrap_err();
    let Error::Unreachable(Some(failure)) = error else { panic!("{error:?}") };
    let address = url.strip_prefix("http://").unwrap();
    assert_eq!(failure.to_string(), format!("{address}: connect: Connection refused (os error 111)"));
    let unknown: TenantId = "unknown".parse().unwrap();
    assert_eq!(
        upstream.fetch(&unknown, &customer("c"), &requester(), Instant::now() + LONG).await.unwrap_err(),
        Error::Unreachable(None)
    );
}

#[tokio::test]
async fn the_breaker_opens_and_recovers_with_genesys() {
    let it = Harness::start(Options::default()).await;
    *it.script.usual.lock() = Reply::status(500);
    let retry_after = loop {
        match it.fetch().await.unwrap_err() {
            Error::Failed { status: 500, retry_after: None } => {}
            Error::BreakerOpen { retry_after } => break retry_after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(it.count("upstream_breaker_state"), 2);
    let asked = it.script.profiles();
    assert!(join_all((0..50).map(|_| it.fetch())).await.iter().all(Result::is_err));
    assert_eq!(it.script.profiles(), asked, "no request is sent while it is open");

    *it.script.usual.lock() = Reply::profile();
    tokio::time::sleep(retry_after).await;
    it.found().await;
    assert_eq!(it.count("upstream_breaker_state"), 0);
    it.end().await;
}

#[tokio::test]
async fn a_spent_budget_sends_nothing_and_gives_retry_after() {
    let it = Harness::start(Options { requests_per_minute: 5, ..Options::default() }).await;
    it.all_found(5).await;
    let Err(Error::BudgetSpent { retry_after }) = it.fetch().await else { panic!("the budget is not spent") };
    assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(12), "{retry_after:?}");
    assert_eq!(it.script.profiles(), 5);
    it.end().await;
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed() {
    let it = Harness::start(Options { max_in_flight: 4, ..Options::default() }).await;
    it.script.hold_profiles.send_replace(true);
    let release = async {
        until("four requests are in flight", || it.script.in_flight.load(Ordering::SeqCst) == 4).await;
        it.script.hold_profiles.send_replace(false);
    };
    tokio::join!(it.all_found(40), release);
    assert_eq!(it.script.most_in_flight.load(Ordering::SeqCst), 4);
    it.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileges_are_checked_once_per_token_before_the_first_profile() {
    let it = Harness::start(Options::default()).await;
    it.all_found(100).await;
    assert_eq!((it.script.tokens(), it.script.judged()), (1, 1));
    it.script.revoke_tokens();
    it.all_found(100).await;
    assert_eq!((it.script.tokens(), it.script.judged()), (2, 2));
    assert_eq!(it.count("token_privileges_total{outcome=\"ok\"}"), 2);
    it.end().await;
}

#[tokio::test]
async fn a_token_with_write_or_without_view_permission_fetches_nothing() {
    for (subject, reason) in [
        (EDITOR, "the token holds the forbidden permission externalContacts:contact:edit"),
        (r#"{"grants":[]}"#, "the token lacks the permission externalContacts:contact:view"),
    ] {
        let it = Harness::start(Options { requests_per_minute: 5, ..Options::default() }).await;
        *it.script.subject.lock() = Reply::new(200, subject);
        assert_eq!(&*it.refused().await, reason);
        for outcome in join_all((0..50).map(|_| it.fetch())).await {
            assert!(matches!(outcome, Err(Error::Privileges { .. })), "no budget is spent on it: {outcome:?}");
        }
        assert_eq!((it.script.profiles(), it.script.tokens(), it.script.judged()), (0, 1, 1));
        assert_eq!(it.count("upstream_requests_total{outcome=\"privileges\"}"), 51);

        // After the correction, the check after the pause succeeds with the same token.
        *it.script.subject.lock() = Reply::new(200, VIEWER);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::time::resume();
        it.refused().await;
        until("it was checked again", || it.count("token_privileges_total{outcome=\"ok\"}") == 1).await;
        it.found().await;
        assert_eq!((it.script.tokens(), it.script.judged()), (1, 2));
        it.end().await;
    }
}

#[tokio::test]
async fn a_renewal_with_forbidden_privileges_stops_the_old_token_too() {
    let it = Harness::start(Options { expires_in: 20, ..Options::default() }).await;
    it.found().await;
    *it.script.subject.lock() = Reply::new(200, EDITOR);
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(10_100)).await;
    tokio::time::resume();
    it.found().await;
    until("the new token was checked", || it.count("token_privileges_total{outcome=\"refused\"}") == 1).await;
    let asked = it.script.profiles();
    it.refused().await;
    assert_eq!(it.script.profiles(), asked);
    it.end().await;
}

#[tokio::test]
async fn a_failed_privilege_check_is_repeated_with_the_same_token() {
    let it = Harness::start(Options::default()).await;
    *it.script.subject.lock() = Reply::status(503);
    assert_eq!(it.fetch().await.unwrap_err(), Error::Failed { status: 503, retry_after: None });
    *it.script.subject.lock() = Reply::new(200, r#"{"message":"planted-message"}"#);
    let deadline = Instant::now() + LONG;
    // During the pause fetches get the error of the failure.
    while it.fetch().await.unwrap_err() != (Error::Unusable { reason: "not a description of the token" }) {
        assert!(Instant::now() < deadline, "it is never checked again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *it.script.subject.lock() = Reply::new(200, VIEWER);
    while it.fetch().await.is_err() {
        assert!(Instant::now() < deadline, "it never recovers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((it.script.tokens(), it.script.profiles()), (1, 1));
    it.end().await;
}

#[tokio::test]
async fn a_kept_token_that_genesys_rejects_is_replaced() {
    let it = Harness::start(Options::default()).await;
    *it.script.subject.lock() = Reply::status(503);
    assert_eq!(it.fetch().await.unwrap_err(), Error::Failed { status: 503, retry_after: None });
    *it.script.subject.lock() = Reply::status(401);
    let deadline = Instant::now() + LONG;
    // During the pause fetches get the error of the failure.
    while it.fetch().await.unwrap_err() != (Error::Denied { status: 401 }) {
        assert!(Instant::now() < deadline, "it is never checked again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(it.script.tokens(), 2, "the kept one, and at once a new one");
    *it.script.subject.lock() = Reply::new(200, VIEWER);
    while it.fetch().await.is_err() {
        assert!(Instant::now() < deadline, "it never recovers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    it.end().await;
}

#[tokio::test]
async fn scopes_of_a_token_decide_and_no_document_is_read() {
    for (scope, granted) in [("external-contacts:readonly", true), ("external-contacts cloud.cust.write", false)] {
        let it = Harness::start(Options::default()).await;
        *it.script.scope.lock() = scope;
        *it.script.subject.lock() = Reply::new(200, EDITOR);
        if granted {
            it.found().await;
        } else {
            assert_eq!(&*it.refused().await, "the token holds the forbidden scope cloud.cust.write");
        }
        assert_eq!((it.script.judged(), it.script.profiles()), (0, usize::from(granted)), "{scope}");
        it.end().await;
    }
}

/// Forwards connections to a scripted Genesys until all of them are cut at once.
struct CutLine {
    url: String,
    cut: watch::Sender<u32>,
}

impl CutLine {
    async fn to(server: std::net::SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cut = watch::Sender::new(0);
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cuts = cuts.subscribe();
                tokio::spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { url, cut }
    }
}

#[tokio::test]
async fn requests_lost_together_are_repeated_and_open_no_breaker() {
    let it = Harness::start(Options::default()).await;
    let line = CutLine::to(it.address).await;
    let (metrics, (controller, shutdown)) = (Metrics::new(), Shutdown::new());
    let upstream = open_at(&line.url, &Options::default(), &metrics, &shutdown);
    let fetch = async || upstream.fetch(&tenant(), &customer("c"), &requester(), Instant::now() + LONG).await;
    fetch().await.unwrap();
    it.script.hold_profiles.send_replace(true);
    let cut = async {
        until("32 requests are in flight", || it.script.in_flight.load(Ordering::SeqCst) == 32).await;
        line.cut.send_modify(|cuts| *cuts += 1);
        it.script.hold_profiles.send_replace(false);
    };
    let (answers, ()) = tokio::join!(join_all((0..32).map(|_| fetch())), cut);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(join_all((0..32).map(|_| fetch())).await.iter().all(Result::is_ok));
    assert!(metrics.render().contains("profile_edge_upstream_breaker_state 0"));
    assert!(controller.drain(LONG).await);
    it.end().await;
}

#[tokio::test]
async fn a_pause_of_a_day_is_probed_once_a_minute_and_ends_with_an_answer() {
    for status in [429, 503] {
        let it = Harness::start(Options::default()).await;
        let day = Reply { retry_after: Some("86400"), ..Reply::status(status) };
        it.script.next.lock().extend([day.clone(), day]);
        it.fetch().await.unwrap_err();
        for probes in 1..=2 {
            for outcome in join_all((0..20).map(|_| it.fetch())).await {
                assert!(outcome.unwrap_err().retry_after().is_some_and(|wait| wait <= Duration::from_secs(60)));
            }
            assert_eq!(it.script.profiles(), probes, "nothing is sent during the pause");
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(60)).await;
            tokio::time::resume();
            assert_eq!(it.fetch().await.is_ok(), probes == 2);
        }
        it.all_found(5).await;
        it.end().await;
    }
}
