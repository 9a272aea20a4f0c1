//! A TCP proxy in front of a server, to break connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::watch;

/// How the proxy handles data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Forwards it.
    Whole,
    /// Stops forwarding in both directions, without an error.
    Stalled,
    /// Forwards it, but no more than [`THROTTLED`] bytes in each [`THROTTLE`] and direction.
    Throttled,
    /// Closes every connection, old and new.
    Broken,
}

/// See [`Link::Throttled`].
const THROTTLED: usize = 4 << 10;
/// See [`Link::Throttled`].
const THROTTLE: Duration = Duration::from_millis(20);

/// A proxy in front of one server. It stops when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    link: Arc<watch::Sender<Link>>,
    port: Arc<AtomicU16>,
    accepted: Arc<AtomicUsize>,
    /// The connection that is closed.
    closed: Arc<watch::Sender<Option<usize>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        Self::at("127.0.0.1:0", port).await
    }

    /// Starts a proxy at an address, in front of a port of this machine.
    pub(crate) async fn at(address: impl ToSocketAddrs, port: u16) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let link = Arc::new(watch::Sender::new(Link::Whole));
        let port = Arc::new(AtomicU16::new(port));
        let (accepted, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(watch::Sender::new(None)));
        let (state, target) = (Arc::clone(&link), Arc::clone(&port));
        let (count, closing) = (Arc::clone(&accepted), Arc::clone(&closed));
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (number, mut closing) = (count.fetch_add(1, Ordering::Relaxed), closing.subscribe());
                let joined = join(near, target.load(Ordering::Relaxed), state.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        () = joined => {}
                        _ = closing.wait_for(|closed| *closed == Some(number)) => {}
                    }
                });
            }
        });
        Self { address, link, port, accepted, closed, accepting }
    }

    /// Connects new clients to another port, as a name that moves does; connections that are open stay where they are.
    pub(crate) fn move_to(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// Returns how many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes the connection that was accepted after this many others.
    pub(crate) fn close(&self, number: usize) {
        self.closed.send_replace(Some(number));
    }

    /// Accepts no more connections; those that exist continue. Another proxy may take its address then: for new
    /// connections the name has moved.
    pub(crate) async fn retire(&mut self) {
        self.accepting.abort();
        // It ends because it was aborted.
        let _ = (&mut self.accepting).await;
    }

    /// Changes how the proxy handles data.
    pub(crate) fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.link.send_replace(Link::Broken);
    }
}

async fn join(near: TcpStream, port: u16, link: watch::Receiver<Link>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let mut broken = link.clone();
    tokio::select! {
        () = pass(near_read, far_write, link.clone()) => {}
        () = pass(far_read, near_write, link) => {}
        _ = broken.wait_for(|link| *link == Link::Broken) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let throttled = *link.borrow() == Link::Throttled;
        let most = if throttled { THROTTLED } else { buffer.len() };
        let Ok(count @ 1..) = from.read(&mut buffer[..most]).await else { return };
        let _ = link.wait_for(|link| *link != Link::Stalled).await;
        if throttled {
            tokio::time::sleep(THROTTLE).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
