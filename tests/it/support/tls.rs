//! Certificates for encrypted connections, and clients that trust them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate authority, with a certificate for a server and one for a client, as PEM files.
pub(crate) fn certificates(directory: &Path) {
    let named = |name: &str| {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = named("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let certificate = named(name).signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// The certificate of an authority with its key, which a server cannot use: `own.pem` and `own.key`.
pub(crate) fn certificate_of_an_authority(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join("own.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(directory.join("own.key"), key.serialize_pem()).unwrap();
}

/// Returns a client builder that trusts only the authorities of these directories.
pub(crate) fn client_trusting(directories: &[&Path]) -> ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority =
        |directory: &&Path| Certificate::from_pem(&std::fs::read(directory.join("ca.pem")).unwrap()).unwrap();
    reqwest::Client::builder().tls_certs_only(directories.iter().map(authority))
}

/// Connects to a listener with the server certificate of a directory, for a protocol (RFC 7301).
pub(crate) async fn connect(directory: &Path, listener: SocketAddr, protocol: &str) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots(directory)).with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    let stream = TcpStream::connect(listener).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(listener.ip().into(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    stream
}

/// Returns an acceptor with the server certificate of a directory that requests a client certificate.
pub(crate) fn server(directory: &Path) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(directory)), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(clients.build().unwrap());
    let certificate = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap())
}

fn roots(directory: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    roots
}

/// Returns the client certificate of a directory.
pub(crate) fn identity(directory: &Path) -> Identity {
    let read = |name| std::fs::read_to_string(directory.join(name)).unwrap();
    Identity::from_pem(format!("{}{}", read("client.key"), read("client.pem")).as_bytes()).unwrap()
}

/// Returns the settings of a listener with the server certificate of a directory.
pub(crate) fn listener(table: &str, directory: &Path) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!("[{table}.tls]\ncert = {:?}\nkey = {:?}\n", path("server.pem"), path("server.key"))
}
