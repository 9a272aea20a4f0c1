//! The byte stream of a connection, with its activity recorded.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection_state::ConnectionState;

/// The first bytes of an HTTP/2 client (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much is read before the version is known: the whole head of most requests. The library would read only the preface's
/// length, and would then need twice the buffer for the rest of the head, for as long as the connection lives.
const FIRST_READ: usize = 1024;

/// A stream that records in the connection's state when bytes are read or written.
#[derive(Debug)]
pub(super) struct MonitoredStream<S> {
    stream: S,
    state: Arc<ConnectionState>,
    /// What was read to learn the version.
    first: Bytes,
}

impl<S> MonitoredStream<S> {
    pub(super) const fn new(stream: S, state: Arc<ConnectionState>) -> Self {
        Self { stream, state, first: Bytes::new() }
    }

    /// Waits for the first bytes, and returns whether they are those of HTTP/2. The connection is read from its start afterwards.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub(super) async fn starts_http2(&mut self) -> io::Result<bool>
    where
        S: AsyncRead + Unpin,
    {
        let mut first = BytesMut::with_capacity(FIRST_READ);
        let is_http2 = loop {
            let is_at_end = self.read_buf(&mut first).await? == 0;
            let known = first.len().min(PREFACE.len());
            if is_at_end || first[..known] != PREFACE[..known] {
                break false;
            }
            if known == PREFACE.len() {
                break true;
            }
        };
        self.first = first.freeze();
        Ok(is_http2)
    }

    fn wrote(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(outcome, Poll::Ready(Ok(1..))) {
            self.state.wrote();
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(into.remaining());
            into.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        if into.filled().len() > before {
            self.state.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends these pieces one after the other; returns whether they start HTTP/2, and what is read afterwards.
    async fn start(pieces: &[&[u8]]) -> (bool, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(8);
        let mut stream = MonitoredStream::new(server, ConnectionState::new());
        let send = async move {
            for piece in pieces {
                tokio::io::AsyncWriteExt::write_all(&mut client, piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let is_http2 = stream.starts_http2().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            (is_http2, all)
        };
        tokio::join!(send, read).1
    }

    #[tokio::test]
    async fn the_version_is_known_however_the_first_bytes_arrive_and_none_is_lost() {
        for (pieces, is_http2) in [
            (&[PREFACE, b"settings"][..], true),
            (&[b"PRI * HT", b"TP/2.0\r\n\r\nSM", b"\r\n\r\n"], true),
            (&[b"PRI * HTTP/1.1\r\n\r\n"], false),
            (&[b"P", b"OST / HTTP/1.1\r\n\r\n"], false),
            (&[b"PRI"], false),
            (&[], false),
        ] {
            assert_eq!(start(pieces).await, (is_http2, pieces.concat()), "{pieces:?}");
        }
    }
}
