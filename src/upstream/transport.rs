//! Why a request to Genesys got no whole answer: the host, the phase and the cause.
//!
//! The text is for the log. It holds no path and no query, since a URL holds the customer id, and nothing that the
//! peer sent, since an answer may repeat it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use url::Url;

use crate::tls::with_advice;

/// Why a request got no whole answer. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host}: {phase}: {cause}")]
pub struct TransportFailure {
    /// The host of the request, with its port if that is not the default one.
    pub host: Arc<str>,
    /// What the request was waiting for.
    pub phase: TransportPhase,
    /// The innermost cause.
    pub cause: Arc<str>,
}

/// The part of an exchange that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportPhase {
    /// The name of the host could not be resolved.
    Dns,
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// A time limit passed.
    Timeout,
    /// The connection was made, and broke before the whole answer was read.
    Response,
}

impl fmt::Display for TransportPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Response => "response",
        })
    }
}

impl TransportFailure {
    /// Creates the failure of a request that did not end before its deadline.
    pub(super) fn deadline(host: &str) -> Self {
        Self { host: host.into(), phase: TransportPhase::Timeout, cause: "no answer before the deadline".into() }
    }
}

/// Returns the host of a URL, with its port if that is not the default one.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Describes an error of a request to `host`.
pub(super) fn describe(host: &str, error: &reqwest::Error) -> TransportFailure {
    let (mut cause, mut is_tls) = (TransportCause::Unknown(error), false);
    let mut next = error.source();
    while let Some(error) = next {
        is_tls |= error.is::<rustls::Error>();
        cause = cause.or_inner(error);
        next = inner(error);
    }
    let phase = if error.is_timeout() {
        TransportPhase::Timeout
    } else if error.is_dns() {
        TransportPhase::Dns
    } else if is_tls {
        TransportPhase::Tls
    } else if error.is_connect() {
        TransportPhase::Connect
    } else {
        TransportPhase::Response
    };
    TransportFailure { host: host.into(), phase, cause: with_advice(cause.to_string()).into() }
}

/// Returns the next error of a chain. `source` of an `io::Error` would skip the error that it wraps.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// The innermost error so far.
#[derive(Clone, Copy)]
enum TransportCause<'a> {
    /// An error of the operating system or of TLS, whose text is safe.
    Known(&'a dyn StdError),
    /// Another error. Texts of h2 contain data of the peer in brackets.
    Unknown(&'a dyn StdError),
}

impl<'a> TransportCause<'a> {
    fn or_inner(self, error: &'a (dyn StdError + 'static)) -> Self {
        match self {
            _ if error.is::<io::Error>() || error.is::<rustls::Error>() => Self::Known(error),
            // What an `io::Error` wraps repeats its text.
            Self::Known(_) => self,
            Self::Unknown(_) => Self::Unknown(error),
        }
    }
}

impl fmt::Display for TransportCause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(error) => error.fmt(f),
            Self::Unknown(error) => {
                let text = error.to_string();
                f.write_str(text.split(" (").next().unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::exchange::client;
    use super::*;

    const SECRET_PATH: &str = "contacts/customer-7?x=customer-7";

    async fn failure(client: reqwest::Client, base: &str) -> TransportFailure {
        let url: Url = format!("{base}/{SECRET_PATH}").parse().unwrap();
        let exchange = async { client.get(url.clone()).send().await?.bytes().await };
        let failure = describe(&host(&url), &exchange.await.expect_err("the request fails"));
        assert!(!failure.to_string().contains("customer-7"), "{failure}");
        assert!(base.ends_with(&*failure.host), "{failure}");
        failure
    }

    /// Starts a server that reads a request, sends this and closes the connection.
    async fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let _ = connection.read(&mut [0; 4096]).await;
                let _ = connection.write_all(answer).await;
            }
        });
        base
    }

    #[tokio::test]
    async fn a_refused_connection_names_host_phase_and_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let failure = failure(client(false).unwrap(), &format!("http://{address}")).await;
        assert_eq!(failure.to_string(), format!("{address}: connect: Connection refused (os error 111)"));
    }

    #[tokio::test]
    async fn an_unknown_host_is_a_dns_failure() {
        let failure = failure(client(false).unwrap(), "http://nonexistent.invalid").await;
        assert_eq!((&*failure.host, failure.phase), ("nonexistent.invalid", TransportPhase::Dns));
        assert!(failure.cause.contains("lookup"), "{failure}");
    }

    #[tokio::test]
    async fn a_certificate_of_an_unknown_authority_is_a_tls_failure() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let server = rustls::ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let _ = acceptor.accept(connection).await;
            }
        });
        let trusting_nobody = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        let failure = failure(trusting_nobody, &format!("https://localhost:{port}")).await;
        assert_eq!(failure.phase, TransportPhase::Tls, "{failure}");
        assert_eq!(&*failure.cause, "invalid peer certificate: UnknownIssuer");
    }

    #[tokio::test]
    async fn a_time_limit_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let impatient = reqwest::Client::builder().timeout(Duration::from_millis(50)).tls_certs_only([]).no_proxy();
        let failure = failure(impatient.build().unwrap(), &base).await;
        assert_eq!((failure.phase, &*failure.cause), (TransportPhase::Timeout, "operation timed out"));
    }

    #[tokio::test]
    async fn a_broken_answer_is_a_response_failure() {
        let cut =
            failure(client(false).unwrap(), &server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await).await;
        assert_eq!(cut.phase, TransportPhase::Response, "{cut}");
        assert!(cut.cause.contains("end of file") || cut.cause.contains("closed"), "{cut}");
        let none = failure(client(false).unwrap(), &server(b"").await).await;
        assert_eq!(none.phase, TransportPhase::Response, "{none}");
        let nonsense = failure(client(false).unwrap(), &server(b"customer-7 customer-7\r\n\r\n").await).await;
        assert_eq!(nonsense.phase, TransportPhase::Response, "{nonsense}");
    }

    #[test]
    fn what_a_peer_sent_is_not_shown() {
        #[derive(Debug, thiserror::Error)]
        #[error("connection error received: not a result of an error (b\"customer-7\")")]
        struct GoAway;
        let shown = TransportCause::Unknown(&GoAway).or_inner(&GoAway).to_string();
        assert_eq!(shown, "connection error received: not a result of an error");
    }
}
