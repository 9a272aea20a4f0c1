//! TLS of the client: which server certificates it trusts, and which certificate it presents.

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::client_error::Error;

/// Which server certificates a client trusts.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Certificates for the name in the URL that a CA of this machine has signed.
    System,
    /// Certificates for the name in the URL that a CA in this PEM file has signed.
    Authority(PathBuf),
    /// Only the first certificate of this PEM file, for any name: for a client that has the files of the service.
    Certificate(PathBuf),
    /// Any certificate; only for requests that carry no secret.
    Any,
}

/// How a client uses TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server certificates that it trusts.
    pub trust: Trust,
    /// The client certificate and its private key, as PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Applies these settings to a client.
    pub(super) fn apply(&self, client: ClientBuilder) -> Result<ClientBuilder, Error> {
        let client = match &self.trust {
            Trust::System => client,
            Trust::Authority(path) => {
                let found = Certificate::from_pem_bundle(&read(path)?).map_err(|_| unusable(path))?;
                if found.is_empty() {
                    return Err(unusable(path));
                }
                client.tls_certs_only(found)
            }
            Trust::Certificate(path) => return Ok(client.tls_backend_preconfigured(self.pinned(path)?)),
            Trust::Any => client.tls_danger_accept_invalid_certs(true),
        };
        let Some((certificate, key)) = &self.identity else { return Ok(client) };
        let mut pem = read(key)?;
        pem.extend_from_slice(&read(certificate)?);
        Ok(client.identity(Identity::from_pem(&pem).map_err(|_| unusable(certificate))?))
    }

    fn pinned(&self, path: &PathBuf) -> Result<ClientConfig, Error> {
        let certificate = CertificateDer::from_pem_file(path).map_err(|_| unusable(path))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|_| unusable(path))?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(PinnedCertificate { certificate, provider }));
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = CertificateDer::pem_file_iter(certificate).and_then(|found| found.collect::<Result<Vec<_>, _>>());
        let chain = chain.map_err(|_| unusable(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|_| unusable(key))?;
        builder.with_client_auth_cert(chain, key).map_err(|_| unusable(certificate))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    let explain = |error| Error::Tls { reason: format!("the file {} cannot be read: {error}", path.display()) };
    std::fs::read(path).map_err(explain)
}

fn unusable(path: &std::path::Path) -> Error {
    Error::Tls { reason: format!("the file {} does not hold the expected PEM content", path.display()) }
}

/// Trusts one certificate only.
#[derive(Debug)]
struct PinnedCertificate {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *certificate == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
