//! What the last reads of a round do with failures.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers one connection: with 503 and these codes first, then with 404.
async fn serve(codes: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, mut codes) = (Vec::new(), codes.iter());
        while let Ok(byte) = stream.read_u8().await {
            request.push(byte);
            if request.ends_with(b"\r\n\r\n") {
                let failed = codes.next().map(|code| (503, format!("{{\"code\":\"{code}\"}}")));
                let (status, body) = failed.unwrap_or((404, String::new()));
                let reply = format!("HTTP/1.1 {status} \r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    });
    address
}

/// Reads one customer through two lookups; returns how many answers there were, and how many failures.
async fn read_one(first: &'static [&'static str]) -> (usize, usize) {
    let stage = RoundState::new(&Arc::new(Recorder::new()), 1, 1);
    let answers = read_all(&stage, [serve(first).await, serve(&[]).await]).await;
    (answers.len(), stage.unanswered.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_last_read_that_takes_too_long_is_repeated() {
    assert_eq!(read_one(&["deadline", "upstream_timeout"]).await, (2, 2));
}

#[tokio::test]
#[should_panic(expected = "a lookup is not answered: /api/v1/profile?tenantId=10001&customerId=")]
async fn another_failure_of_a_last_read_is_a_fault() {
    read_one(&["draining"]).await;
}
