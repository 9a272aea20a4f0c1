//! Hits over HTTP: the full path of the service against a bare axum route in the same process with the same body, and the
//! same path with an audit record for every lookup.
//!
//! Run with `cargo bench --bench hits`. The rounds alternate in one run, so that the printed ratios do not depend on the
//! machine; p50 and p99 are those of single hits at that load. It is not a test: nothing here fails because a machine is
//! slow.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod load;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use profile_edge::app::App;
use profile_edge::config;
use profile_edge::faults::Faults;
use profile_edge::logging;
use tokio::net::TcpListener;

use load::{Round, fetch, for_a_while, get as request};

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
const CUSTOMER: &str = "00000000-0000-4000-8000-000000000001";

fn main() {
    // `cargo test --benches` also runs this binary, to check that it starts; only `cargo bench` creates load.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("hits: run with cargo bench --bench hits");
        return;
    }
    tokio::runtime::Runtime::new().expect("a runtime starts").block_on(compare());
}

async fn compare() {
    // With the subscriber of the real binary, so that spans have their real cost.
    let (level, format) = (logging::LogLevel::Info, logging::Format::Json);
    logging::init(&logging::Config { level, format, slow_lookup: std::time::Duration::ZERO });
    let data = tempfile::tempdir().expect("a directory can be created");
    let app = start(data.path(), "none").await;
    let recorded = tempfile::tempdir().expect("a directory can be created");
    let audited = start(recorded.path(), "file").await;
    let path = format!("/api/v1/profile?tenantId=10001&customerId={CUSTOMER}");
    let body = Bytes::from(fetch(app.public, &path).await);
    fetch(audited.public, &path).await;
    let bare = bare_route(body.clone()).await;

    let (mut ours, mut theirs, mut with_audit) = (Vec::new(), Vec::new(), Vec::new());
    let (bare_request, our_request) = (Arc::new(vec![request("/")]), Arc::new(vec![request(&path)]));
    for _ in 0..ROUNDS {
        theirs.push(for_a_while(bare, CONNECTIONS, &bare_request, ROUND).await);
        ours.push(for_a_while(app.public, CONNECTIONS, &our_request, ROUND).await);
        with_audit.push(for_a_while(audited.public, CONNECTIONS, &our_request, ROUND).await);
    }
    println!("body of {} bytes, {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?} each", body.len());
    report("bare axum route", &theirs);
    report("profile-edge hit", &ours);
    report("hit, recorded", &with_audit);
    println!("ratio of throughput: {:.2} (target: at least 0.6)", median(&ours) / median(&theirs));
    let cost = median(&with_audit) / median(&ours);
    println!("ratio of a recorded hit to one that is not: {cost:.2} (target: at least 0.85)");
    app.stop().await;
    audited.stop().await;
}

async fn start(data: &Path, audit: &str) -> App {
    let (queue, file) = (data.join("queue").display().to_string(), data.join("audit.jsonl").display().to_string());
    let settings = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nsandbox.listen = \"127.0.0.1:0\"\n\
         lookup.ttl = \"1h\"\nqueue.embedded.path = {queue:?}\n\
         [audit]\nsink = {audit:?}\npath = {file:?}\nlookups = \"all\"\n"
    );
    let loaded = config::from_toml(&settings).expect("the settings are valid");
    App::start(loaded.config, Faults::default()).await.expect("the application starts")
}

async fn bare_route(body: Bytes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let addr = listener.local_addr().expect("a bound listener has an address");
    let router = Router::new().route("/", get(move || async move { body }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

fn report(what: &str, rounds: &[Round]) {
    let [_, p50, p99] = load::latencies(rounds);
    println!("{what:<17} {:>9.0} /s   p50 {p50:>9.1?}   p99 {p99:>9.1?}", median(rounds));
}

fn median(rounds: &[Round]) -> f64 {
    load::median(rounds.iter().map(|round| round.per_second))
}
