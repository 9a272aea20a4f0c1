//! A minimal HTTP/1.1 client on one kept connection, so that the load generator costs little processor time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest time for an answer; far above every deadline of the service.
const PATIENCE: Duration = Duration::from_secs(15);

/// An answer.
#[derive(Debug)]
pub(crate) struct OracleReply {
    pub(crate) status: u16,
    /// The status line and the headers; the service sends names in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The client of one server.
#[derive(Debug)]
pub(crate) struct OracleClient {
    pub(crate) address: SocketAddr,
    /// The header lines of every request.
    headers: String,
    connection: Option<BufReader<TcpStream>>,
}

impl OracleClient {
    pub(crate) fn new(address: SocketAddr, headers: &str) -> Self {
        Self { address, headers: headers.to_owned(), connection: None }
    }

    /// Sends a request and reads its answer. An error closes the connection; the next request opens another.
    pub(crate) async fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<OracleReply> {
        let connection = self.connection.take();
        let mut connection = match connection {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let (headers, length) = (&self.headers, body.len());
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: edge\r\n{headers}content-length: {length}\r\n\r\n{body}");
        let exchanged = timeout(PATIENCE, exchange(&mut connection, request.as_bytes())).await;
        let reply = exchanged.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        self.connection = Some(connection);
        Ok(reply)
    }
}

impl OracleReply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

async fn exchange(connection: &mut BufReader<TcpStream>, request: &[u8]) -> io::Result<OracleReply> {
    connection.write_all(request).await?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(unreadable)?;
    let mut reply = OracleReply { status, head, body: String::new() };
    let length = reply.header("content-length").map_or(Some(0), |length| length.parse().ok()).ok_or_else(unreadable)?;
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    reply.body = String::from_utf8(body).map_err(|_| unreadable())?;
    Ok(reply)
}
