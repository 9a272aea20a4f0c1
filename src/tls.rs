//! The configured files of a TLS connection to a server.

use std::path::PathBuf;

use serde::Deserialize;

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
