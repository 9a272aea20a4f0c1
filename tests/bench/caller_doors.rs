//! The cost of each way of authentication on a hit: key, Basic, token, rate limit, field filter, and the Genesys-compatible
//! route.
//!
//! Run with `cargo bench --bench caller_doors`. The rounds of all candidates alternate in one run over real connections.
//! The output has ratios to a hit with a key, and the time of the admission alone, without a connection. It is not a test:
//! nothing here fails because a machine is slow.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod load;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use profile_edge::app::App;
use profile_edge::clock::SystemClock;
use profile_edge::config;
use profile_edge::faults::Faults;
use profile_edge::http::auth::agents::Agents;
use profile_edge::http::auth::authenticate::{CallerAuth, WantedToken};
use profile_edge::http::auth::callers::Callers;
use profile_edge::http::auth::jwt::TokenSigner;
use profile_edge::logging;
use profile_edge::metrics::Metrics;
use profile_edge::reload::Reloadable;
use profile_edge::shutdown::Shutdown;
use profile_edge::upstream::agents::AgentVerifiers;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use load::{Connection, Round, for_a_while, latencies, median};

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 7;
const ADMISSIONS: u32 = 200_000;
const PROFILE: &str = "/api/v1/profile?tenantId=10001&customerId=00000000-0000-4000-8000-000000000001";
const CONTACT: &str = "/api/v2/externalcontacts/contacts/00000000-0000-4000-8000-000000000001";

/// A way of authentication: its name, its request and its measurements.
struct Candidate {
    name: &'static str,
    header: (&'static str, String),
    request: Arc<Vec<Vec<u8>>>,
    rounds: Vec<Round>,
}

impl Candidate {
    fn new(name: &'static str, path: &str, header: (&'static str, String)) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}: {}\r\n\r\n", header.0, header.1);
        Self { name, header, request: Arc::new(vec![request.into_bytes()]), rounds: Vec::new() }
    }
}

fn main() {
    // `cargo test --benches` also runs this binary, to check that it starts; only `cargo bench` creates load.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("caller_doors: run with cargo bench --bench caller_doors");
        return;
    }
    tokio::runtime::Runtime::new().expect("a runtime starts").block_on(compare());
}

async fn compare() {
    let (level, format) = (logging::LogLevel::Info, logging::Format::Json);
    logging::init(&logging::Config { level, format, slow_lookup: std::time::Duration::ZERO });
    let data = tempfile::tempdir().expect("a directory can be created");
    let mut settings = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nsandbox.listen = \"127.0.0.1:0\"\n\
         audit.sink = \"none\"\nqueue.embedded.path = {:?}\nlookup.ttl = \"1h\"\n",
        data.path().join("queue").display().to_string()
    );
    let filtered = "[\"id\", \"firstName\", \"workPhone.e164\"]";
    for (name, fields, rate) in [("all", "[\"*\"]", 0), ("limited", "[\"*\"]", 10_000_000), ("filtered", filtered, 0)] {
        let key = hex::encode(Sha256::digest(format!("key-of-{name}")));
        settings.push_str(&format!(
            "[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\nfields = {fields}\n\
             requests_per_second = {rate}\n"
        ));
    }
    let loaded = config::from_toml(&settings).expect("the settings are valid");
    let tokens = TokenSigner::new(None, Duration::from_secs(3600), SystemClock::shared()).expect("a key can be drawn");
    let callers = || Callers::new(&loaded.config.callers).expect("the callers are valid");
    let agents =
        Agents::new([], AgentVerifiers::default(), &[0; 32], Shutdown::default()).expect("no option is invalid");
    let caller_auth = CallerAuth::new(Reloadable::new(callers()), agents, tokens, Metrics::new());
    let app = App::start(loaded.config.clone(), Faults::default()).await.expect("the application starts");

    let key = |name: &str| ("X-API-Key", format!("key-of-{name}"));
    let bearer = |token: &str| ("Authorization", format!("Bearer {token}"));
    let basic = || ("Authorization", format!("Basic {}", STANDARD.encode("all:key-of-all")));
    let own = caller_auth.issue_token(Some((b"all", b"key-of-all")), WantedToken::default()).expect("a token is given");
    let mut candidates = [
        Candidate::new("key", PROFILE, key("all")),
        Candidate::new("bearer key", PROFILE, bearer("key-of-all")),
        Candidate::new("basic", PROFILE, basic()),
        Candidate::new("token", PROFILE, bearer(&token(&app).await)),
        Candidate::new("rate", PROFILE, key("limited")),
        Candidate::new("field filter", PROFILE, key("filtered")),
        Candidate::new("as genesys", CONTACT, key("all")),
    ];
    for candidate in &candidates {
        Connection::open(app.public).await.exchange(&candidate.request[0]).await;
    }
    for _ in 0..ROUNDS {
        for candidate in &mut candidates {
            candidate.rounds.push(for_a_while(app.public, CONNECTIONS, &candidate.request, ROUND).await);
        }
    }
    println!("{CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?} each; ratios to a hit with a key");
    let rate = |candidate: &Candidate| median(candidate.rounds.iter().map(|round| round.per_second));
    let base = rate(&candidates[0]);
    for candidate in &candidates {
        let [_, p50, p99] = latencies(&candidate.rounds);
        let header = if candidate.name == "token" { bearer(own.token.expose()) } else { candidate.header.clone() };
        println!(
            "{:<13} {:>8.0} /s   ratio {:.2}   p50 {p50:>8.1?}   p99 {p99:>8.1?}   admission alone {:>6.0?}",
            candidate.name,
            rate(candidate),
            rate(candidate) / base,
            admission(&caller_auth, &header),
        );
    }
    app.stop().await;
}

/// Requests a token from the running application.
async fn token(app: &App) -> String {
    let form = "grant_type=client_credentials&client_id=all&client_secret=key-of-all";
    let head = "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded";
    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{form}", form.len());
    let mut connection = Connection::open(app.public).await;
    let answer: serde_json::Value =
        serde_json::from_slice(connection.exchange(request.as_bytes()).await).expect("the answer is json");
    answer["access_token"].as_str().expect("a token is issued").to_owned()
}

/// Returns the time of one admission of a request with this header.
fn admission(caller_auth: &CallerAuth, (name, value): &(&'static str, String)) -> Duration {
    let mut headers = HeaderMap::new();
    let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
    headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
    let started = Instant::now();
    for _ in 0..ADMISSIONS {
        // A key or a token of ours is never waited for.
        let admitted = caller_auth.admit(black_box(&headers), None).now_or_never().expect("nothing is waited for");
        assert!(admitted.is_ok(), "it is admitted");
    }
    started.elapsed() / ADMISSIONS
}
