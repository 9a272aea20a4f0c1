//! Why a command to Redis failed.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::Error;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CommandError {
    /// The script is not loaded: nothing was run.
    NoScript,
    /// The key holds a value of another type, which this program did not write.
    WrongType,
    /// Anything else.
    Store(Error),
}

impl CommandError {
    pub(super) fn unavailable(reason: &str) -> Self {
        Self::Store(Error::Unavailable { reason: reason.to_owned() })
    }

    pub(super) fn slow() -> Self {
        Self::Store(Error::Slow { reason: "redis answers others, or this process lacks processor time".to_owned() })
    }
}

impl From<RedisError> for CommandError {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Self::NoScript,
            _ if error.code() == Some("WRONGTYPE") => Self::WrongType,
            _ => Self::Store(explain(&error)),
        }
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Store(error) => error,
            // A script that was sent with its text is loaded.
            CommandError::NoScript => Self::Rejected { reason: "the script is not loaded".to_owned() },
            CommandError::WrongType => Self::Rejected { reason: "the key holds another type".to_owned() },
        }
    }
}

/// Describes an error of the client library without any key, value or password.
pub(super) fn explain(error: &RedisError) -> Error {
    let reason = match error.code() {
        Some(code) => format!("{} ({code})", error.category()).trim_start().to_owned(),
        // The transport's own text (refused, reset, an invalid certificate) describes the connection only.
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    };
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Parse
        | ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => Error::Rejected { reason },
        _ => Error::Unavailable { reason },
    }
}
