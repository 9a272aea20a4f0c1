//! Clients that take what they do not need: slow ones, large ones, ones that do not read; and what others notice of
//! them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytesize::ByteSize;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use profile_edge::http::server;
use profile_edge::http::server::limits::ConnectionLimits;
use profile_edge::http::server::service::HttpService;
use profile_edge::metrics::{Listener, Metrics};
use profile_edge::shutdown::Shutdown;
use reqwest::{Client, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::support::edge::Edge;
use crate::support::http2::Frame;
use crate::support::process::Ports;
use crate::support::tls::{self, certificates, client_trusting};
use crate::support::{PATIENCE, customer, eventually};

const PROFILE: &str = "/api/v1/profile?tenantId=10001&customerId=";

fn ended(reason: &str) -> String {
    format!("profile_edge_connections_ended_total{{listener=\"public\",reason=\"{reason}\"}}")
}

/// What slow client `n` sends before it falls silent.
fn first_words(n: usize) -> Vec<u8> {
    match n % 4 {
        0 => Vec::new(),
        1 => format!("GET {PROFILE}{} HTTP/1.1\r\nHost: x\r\nX-Sl", customer(1)).into_bytes(),
        // Taken in full, and its body never comes.
        2 => b"POST /webhook/customer-updated HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{".to_vec(),
        // Refused at once.
        _ => format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(40 << 10)).into_bytes(),
    }
}

/// Looks up until it is told to stop; returns how often.
async fn well_behaved(client: Client, url: String, stop: tokio_util::sync::CancellationToken) -> u32 {
    let mut served = 0;
    while !stop.is_cancelled() {
        let answer = timeout(PATIENCE, client.get(&url).header("X-API-Key", "demo-key").send()).await;
        let answer = answer.expect("in time").expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await.expect("a whole answer");
        served += 1;
    }
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_go_on_while_ten_thousand_slow_clients_hold_all_they_can_get() {
    const SLOW: usize = 10_000;
    const PLACES: usize = 2_000;
    let files = rlimit::increase_nofile_limit(2 * SLOW as u64).unwrap();
    assert!(files > SLOW as u64 + 1_000, "this needs more open files than the {files} that the system allows");
    let (directory, ports, operator) =
        (tempfile::tempdir().unwrap(), Ports::draw(), client_trusting(&[]).build().unwrap());
    // No deadline helps: it is room and permits that have to be made.
    let limits = [
        ("PROFILE_EDGE__HTTP__LIMITS__MAX_CONNECTIONS", "2000"),
        ("PROFILE_EDGE__HTTP__LIMITS__HEADER_TIMEOUT", "10m"),
        ("PROFILE_EDGE__HTTP__LIMITS__IDLE_TIMEOUT", "10m"),
        ("PROFILE_EDGE__HTTP__MAX_IN_FLIGHT", "200"),
    ];
    let mut process = ports.start(directory.path(), &limits);
    ports.ready(&operator).await;
    let (url, stop) = (format!("http://127.0.0.1:{}{PROFILE}{}", ports.public, customer(1)), <_>::default());
    let callers = [8, 0].map(|idle| {
        let client = client_trusting(&[]).pool_max_idle_per_host(idle).build().unwrap();
        tokio::spawn(well_behaved(client, url.clone(), tokio_util::sync::CancellationToken::clone(&stop)))
    });

    let mut slow = Vec::with_capacity(SLOW);
    for n in 0..SLOW {
        let mut stream = TcpStream::connect(("127.0.0.1", ports.public)).await.unwrap();
        // It may have been refused meanwhile.
        let _ = stream.write_all(&first_words(n)).await;
        slow.push(stream);
    }
    let evicted = ended("evicted");
    eventually("room is made", || async { (ports.metric(&operator, &evicted).await > 1_000.0).then_some(()) }).await;
    let open = ports.metric(&operator, "profile_edge_connections{listener=\"public\"}").await;
    assert!(open <= PLACES as f64 * 1.05, "{open} connections are open");
    // All of them are still there, and newcomers are served.
    for _ in 0..50 {
        assert_eq!(well_behaved_once(&url).await, StatusCode::OK);
    }
    stop.cancel();
    for caller in callers {
        let served = caller.await.expect("no lookup failed");
        assert!(served > 50, "only {served} lookups were served");
    }
    drop(slow);
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
}

async fn well_behaved_once(url: &str) -> StatusCode {
    let client = client_trusting(&[]).build().unwrap();
    client.get(url).header("X-API-Key", "demo-key").send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_trickles_a_silent_client_and_an_idle_one_are_ended() {
    let limits = "[http.limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1500ms\"\n";
    let edge = Edge::start_with(&format!("sandbox.latency = \"0ms\"\n{limits}")).await;
    let _silent = TcpStream::connect(edge.public).await.unwrap();
    edge.wait_for_metric(&ended("header_timeout"), 1.0).await;

    let mut trickling = TcpStream::connect(edge.public).await.unwrap();
    let started = Instant::now();
    while trickling.write_all(b"G").await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "it is never ended");
        sleep(Duration::from_millis(20)).await;
    }
    edge.wait_for_metric(&ended("header_timeout"), 2.0).await;

    let mut idle = TcpStream::connect(edge.public).await.unwrap();
    idle.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut answer)).await.expect("it is ended").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "and not before it was answered");
    edge.wait_for_metric(&ended("idle"), 1.0).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_its_answers_is_ended() {
    let limits = "[http.limits]\nidle_timeout = \"600ms\"\n";
    let edge = Edge::start_with(&format!("sandbox.latency = \"0ms\"\n{limits}")).await;
    let mut stream = TcpStream::connect(edge.public).await.unwrap();
    let requests = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
    let started = Instant::now();
    // Until nothing more is taken, and then until it is ended.
    while let Ok(Ok(())) | Err(_) = timeout(Duration::from_millis(200), stream.write_all(&requests)).await {
        assert!(started.elapsed() < PATIENCE, "it is never ended");
    }
    let (idle, stalled) = (edge.metric(&ended("idle")).await, edge.metric(&ended("stalled")).await);
    assert!(idle + stalled > 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_or_too_large_header_fields_are_refused() {
    let edge = Edge::start().await;
    let http1 = client_trusting(&[]).build().unwrap();
    let http2 = client_trusting(&[]).http2_prior_knowledge().build().unwrap();
    for client in [&http1, &http2] {
        let ask = |fields: usize, bytes: usize| {
            let request = client.get(edge.url("/openapi.json"));
            let request = (0..fields).fold(request, |request, n| request.header(format!("x-{n}"), "x"));
            request.header("x-large", "x".repeat(bytes)).send()
        };
        assert_eq!(ask(1, 8 << 10).await.unwrap().status(), StatusCode::OK);
        assert_eq!(ask(1, 20 << 10).await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let many = (0..80).fold(http1.get(edge.url("/openapi.json")), |request, n| request.header(format!("x-{n}"), "x"));
    assert_eq!(many.send().await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_of_requests_are_answered_with_enhance_your_calm() {
    let edge = Edge::start().await;
    resets_and_is_told_to_calm_down(TcpStream::connect(edge.public).await.unwrap()).await;
    assert!(edge.look_up(&customer(1)).await.status == 200);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_its_requests_over_tls_is_told_to_calm_down_too() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let settings = format!("sandbox.latency = \"0ms\"\n{}", tls::listener("http", directory.path()));
    let edge = Edge::start_with(&settings).await;
    resets_and_is_told_to_calm_down(tls::connect(directory.path(), edge.public, "h2").await).await;
    let client = client_trusting(&[directory.path()]).build().unwrap();
    let answer = client.get(format!("https://{}{PROFILE}{}", edge.public, customer(1)));
    assert_eq!(answer.header("X-API-Key", "demo-key").send().await.unwrap().status(), StatusCode::OK);
    edge.stop().await;
}

/// Makes and resets requests on a connection until the server goes away, and says for what.
async fn resets_and_is_told_to_calm_down(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    const GO_AWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 11;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(Frame::bytes(4, 0, 0, &[]));
    for n in 0..500 {
        // GET / of "x" with HPACK's static table, whole; then RST_STREAM with CANCEL.
        sent.extend(Frame::bytes(1, 5, 2 * n + 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']));
        sent.extend(Frame::bytes(3, 0, 2 * n + 1, &[0, 0, 0, 8]));
    }
    // It may be cut off before it has said everything.
    let _ = stream.write_all(&sent).await;
    loop {
        let mut head = [0; 9];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("it goes away").unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == GO_AWAY && payload[7] != 0 {
            assert_eq!(payload[7], ENHANCE_YOUR_CALM);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_browsers_and_caches_to_keep_out() {
    let edge = Edge::start().await;
    let asked = |path: &str| edge.client.get(edge.url(path)).header("X-API-Key", "demo-key").send();
    for (path, status) in [
        (format!("{PROFILE}{}", customer(1)), 200),
        ("/openapi.json".to_owned(), 200),
        ("/nothing".to_owned(), 404),
        ("/api/v1/profile".to_owned(), 400),
        ("/webhooks/10001".to_owned(), 405),
    ] {
        let answer = asked(&path).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(header("x-frame-options"), Some("DENY"), "{path}");
        assert_eq!(header("content-security-policy"), Some("default-src 'none'; frame-ancestors 'none'"), "{path}");
        assert!(header("cache-control").is_some_and(|value| value.contains("no-store")), "{path}");
        assert_eq!(header("strict-transport-security"), None, "{path} came over a plain link");
    }
    edge.stop().await;
}

/// Serves routes as the application serves its own.
async fn served(
    routes: Router,
    max_in_flight: usize,
) -> (SocketAddr, Arc<Metrics>, profile_edge::shutdown::Controller) {
    let (controller, shutdown) = Shutdown::new();
    let metrics = Metrics::new();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let second = Duration::from_secs(1);
    let options = server::ServerOptions {
        listener: Listener::Public,
        connections: 64,
        limits: ConnectionLimits {
            max_connections: 64,
            max_headers: 64,
            max_header_bytes: ByteSize::kib(16),
            max_streams: 8,
            handshake_timeout: 5 * second,
            header_timeout: 10 * second,
            idle_timeout: 60 * second,
        },
        tls: None,
        metrics: Arc::clone(&metrics),
    };
    let front = HttpService::new(routes, max_in_flight, false, Arc::clone(&metrics));
    shutdown.spawn(server::serve(socket, front, options, shutdown.clone()));
    (address, metrics, controller)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_500_without_detail_and_is_counted() {
    let routes = Router::new().route("/", get(async || -> &'static str { panic!("planted {}", "secret") }));
    let (address, metrics, controller) = served(routes, 10).await;
    let client = client_trusting(&[]).build().unwrap();
    for count in 1..=2 {
        let answer = client.get(format!("http://{address}/")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = answer.text().await.unwrap();
        assert!(body.contains("\"internal\"") && !body.contains("planted") && !body.contains(".rs"), "{body}");
        assert!(metrics.render().contains(&format!("profile_edge_panics_total {count}")));
    }
    assert!(controller.drain(PATIENCE).await);
}

/// Starts an upload to a tenant's webhook, and sends this many bytes of it.
async fn unfinished(edge: &Edge, path: &str, headers: &str, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(edge.public).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}Content-Length: 1048576\r\n\r\n"
    );
    // It may be refused before all is sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&b" ".repeat(sent)).await;
    stream
}

/// Reads the status of an answer.
async fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_with_a_wrong_credential_is_refused_before_it_arrives() {
    let edge = Edge::start().await;
    for headers in ["", "X-API-Key: wrong\r\n", "Authorization: Bearer wrong\r\n", "X-Hub-Signature-256: sha256=00\r\n"]
    {
        let mut stream = unfinished(&edge, "/webhooks/10001", headers, 16).await;
        assert_eq!(status(&mut stream).await, "401", "{headers}");
    }
    let mut stream = unfinished(&edge, "/webhooks/nobody", "", 16).await;
    assert_eq!(status(&mut stream).await, "404");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_prove_nothing_leave_memory_to_the_others() {
    let settings = "sandbox.latency = \"0ms\"\nhttp.body_budget = \"4MiB\"\n";
    let edge = Edge::start_with(settings).await;
    // A signature can be judged only with the whole body.
    let signature = format!("X-Hub-Signature-256: sha256={}\r\n", "0".repeat(64));
    let mut held = Vec::new();
    for n in 0..12 {
        let path = if n % 2 == 0 { "/webhooks/10001" } else { "/webhook/customer-updated" };
        held.push(unfinished(&edge, path, &signature, 700 << 10).await);
    }
    // The quarter of the budget is enough for one of them.
    let mut answers: FuturesUnordered<_> = held.iter_mut().map(status).collect();
    for _ in 1..12 {
        assert_eq!(answers.next().await.expect("an upload"), "503");
    }
    drop(answers);
    // A sender with a valid credential, and a caller, have the rest.
    let large =
        format!("{{\"tenantId\":\"10001\",\"customerId\":\"{}\",\"x\":\"{}\"}}", customer(1), "x".repeat(900 << 10));
    let posted = edge.client.post(edge.url("/webhooks/10001")).header("X-API-Key", "demo-secret");
    let posted = posted.header("Content-Type", "application/json").body(large.clone()).send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::ACCEPTED);
    let asked = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key").body(large);
    assert_eq!(asked.send().await.unwrap().status(), StatusCode::OK);
    // The memory is free again when the uploads are gone.
    drop(held);
    let flat = format!("{{\"tenantId\":\"10001\",\"customerId\":\"{}\"}}", customer(1));
    eventually("an upload fits again", || async {
        let posted = edge.client.post(edge.url("/webhook/customer-updated")).header("X-API-Key", "demo-secret");
        let posted = posted.header("Content-Type", "application/json").body(flat.clone() + &" ".repeat(900 << 10));
        (posted.send().await.unwrap().status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_take_no_more_than_half_of_the_permits() {
    let routes = Router::new().route("/", get(async || "here").post(async |body: axum::body::Bytes| body));
    let (address, _metrics, controller) = served(routes, 8).await;
    let client = client_trusting(&[]).build().unwrap();
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").await.unwrap();
        slow.push(stream);
    }
    let url = format!("http://{address}/");
    let shed = async || {
        let status = client.post(&url).body("hello").send().await.unwrap().status();
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    };
    eventually("the permits for bodies are taken", shed).await;
    for _ in 0..20 {
        assert_eq!(client.get(&url).send().await.unwrap().status(), StatusCode::OK);
    }
    drop(slow);
    eventually("they are given back", async || shed().await.is_none().then_some(())).await;
    assert!(controller.drain(PATIENCE).await);
}
