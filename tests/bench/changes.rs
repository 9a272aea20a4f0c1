//! The change feed: a thousand clients that hear five hundred changes a second while a consumer is killed, and the memory of
//! thousands of open streams.
//!
//! Two services share Redis and RabbitMQ and both consume; the clients listen to one, and the other is killed halfway. The time to
//! a client begins with the answer 202 to the event; events that were heard before it count as zero.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use profile_edge::clock::SystemClock;
use profile_edge::domain::{KeyHasher, Secret};
use profile_edge::http::auth::jwt::TokenSigner;
use profile_edge::http::auth::profile_handles::ProfileHandles;
use profile_edge::http::server::limits::connections_that_fit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::figures::{cpu, report_figure, resident};
use crate::load::{self, Connection};
use crate::pipeline::Requests;
use crate::service::{CUSTOMERS, Extras, PLAIN, Service};
use crate::support::customer;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

const CLIENTS: usize = 1_000;
const RATE: usize = 500;
const EVENTS: usize = 5_000;
const SENDERS: usize = 16;

/// How long a client waits for its next change before it counts what is missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// At most half of the connections may be streams, and half of these of one caller; a usual limit of open files is 20,000.
const STREAMS: usize = 4_700;
const CONNECTIONS: usize = 4 * STREAMS + 100;
/// The most that a stream may take.
const STREAM_KIB: f64 = 20.0;

const SECRET: [u8; 32] = [7; 32];
const REQUEST: &[u8] = b"GET /api/v1/changes?tenantId=10001 HTTP/1.1\r\nHost: localhost\r\nX-API-Key: demo-key\r\n\r\n";

/// What a client heard.
struct Heard {
    /// How often each customer changed.
    counts: Vec<usize>,
    resets: usize,
    latencies: Vec<Duration>,
}

/// When each event was answered.
type Answered = Rc<std::cell::RefCell<Vec<Option<Instant>>>>;

pub(crate) async fn measure() {
    // Both ends of a connection in this process and in the service need a file.
    let fits = connections_that_fit(CONNECTIONS);
    LocalSet::new().run_until(many_changes()).await;
    if fits < CONNECTIONS {
        println!(
            "  the limit of open files allows {fits} connections, so the memory of {STREAMS} streams is not measured"
        );
        return;
    }
    many_streams().await;
}

async fn many_changes() {
    let (redis, rabbit) = (RedisServer::start(&[]).await, RabbitServer::start("").await);
    let broker = rabbit.url(&rabbit.vhost().await);
    let http = format!("token_secret = \"{}\"\n", STANDARD.encode(SECRET));
    let extras = Extras { http: &http, ..PLAIN };
    let service = Service::start_with(&redis.url(), Some(&broker), &extras).await;
    let other = Service::start_with(&redis.url(), Some(&broker), &extras).await;
    let (handles, answered) = (Rc::new(handles()), Answered::default());
    answered.borrow_mut().resize(EVENTS, None);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(listen(&service, Rc::clone(&handles), Rc::clone(&answered)).await);
    }
    let (used, began) = (cpu(service.pid()), Instant::now());
    let senders = send(&service, began, &answered);
    sleep_until(began + Duration::from_secs_f64(EVENTS as f64 / RATE as f64 / 2.0)).await;
    // Killed, not stopped.
    drop(other);
    for sender in senders {
        sender.await.expect("the events are accepted");
    }
    let took = began.elapsed();
    let (mut latencies, mut wrong, mut resets) = (Vec::new(), 0, 0);
    for client in clients {
        let heard = client.await.expect("a client reads to its end");
        resets += heard.resets;
        let each = EVENTS / CUSTOMERS as usize;
        wrong += usize::from(heard.resets == 0 && heard.counts.iter().any(|count| *count != each));
        latencies.extend(heard.latencies);
    }
    let used = (cpu(service.pid()) - used).as_secs_f64() / took.as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "changes: {CLIENTS} clients, {EVENTS} events at {:.0} /s, a consumer killed; cpu {used:.2}, resets {resets}, p99 {:.1?}",
        EVENTS as f64 / took.as_secs_f64(),
        at(0.99)
    );
    report_figure("clients that missed a change, or heard one twice", &wrong.to_string(), "0", wrong == 0);
    report_figure(
        "202 to heard, median",
        &format!("{:.1?}", at(0.5)),
        "<= 10 ms",
        at(0.5) <= Duration::from_millis(10),
    );
    service.stop().await;
}

/// Returns the customer of each handle of the caller.
fn handles() -> HashMap<String, usize> {
    let secret = Secret::new(STANDARD.encode(SECRET));
    let signer = TokenSigner::new(Some(&secret), Duration::from_secs(60), SystemClock::shared()).expect("a usable key");
    let (handles, tenant) =
        (ProfileHandles::new(&signer.derive_key("profile handles")), "10001".parse().expect("a tenant"));
    let of = |n: u32| {
        let identity = KeyHasher::Sha256.identify(&tenant, &customer(n + 1).parse().expect("an id"));
        (handles.of("bench", &tenant, identity.digest()), n as usize)
    };
    (0..CUSTOMERS).map(of).collect()
}

/// Posts the events at the rate.
fn send(service: &Service, began: Instant, answered: &Answered) -> Vec<JoinHandle<()>> {
    let mut requests: Vec<_> = Requests::default().write(EVENTS).into_iter().enumerate().collect();
    let mut of_senders: Vec<Vec<(usize, Vec<u8>)>> = (0..SENDERS).map(|_| Vec::new()).collect();
    for (n, request) in requests.drain(..) {
        of_senders[n % SENDERS].push((n, request));
    }
    let post = |requests: Vec<(usize, Vec<u8>)>| {
        let (address, answered) = (service.public, Rc::clone(answered));
        spawn_local(async move {
            let mut connection = Connection::open(address).await;
            for (n, request) in requests {
                sleep_until(began + Duration::from_secs_f64(n as f64 / RATE as f64)).await;
                connection.exchange(&request).await;
                answered.borrow_mut()[n] = Some(Instant::now());
            }
        })
    };
    of_senders.into_iter().map(post).collect()
}

/// Opens a stream, and counts what it hears until it has heard all, or nothing for a while.
async fn listen(service: &Service, handles: Rc<HashMap<String, usize>>, answered: Answered) -> JoinHandle<Heard> {
    let mut stream = open(service).await;
    spawn_local(async move {
        let mut heard = Heard { counts: vec![0; handles.len()], resets: 0, latencies: Vec::with_capacity(EVENTS) };
        let mut unread = String::new();
        while heard.counts.iter().sum::<usize>() < EVENTS && heard.resets == 0 {
            let mut bytes = [0; 32 * 1024];
            let Ok(Ok(read @ 1..)) = timeout(PATIENCE, stream.read(&mut bytes)).await else { break };
            unread.push_str(std::str::from_utf8(&bytes[..read]).expect("events are text"));
            let (now, whole) = (Instant::now(), unread.rfind("\n\n").map_or(0, |end| end + 2));
            for event in unread[..whole].split("\n\n") {
                heard.resets += usize::from(event.contains("event: reset"));
                let handle = event.split_once("\"profileKey\":\"").and_then(|(_, rest)| rest.get(..22));
                let Some(customer) = handle.and_then(|handle| handles.get(handle)) else { continue };
                let event = (customer + handles.len() - 1) % handles.len() + heard.counts[*customer] * handles.len();
                heard.counts[*customer] += 1;
                let answered = answered.borrow().get(event).copied().flatten();
                heard
                    .latencies
                    .push(answered.map_or(Duration::ZERO, |answered| now.saturating_duration_since(answered)));
            }
            unread.drain(..whole);
        }
        heard
    })
}

/// Opens a stream, and reads its first event.
async fn open(service: &Service) -> TcpStream {
    loop {
        let mut stream = TcpStream::connect(service.public).await.expect("the service accepts");
        stream.write_all(REQUEST).await.expect("the service reads");
        let (mut text, mut bytes) = (String::new(), [0; 2048]);
        while !text.contains("id: ") && !text.contains(" 503 ") {
            let read = stream.read(&mut bytes).await.expect("the service answers");
            assert!(read > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        if text.contains("id: ") {
            return stream;
        }
        // The channel of Redis is not subscribed yet.
        sleep(Duration::from_millis(20)).await;
    }
}

async fn many_streams() {
    let redis = RedisServer::start(&[]).await;
    let http = format!("limits.max_connections = {CONNECTIONS}\n");
    let service = Service::start_with(&redis.url(), None, &Extras { http: &http, ..PLAIN }).await;
    let before = resident(service.pid());
    let mut streams = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        streams.push(open(&service).await);
    }
    let open = load::fetch(service.admin, "/metrics").await;
    assert!(String::from_utf8_lossy(&open).contains(&format!("profile_edge_change_streams {STREAMS}")), "all are open");
    let used = (resident(service.pid()) - before) * 1024.0 / STREAMS as f64;
    println!("memory of {STREAMS} streams");
    report_figure("of each", &format!("{used:.1} KiB"), &format!("<= {STREAM_KIB} KiB"), used <= STREAM_KIB);
    drop(streams);
    service.stop().await;
}
