//! The files of an encrypted link to a server of ours, as they are configured.

use std::path::PathBuf;

use serde::Deserialize;

/// Who is trusted, and what is presented; all are PEM files.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Who must have signed the server's certificate; absent: this machine's authorities.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The client's certificate; needs `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The client's key; needs `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl Files {
    /// Tells whether any file is named.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}
