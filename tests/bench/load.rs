//! Load: keep-alive HTTP/1.1 over plain sockets, with prepared requests.
//!
//! A round must measure the server, so a request costs the client only one write, and an answer only its reads and a
//! search for the end of its head.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

/// One keep-alive connection.
pub(crate) struct Connection<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
}

/// The measurements of one round.
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) latencies: Vec<Duration>,
}

/// When a connection sends its next request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As soon as the previous one is answered.
    Closed,
    /// At this interval, or immediately if that time has passed.
    Open(Duration),
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server accepts");
        stream.set_nodelay(true).expect("the option can be set");
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    /// Sends a request, reads the whole answer, and returns its body.
    ///
    /// # Panics
    ///
    /// The answer is not a success.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> &[u8] {
        let (status, body) = self.ask(request).await;
        assert!((200..300).contains(&status), "{status} {}", String::from_utf8_lossy(body));
        body
    }

    /// Sends a request, reads the whole answer, and returns its status and body.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> (u16, &[u8]) {
        self.stream.write_all(request).await.expect("the server reads");
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
            let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = &self.buffer[..end];
            if self.buffer.len() >= end + 4 + content_length(head) {
                let status = std::str::from_utf8(&head[9..12]).ok().and_then(|status| status.parse().ok());
                return (status.expect("a status is a number"), &self.buffer[end + 4..]);
            }
        }
    }
}

/// Builds a `GET` request with the key of the demo caller.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: demo-key\r\n\r\n").into_bytes()
}

/// Sends one `GET` request on a new connection, and returns the body.
pub(crate) async fn fetch(addr: SocketAddr, path: &str) -> Vec<u8> {
    Connection::open(addr).await.exchange(&get(path)).await.to_vec()
}

/// Repeats the requests for `time`, on this number of connections.
pub(crate) async fn for_a_while(
    addr: SocketAddr,
    connections: usize,
    requests: &Arc<Vec<Vec<u8>>>,
    time: Duration,
) -> Round {
    for_a_while_over(join_all((0..connections).map(|_| Connection::open(addr))).await, requests, time).await
}

/// Like [`for_a_while`], on open connections.
pub(crate) async fn for_a_while_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    connections: Vec<Connection<S>>,
    requests: &Arc<Vec<Vec<u8>>>,
    time: Duration,
) -> Round {
    let (until, count) = (Instant::now() + time, connections.len());
    let ask = |(worker, mut connection): (usize, Connection<S>)| {
        let requests = Arc::clone(requests);
        tokio::spawn(async move {
            // Each connection starts at a different request, so that they do not run in step.
            let from = worker * requests.len() / count;
            let mut latencies = Vec::with_capacity(100_000);
            for request in requests.iter().cycle().skip(from) {
                let started = Instant::now();
                if started >= until {
                    break;
                }
                connection.exchange(request).await;
                latencies.push(started.elapsed());
            }
            latencies
        })
    };
    let mut latencies = Vec::new();
    for worker in connections.into_iter().enumerate().map(ask).collect::<Vec<_>>() {
        latencies.extend(worker.await.expect("a worker ends"));
    }
    Round { per_second: latencies.len() as f64 / time.as_secs_f64(), latencies }
}

/// Sends each request once, distributed over this number of connections.
pub(crate) async fn each_once(addr: SocketAddr, connections: usize, requests: Vec<Vec<u8>>, pace: Pace) -> Round {
    let started = Instant::now();
    let requests = Arc::new(requests);
    let workers: Vec<_> = (0..connections)
        .map(|worker| {
            let requests = Arc::clone(&requests);
            tokio::spawn(async move {
                let mut connection = Connection::open(addr).await;
                let mut latencies = Vec::with_capacity(requests.len() / connections + 1);
                for (turn, request) in requests.iter().skip(worker).step_by(connections).enumerate() {
                    if let Pace::Open(every) = pace {
                        let shift = every.mul_f64(worker as f64 / connections as f64);
                        sleep_until(started + shift + every.mul_f64(turn as f64)).await;
                    }
                    let sent = Instant::now();
                    connection.exchange(request).await;
                    latencies.push(sent.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for worker in workers {
        latencies.extend(worker.await.expect("a worker ends"));
    }
    Round { per_second: latencies.len() as f64 / started.elapsed().as_secs_f64(), latencies }
}

/// Returns the median.
pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Returns the mean, p50 and p99 of all latencies of the rounds.
pub(crate) fn latencies(rounds: &[Round]) -> [Duration; 3] {
    let mut all: Vec<Duration> = rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    let mean = all.iter().sum::<Duration>().div_f64(all.len() as f64);
    [mean, at(0.5), at(0.99)]
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).expect("headers are text");
    let line = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    line.and_then(|value| value.parse().ok()).expect("the answer has a length")
}
