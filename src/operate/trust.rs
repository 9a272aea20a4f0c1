//! Whom the command line's client believes to be the service, and how it proves itself.

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::client::Error;

/// Whom a client believes to be the service.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Who has a certificate, in the name of the URL, of one of this machine's authorities.
    Machine,
    /// Who has a certificate, in the name of the URL, of the authorities in this PEM file.
    Authority(PathBuf),
    /// Who has the first certificate of this PEM file, whatever its name: for whoever shares the service's files.
    Exactly(PathBuf),
    /// Whoever answers; only for a question that gives nothing away.
    Anyone,
}

/// How a client speaks TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whom it believes.
    pub trust: Trust,
    /// The certificate and the key that it shows when it is asked for one, as PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Makes a client speak TLS like this.
    pub(super) fn apply(&self, client: ClientBuilder) -> Result<ClientBuilder, Error> {
        let client = match &self.trust {
            Trust::Machine => client,
            Trust::Authority(path) => {
                let found = Certificate::from_pem_bundle(&read(path)?).map_err(|_| unusable(path))?;
                if found.is_empty() {
                    return Err(unusable(path));
                }
                client.tls_certs_only(found)
            }
            Trust::Exactly(path) => return Ok(client.tls_backend_preconfigured(self.exactly(path)?)),
            Trust::Anyone => client.tls_danger_accept_invalid_certs(true),
        };
        let Some((certificate, key)) = &self.identity else { return Ok(client) };
        let mut pem = read(key)?;
        pem.extend_from_slice(&read(certificate)?);
        Ok(client.identity(Identity::from_pem(&pem).map_err(|_| unusable(certificate))?))
    }

    fn exactly(&self, path: &PathBuf) -> Result<ClientConfig, Error> {
        let certificate = CertificateDer::from_pem_file(path).map_err(|_| unusable(path))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|_| unusable(path))?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(Exactly { certificate, provider }));
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
    Error::Tls { reason: format!("the file {} does not hold what it should in PEM form", path.display()) }
}

/// Believes the owner of one certificate.
#[derive(Debug)]
struct Exactly {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
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
