//! Why a command of the command line failed.

/// A command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `--admin` is not an HTTP URL.
    #[error("--admin: expected a URL such as http://127.0.0.1:8081")]
    Url,
    /// The admin key would be sent in clear to another machine.
    #[error("--admin: the admin key is sent only over https, or to this machine")]
    PlainKey,
    /// A file for TLS cannot be used.
    #[error("{reason}")]
    Tls {
        /// The file and what is wrong with it.
        reason: String,
    },
    /// The service cannot be reached or cannot answer now.
    #[error("{reason}")]
    Unavailable {
        /// What happened.
        reason: String,
    },
    /// The service refused the command.
    #[error("{reason}")]
    Refused {
        /// The reason that the service gave.
        reason: String,
    },
}
