//! The nodes of the broker, and how to connect to one of them.
//!
//! The nodes are tried in turn, starting after the last one that was tried, each for at most [`CONNECT_TIMEOUT`]: name,
//! TCP, TLS and AMQP handshakes together. The addresses of a name share half of that.
//! The TLS files are read again for each attempt. A failed attempt shuts its socket down, so that the library's thread ends.
//!
//! The library does not expose the broker's version, and the delivery limit depends on it (see [`super::topology`]). So
//! before each connection a short-lived one reads the version from the first frame.
//!
//! No error contains more of a URL than host and port, since a URL contains a password.

use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use url::{Host, Url};
use uuid::Uuid;

use crate::addresses::first_to_answer;
use crate::max_age::MaxAge;
use crate::queue::Error;
use crate::supervise::blocking;
use crate::tls::{TlsFiles, with_advice};

use super::config::Config;

/// The longest that connecting to one node may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of it for TCP connections to all addresses of a name.
const TCP_TIMEOUT: Duration = Duration::from_millis(2_500);

/// The heartbeat interval in seconds. A side that is silent for two intervals is considered dead.
const HEARTBEAT: u16 = 10;

/// The first bytes from a client (AMQP 0-9-1, 4.2.2).
const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\0\0\x09\x01";

/// The field of the broker's version in its `connection.start`: its name and the type of its value.
const VERSION_FIELD: &[u8] = b"\x07versionS";

/// How many bytes of a `connection.start` are read at most.
const MAX_START: usize = 64 * 1024;

/// The longest time for a clean close of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The nodes of a broker, and how to connect to them.
pub(super) struct Broker {
    nodes: Vec<AMQPUri>,
    /// The files, if a node needs TLS.
    tls: Option<TlsFiles>,
    next: AtomicUsize,
    /// When a connection is replaced.
    pub(super) max_age: MaxAge,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(address)).finish()
    }
}

/// An open connection. Its socket is shut down when this is dropped.
#[derive(Debug)]
pub(super) struct BrokerConnection {
    /// The connection.
    pub(super) connection: Connection,
    /// Distinguishes this connection from all others, of any process.
    pub(super) id: String,
    /// Host and port, for the log.
    pub(super) address: String,
    /// The broker's major version, if it is known.
    pub(super) major: Option<u32>,
    socket: SharedSocket,
}

/// A second handle of a connection's socket, to end the connection on demand.
#[derive(Clone, Debug, Default)]
struct SharedSocket(Arc<Mutex<Option<TcpStream>>>);

impl SharedSocket {
    fn set(&self, stream: &impl AsFd) -> io::Result<()> {
        let handle = stream.as_fd().try_clone_to_owned()?;
        *self.0.lock() = Some(TcpStream::from(handle));
        Ok(())
    }

    fn shut(&self) {
        if let Some(stream) = self.0.lock().take() {
            // An error means that the socket is not connected any more.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Shuts a socket down when it is dropped, unless it is disarmed.
struct SocketGuard(Option<SharedSocket>);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if let Some(socket) = self.0.take() {
            socket.shut();
        }
    }
}

impl BrokerConnection {
    /// Closes the connection, within a bounded time.
    pub(super) async fn close(&self) {
        // If the broker does not answer, the socket is shut down with this value.
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "closing".into())).await;
    }
}

impl Drop for BrokerConnection {
    fn drop(&mut self) {
        self.socket.shut();
    }
}

impl Broker {
    /// Parses the URLs and checks the TLS files.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`]: a URL or a file is not usable.
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let nodes: Vec<AMQPUri> = config.node_urls().iter().map(|url| node(url.expose())).collect::<Result<_, _>>()?;
        let needs_tls = nodes.iter().any(|node| node.scheme == AMQPScheme::AMQPS);
        let tls = needs_tls.then(|| config.tls.clone());
        tls.as_ref().map(connector).transpose()?;
        let max_age = MaxAge::new(config.max_connection_age, nodes.iter().map(|node| node.authority.host.as_str()));
        Ok(Self { nodes, tls, next: AtomicUsize::new(0), max_age })
    }

    /// Connects to the first node that accepts.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], with the failure of each node.
    pub(super) async fn connect(&self) -> Result<BrokerConnection, Error> {
        let mut failures = Vec::new();
        for _ in 0..self.nodes.len() {
            let node = &self.nodes[self.next.fetch_add(1, Ordering::Relaxed) % self.nodes.len()];
            match self.connect_to(node).await {
                Ok(connected) => return Ok(connected),
                Err(reason) => failures.push(format!("{}: {reason}", address(node))),
            }
        }
        Err(Error::Unavailable { reason: failures.join("; ") })
    }

    async fn connect_to(&self, node: &AMQPUri) -> Result<BrokerConnection, String> {
        let late = |_elapsed| format!("no connection within {CONNECT_TIMEOUT:?}");
        let tls = match (&node.scheme, self.tls.clone()) {
            (AMQPScheme::AMQPS, Some(files)) => {
                Some(blocking(move || connector(&files)).await.map_err(|error| error.to_string())?)
            }
            (AMQPScheme::AMQPS | AMQPScheme::AMQP, _) => None,
        };
        let major = timeout(CONNECT_TIMEOUT, read_version(node, tls.as_ref()))
            .await
            .map_err(late)?
            .map_err(|error| with_advice(error.to_string()))?;
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        let socket = SharedSocket::default();
        let mut guard = SocketGuard(Some(socket.clone()));
        let (handle, reactor) = (socket.clone(), runtime.clone());
        let connect = async move |uri: AMQPUri, _| {
            let (host, port) = (&uri.authority.host, uri.authority.port);
            let connect = |address| AsyncTcpStream::connect(&reactor, address);
            let stream = first_to_answer(host, port, TCP_TIMEOUT, connect).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                handle.set(plain.get_ref())?;
            }
            match &tls {
                Some(connector) => Ok(stream.into_rustls(connector, host).await?),
                None => Ok(stream),
            }
        };
        let properties = ConnectionProperties::default().with_connection_name("profile-edge".into());
        let connecting = Connection::connector(node.clone(), runtime, connect, properties);
        let connecting = timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?;
        let connection = connecting.map_err(|error| with_advice(error.to_string()))?;
        guard.0 = None;
        let (id, address) = (Uuid::new_v4().simple().to_string(), address(node));
        Ok(BrokerConnection { connection, id, address, major, socket })
    }
}

/// Reads the major version of a node, on a connection that ends with the answer.
async fn read_version(node: &AMQPUri, tls: Option<&RustlsConnector>) -> io::Result<Option<u32>> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let (host, port) = (&node.authority.host, node.authority.port);
    let connect = |address| AsyncTcpStream::connect(&runtime, address);
    let mut stream = first_to_answer(host, port, TCP_TIMEOUT, connect).await?;
    if let Some(connector) = tls {
        stream = stream.into_rustls(connector, host).await?;
    }
    stream.write_all(&PROTOCOL_HEADER).await?;
    // The head of a frame: type, channel, length of the payload.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut start = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(MAX_START)];
    stream.read_exact(&mut start).await?;
    Ok(major(&start))
}

/// Finds the major version in a `connection.start`.
fn major(start: &[u8]) -> Option<u32> {
    let at = start.windows(VERSION_FIELD.len()).position(|window| window == VERSION_FIELD)?;
    let value = start.get(at + VERSION_FIELD.len() + 4..)?;
    let digits = value.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
}

fn address(node: &AMQPUri) -> String {
    format!("{}:{}", node.authority.host, node.authority.port)
}

/// Parses the URL of a node. The library reads an IPv6 address as `localhost`, so the host comes from our own parse.
fn node(text: &str) -> Result<AMQPUri, Error> {
    // The error of a parser is not shown, since it may quote the URL.
    let unusable = || Error::Misconfigured { reason: "a URL of queue.amqp is not an AMQP URL".to_owned() };
    let url = Url::parse(text).map_err(|_| unusable())?;
    let mut node: AMQPUri = text.parse().map_err(|_| unusable())?;
    if let Some(Host::Ipv6(ip)) = url.host() {
        node.authority.host = IpAddr::from(ip).to_string();
    }
    node.query.heartbeat = node.query.heartbeat.or(Some(HEARTBEAT));
    Ok(node)
}

fn connector(tls: &TlsFiles) -> Result<RustlsConnector, Error> {
    let failed = |what: &str, error: &dyn fmt::Display| Error::Misconfigured { reason: format!("{what}: {error}") };
    let mut config = RustlsConnectorConfig::default();
    match &tls.ca {
        Some(path) => config.add_parsable_certificates(certificates(path, "queue.amqp.tls.ca")?),
        None => {
            config = RustlsConnectorConfig::new_with_native_certs()
                .map_err(|error| failed("the system's certificate authorities", &error))?;
        }
    }
    let connector = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "queue.amqp.tls.cert")?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|error| failed(&named("queue.amqp.tls.key", key), &error))?;
            config.connector_with_single_cert(chain, key)
        }
        (None | Some(_), None) | (None, Some(_)) => config.connector_with_no_client_auth(),
    };
    connector.map_err(|error| failed("queue.amqp.tls", &error))
}

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let misconfigured = |reason: String| Error::Misconfigured { reason };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| misconfigured(format!("{}: {error}", named(option, path))))?;
    if found.is_empty() {
        return Err(misconfigured(format!("{}: the file contains no certificate", named(option, path))));
    }
    Ok(found)
}

fn named(option: &str, path: &Path) -> String {
    format!("{option} {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_the_first_frame() {
        let start = |version: &[u8]| [b"\0\x0a\0\x0a\x07productS\0\0\0\x08RabbitMQ", version, b"\x08platform"].concat();
        assert_eq!(major(&start(b"\x07versionS\0\0\0\x063.10.8")), Some(3));
        assert_eq!(major(&start(b"\x07versionS\0\0\0\x0613.0.1")), Some(13));
        for missing in [&b""[..], b"\x07versionS\0\0", b"\x07versionS\0\0\0\x03new", b"\x07versionI\0\0\0\x04"] {
            assert_eq!(major(missing), None);
        }
    }

    #[test]
    fn a_url_is_parsed_and_never_printed_with_its_password() {
        let parsed = node("amqps://user:planted@[::1]/shop").unwrap();
        assert_eq!((address(&parsed).as_str(), parsed.vhost.as_str()), ("::1:5671", "shop"));
        assert_eq!(parsed.query.heartbeat, Some(HEARTBEAT));
        let max_age = MaxAge::new(Duration::from_secs(1), []);
        let broker = Broker { nodes: vec![parsed], tls: None, next: AtomicUsize::new(0), max_age };
        assert!(!format!("{broker:?}").contains("planted"));
        assert!(!node("amqp://user:planted@host:99999").unwrap_err().to_string().contains("planted"));
    }
}
