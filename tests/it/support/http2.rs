//! A client of HTTP/2 that decides itself what it reads: frames over TCP (RFC 9113).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::PATIENCE;

/// The types of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

/// The flags of HEADERS and DATA.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A connection.
pub(crate) struct Http2 {
    connection: TcpStream,
    received: Vec<u8>,
    next: u32,
}

impl Frame {
    /// Returns the bytes of a frame.
    pub(crate) fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    pub(crate) fn ends_the_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

impl Http2 {
    /// Connects, as a client that takes no bytes of an answer before it says so.
    pub(crate) async fn connect(server: SocketAddr) -> Self {
        let mut connection = TcpStream::connect(server).await.unwrap();
        let no_window = [&[0, 4][..], &0_u32.to_be_bytes()].concat();
        let sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Frame::bytes(SETTINGS, 0, 0, &no_window)].concat();
        connection.write_all(&sent).await.unwrap();
        Self { connection, received: Vec::new(), next: 1 }
    }

    /// Sends a request with this caller's key, and a body if it is not empty; returns its stream.
    pub(crate) async fn ask(&mut self, path: &str, key: &str, body: &str) -> u32 {
        let stream = self.next;
        self.next += 2;
        // Indexed method and scheme; path, authority and key as literals without indexing (RFC 7541 section 6.2.2).
        let mut head = vec![if body.is_empty() { 0x82 } else { 0x83 }, 0x86, 0x04];
        literal(&mut head, path);
        head.push(0x01);
        literal(&mut head, "localhost");
        head.push(0x00);
        literal(&mut head, "x-api-key");
        literal(&mut head, key);
        let end = if body.is_empty() { END_STREAM } else { 0 };
        let mut sent = Frame::bytes(HEADERS, END_HEADERS | end, stream, &head);
        if !body.is_empty() {
            sent.extend(Frame::bytes(DATA, END_STREAM, stream, body.as_bytes()));
        }
        self.connection.write_all(&sent).await.unwrap();
        stream
    }

    /// Takes so many more bytes of an answer.
    pub(crate) async fn take(&mut self, stream: u32, bytes: u32) {
        let sent = Frame::bytes(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
        self.connection.write_all(&sent).await.unwrap();
    }

    /// Returns the first frame that is wanted, and pings the server meanwhile, so that the connection is never idle; `None` if
    /// the server closes it.
    pub(crate) async fn find(&mut self, mut is_wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        let began = Instant::now();
        loop {
            while let Some(frame) = self.parse() {
                if is_wanted(&frame) {
                    return Some(frame);
                }
            }
            assert!(began.elapsed() < PATIENCE, "the frame never comes");
            match timeout(Duration::from_millis(100), self.connection.read_buf(&mut self.received)).await {
                Ok(Ok(0) | Err(_)) => return None,
                Ok(Ok(_)) => {}
                Err(_elapsed) => {
                    let _ = self.connection.write_all(&Frame::bytes(PING, 0, 0, &[0; 8])).await;
                }
            }
        }
    }

    /// Waits until a stream is answered.
    pub(crate) async fn answered(&mut self, stream: u32) {
        self.find(|frame| frame.kind == HEADERS && frame.stream == stream).await.expect("an answer");
    }

    fn parse(&mut self) -> Option<Frame> {
        let head = self.received.first_chunk::<9>()?;
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if self.received.len() < 9 + length {
            return None;
        }
        let payload = self.received[9..9 + length].to_vec();
        self.received.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }
}

/// Writes a text without compression, of less than 127 bytes.
fn literal(head: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 127);
    head.push(u8::try_from(text.len()).unwrap());
    head.extend(text.as_bytes());
}
