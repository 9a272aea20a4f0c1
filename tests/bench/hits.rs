//! Hits over HTTP: our full path against a bare axum route in the same process with the same body.
//!
//! Run with `cargo bench --bench hits`. Rounds of both alternate in one run, so that what is printed as a
//! ratio does not depend on the machine; p50 and p99 are of single hits at that load. Not a test: nothing
//! here fails because a machine is slow.

#[expect(dead_code, reason = "what only the other benchmark needs of it")]
mod load;

use std::net::SocketAddr;
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
    // `cargo test --benches` runs this binary too, to see that it starts; the load is for `cargo bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("hits: run with cargo bench --bench hits");
        return;
    }
    tokio::runtime::Runtime::new().expect("a runtime starts").block_on(compare());
}

async fn compare() {
    // As the binary runs: with its subscriber, so that spans cost what they cost there.
    logging::init(&logging::Config { level: logging::Level::Info, format: logging::Format::Json });
    let data = tempfile::tempdir().expect("a directory can be made");
    let settings = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nsandbox.listen = \"127.0.0.1:0\"\n\
         audit.sink = \"none\"\nqueue.embedded.path = {:?}\n",
        data.path().join("queue").display().to_string()
    );
    let loaded = config::from_toml(&settings).expect("the settings are valid");
    let app = App::start(loaded.config, Faults::default()).await.expect("the application starts");
    let path = format!("/api/v1/profile?tenantId=10001&customerId={CUSTOMER}");
    let body = Bytes::from(fetch(app.public, &path).await);
    let bare = bare_route(body.clone()).await;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (bare_request, our_request) = (Arc::new(vec![request("/")]), Arc::new(vec![request(&path)]));
    for _ in 0..ROUNDS {
        theirs.push(for_a_while(bare, CONNECTIONS, &bare_request, ROUND).await);
        ours.push(for_a_while(app.public, CONNECTIONS, &our_request, ROUND).await);
    }
    println!("body of {} bytes, {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND:?} each", body.len());
    report("bare axum route", &theirs);
    report("profile-edge hit", &ours);
    println!("ratio of throughput: {:.2} (target: at least 0.6)", median(&ours) / median(&theirs));
    app.stop().await;
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
