//! TLS of a listener: `[http.tls]` and `[admin.tls]`.
//!
//! TLS 1.2 and 1.3 with the default cipher suites of rustls' ring provider; HTTP/2 and HTTP/1.1 by ALPN. A session ticket is
//! valid only until the next reload; then clients must present their certificates again. Early data is disabled, because
//! it can be replayed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, version};
use serde::Deserialize;

use crate::invalid::InvalidSetting;

/// The TLS files of a listener; all are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The certificate with its intermediate certificates; absent: the listener does not use TLS.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The private key of the certificate.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The CA bundle for verifying client certificates; absent: no client certificate is requested.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Whether a client certificate is required.
    #[serde(default)]
    pub client_cert: ClientCert,
}

/// Whether clients must present a certificate, if `client_ca` is set. A wrong certificate is always refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCert {
    /// A client without a certificate is refused.
    #[default]
    Required,
    /// A client without a certificate is accepted.
    Optional,
}

impl Config {
    /// Returns whether the listener uses TLS.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.cert.is_some() || self.key.is_some() || self.client_ca.is_some()
    }

    /// Reads the files; `None` for a listener without TLS.
    ///
    /// # Errors
    ///
    /// A file is missing, unreadable or has the wrong contents, or the key does not match the certificate.
    pub fn load(&self, section: &'static str) -> Result<Option<Arc<ServerConfig>>, InvalidSetting> {
        if !self.is_on() {
            return Ok(None);
        }
        let refuse = |field: &'static str, reason: String| InvalidSetting::new(field, reason);
        let needed = |field: &'static str, path: &Option<PathBuf>| {
            path.clone().ok_or_else(|| refuse(field, format!("is missing: the other options of {section} need it")))
        };
        let (cert, key) = (needed("cert", &self.cert)?, needed("key", &self.key)?);
        let chain = certificates(&cert).map_err(|reason| refuse("cert", reason))?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| refuse("key", explain(&key, "a key", &error)))?;
        // The provider is explicit: another part of the process may have changed the default one.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| refuse("cert", error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let authorities = authorities(path).map_err(|reason| refuse("client_ca", reason))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
                let verifier = match self.client_cert {
                    ClientCert::Required => verifier,
                    ClientCert::Optional => verifier.allow_unauthenticated(),
                };
                let unusable = |error: VerifierBuilderError| refuse("client_ca", error.to_string());
                builder.with_client_cert_verifier(verifier.build().map_err(unusable)?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| refuse("key", format!("does not match the certificate: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| refuse("cert", error.to_string()))?;
        Ok(Some(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    let found = read.map_err(|error| explain(path, "certificates", &error))?;
    if found.is_empty() { Err(explain(path, "certificates", &pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| format!("{} has no usable authority: {error}", path.display()))?;
    }
    Ok(store)
}

/// Describes a fault of a file, without its contents. A misplaced PEM text instead of a path is not repeated either.
fn explain(path: &Path, what: &str, error: &pem::Error) -> String {
    let name = path.display().to_string();
    if name.contains("-----BEGIN") {
        return format!("must be the path of a PEM file with {what}, not its contents");
    }
    match error {
        pem::Error::Io(error) => format!("the file {name} cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("the file {name} has no {} in PEM form", what.trim_start_matches("a ")),
        _ => format!("the file {name} is not a PEM file"),
    }
}
