//! Hits over HTTP: our full path against a bare axum route in the same process with the same body.
//!
//! Run with `cargo bench --bench hits`. Rounds of both alternate in one run, so that what is printed as a
//! ratio does not depend on the machine; p50 and p99 are of single hits at that load. Not a test: nothing
//! here fails because a machine is slow.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use profile_edge::app::App;
use profile_edge::config;
use profile_edge::faults::Faults;
use profile_edge::logging;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
const CUSTOMER: &str = "00000000-0000-4000-8000-000000000001";

/// What one round measured.
struct Round {
    per_second: f64,
    latencies: Vec<Duration>,
}

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
         queue.embedded.path = {:?}\n",
        data.path().join("queue").display().to_string()
    );
    let loaded = config::from_toml(&settings).expect("the settings are valid");
    let app = App::start(loaded.config, Faults::default()).await.expect("the application starts");
    let path = format!("/api/v1/profile?tenantId=10001&customerId={CUSTOMER}");
    let body = fetch(app.public, &path).await;
    let bare = bare_route(body.clone()).await;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(load(bare, "/").await);
        ours.push(load(app.public, &path).await);
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

async fn load(addr: SocketAddr, path: &str) -> Round {
    let until = Instant::now() + ROUND;
    let workers: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(hammer(addr, request(path), until))).collect();
    let mut latencies = Vec::new();
    for worker in workers {
        latencies.extend(worker.await.expect("a worker ends"));
    }
    Round { per_second: latencies.len() as f64 / ROUND.as_secs_f64(), latencies }
}

async fn hammer(addr: SocketAddr, request: Vec<u8>, until: Instant) -> Vec<Duration> {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    stream.set_nodelay(true).expect("the option can be set");
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut latencies = Vec::with_capacity(100_000);
    while Instant::now() < until {
        let started = Instant::now();
        exchange(&mut stream, &request, &mut buffer).await;
        latencies.push(started.elapsed());
    }
    latencies
}

async fn fetch(addr: SocketAddr, path: &str) -> Bytes {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    let mut buffer = Vec::new();
    let body = exchange(&mut stream, &request(path), &mut buffer).await;
    Bytes::copy_from_slice(&buffer[body..])
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: demo-key\r\n\r\n").into_bytes()
}

/// Sends a request and reads the whole answer into `buffer`; returns where its body starts.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> usize {
    stream.write_all(request).await.expect("the server reads");
    buffer.clear();
    loop {
        assert!(stream.read_buf(buffer).await.expect("the server answers") > 0, "the server hung up");
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "not a 200");
        if buffer.len() >= end + 4 + content_length(&buffer[..end]) {
            return end + 4;
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).expect("headers are text");
    let line = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    line.and_then(|value| value.parse().ok()).expect("the answer has a length")
}

fn median(rounds: &[Round]) -> f64 {
    let mut rates: Vec<f64> = rounds.iter().map(|round| round.per_second).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn report(what: &str, rounds: &[Round]) {
    let mut latencies: Vec<Duration> = rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!("{what:<17} {:>9.0} /s   p50 {:>9.1?}   p99 {:>9.1?}", median(rounds), at(0.5), at(0.99));
}
