//! The configured files of a TLS connection to a server, and which connections need none.

use std::path::PathBuf;

use serde::Deserialize;
use url::{Host, Url};

/// PEM files: the trusted authorities, and the client certificate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The CA bundle for verifying the server certificate; by default the authorities of this machine.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The client certificate; needs `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The key of the client certificate; needs `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Returns whether any file is configured.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}

/// Returns whether only this machine can answer a URL, so that it needs no TLS.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        // If the URL standard does not know the scheme, an IP address is parsed as a domain.
        Some(Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Adds advice to the text of a failed TLS handshake, where the text alone does not say what to do.
#[must_use]
pub fn with_advice(text: String) -> String {
    // The name of the error in the library (webpki).
    if text.contains("CaUsedAsEndEntity") {
        return format!(
            "{text}: the server presents the certificate of an authority (CA:TRUE); give it a certificate of its own that \
             this authority has signed"
        );
    }
    text
}
