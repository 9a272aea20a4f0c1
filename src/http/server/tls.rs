//! TLS of a listener: `[http.tls]` and `[admin.tls]`.
//!
//! TLS 1.2 and 1.3, with what rustls' ring provider holds for safe; HTTP/2 and HTTP/1.1 by ALPN. Sessions are resumed
//! by tickets that only this very configuration can read: after a reload everyone shows its certificate anew. There
//! is no early data, which could be replayed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, version};
use serde::Deserialize;

use crate::invalid::InvalidSetting;

/// The files of a listener's TLS; all are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The certificate and those between it and its authority; absent: the listener is plain.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The certificate's key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Who must have signed clients' certificates; absent: clients are asked for none.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without a certificate.
    #[serde(default)]
    pub client_cert: ClientCert,
}

/// What a client without a certificate meets, where `client_ca` is set. One with a wrong certificate is always refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCert {
    /// It is refused.
    #[default]
    Required,
    /// It is let in.
    Optional,
}

impl Config {
    /// Tells whether the listener speaks TLS.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.cert.is_some() || self.key.is_some() || self.client_ca.is_some()
    }

    /// Reads the files; `None` for a plain listener.
    ///
    /// # Errors
    ///
    /// A file is missing, cannot be read, or does not hold what it should, or the key is another certificate's.
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
        // The provider is named and not taken from the process, so that nothing else in it can change what is spoken.
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
            .map_err(|error| refuse("key", format!("does not fit the certificate: {error}")))?;
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
        store.add(certificate).map_err(|error| format!("{} holds no usable authority: {error}", path.display()))?;
    }
    Ok(store)
}

/// Says what is wrong with a file; nothing of what stands in it, nor in place of its name.
fn explain(path: &Path, what: &str, error: &pem::Error) -> String {
    let name = path.display().to_string();
    if name.contains("-----BEGIN") {
        return format!("must be the path of a PEM file with {what}, not its contents");
    }
    match error {
        pem::Error::Io(error) => format!("the file {name} cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("the file {name} holds no {} in PEM form", what.trim_start_matches("a ")),
        _ => format!("the file {name} is no PEM file"),
    }
}
