//! Why a command to Redis failed.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::invalid::InvalidSetting;
use crate::store::Error;
use crate::tls::with_advice;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CommandError {
    /// The script is not loaded: nothing was run.
    NoScript,
    /// The key holds a value of another type, which this program did not write.
    WrongType,
    /// The cluster sent the command elsewhere: nothing was run.
    Redirected(Redirection),
    /// The server takes no data (`OOM`), but deletes.
    Full(Error),
    /// Anything else.
    Store(Error),
}

/// Where a command that a cluster did not run goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// To the same node a moment later (`TRYAGAIN`).
    Again,
    /// To the node that now has the slot (`MOVED`): its host, which may be empty for that of the same node, and port.
    Moved(String, u16),
    /// Once to the node that receives the slot (`ASK`): its host and port, as above.
    Ask(String, u16),
}

impl Redirection {
    /// Returns the redirection that an error is, if it is one.
    pub(super) fn of(error: &RedisError) -> Option<Self> {
        let to = || {
            let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        };
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::TryAgain) => Some(Self::Again),
            ErrorKind::Server(ServerErrorKind::Moved) => to().map(|(host, port)| Self::Moved(host, port)),
            ErrorKind::Server(ServerErrorKind::Ask) => to().map(|(host, port)| Self::Ask(host, port)),
            _ => None,
        }
    }
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
            _ => match Redirection::of(&error) {
                Some(redirection) => Self::Redirected(redirection),
                None if server_code(&error) == Some("OOM") => Self::Full(explain(&error)),
                None => Self::Store(explain(&error)),
            },
        }
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Store(error) | CommandError::Full(error) => error,
            CommandError::Redirected(_) => {
                Self::Unavailable { reason: "a slot is on its way to another node".to_owned() }
            }
            // A script that was sent with its text is loaded.
            CommandError::NoScript => Self::Rejected { reason: "the script is not loaded".to_owned() },
            CommandError::WrongType => Self::Rejected { reason: "the key holds another type".to_owned() },
        }
    }
}

/// Returns the error for an option that cannot be used.
pub(super) fn refused(error: InvalidSetting) -> Error {
    Error::Rejected { reason: error.within("store.redis").to_string() }
}

/// Returns the code of a server's error. Inside a script Redis 6 wraps the error of a command (`ERR Error running script
/// …: -OOM command not allowed …`); Redis 7 and Valkey keep its code, except for a missing permission.
fn server_code(error: &RedisError) -> Option<&str> {
    let code = error.code()?;
    if code != "ERR" {
        return Some(code);
    }
    let text = error.detail().unwrap_or_default();
    let is_code = |word: &&str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    let wrapped = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix('-')).find(is_code);
    wrapped.or_else(|| NO_PERMISSION.iter().any(|part| text.contains(part)).then_some("NOPERM")).or(Some(code))
}

/// What Redis 6 and 7 say, with the code `ERR`, when a script may not run a command or use a key.
const NO_PERMISSION: [&str; 3] =
    ["ACL failure in script", "can't run this command", "can't access at least one of the keys"];

/// Describes an error of the client library without any key, value or password.
pub(super) fn reason(error: &RedisError) -> String {
    match server_code(error) {
        Some(code) => format!("{} ({code})", error.category()).trim_start().to_owned(),
        // The transport's own text (refused, reset, an invalid certificate) describes the connection only.
        None if error.is_io_error() => with_advice(error.to_string()),
        None => error.category().to_owned(),
    }
}

/// Returns what an error of the client library means for the caller of the store.
pub(super) fn explain(error: &RedisError) -> Error {
    let reason = reason(error);
    match (error.kind(), server_code(error)) {
        (_, Some("NOPERM" | "ERR" | "NOAUTH" | "WRONGPASS")) => Error::Rejected { reason },
        (
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Parse,
            _,
        ) => Error::Rejected { reason },
        _ => Error::Unavailable { reason },
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    /// Reads an answer as the client does.
    fn answer(line: &str) -> RedisError {
        let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).and_then(Value::extract_error);
        parsed.unwrap_err()
    }

    #[test]
    fn the_error_of_a_command_is_found_inside_the_error_of_its_script() {
        for (code, line) in [
            ("OOM", "OOM command not allowed when used memory > 'maxmemory'. script: 5c0e, on @user_script:72."),
            (
                "OOM",
                "ERR Error running script (call to f_5c0e): @user_script:72: -OOM command not allowed when used memory",
            ),
            (
                "READONLY",
                "ERR Error running script (call to f_5c0e): @user_script:7: -READONLY You can't write against",
            ),
            ("MISCONF", "ERR Error running script (call to f_5c0e): @user_script:7: -MISCONF Redis is configured to"),
            (
                "NOPERM",
                "ERR Error running script (call to f_5c0e): @user_script: 7: The user executing the script can't run this command or subcommand",
            ),
            (
                "NOPERM",
                "ERR ACL failure in script: User default has no permissions to run the 'set' command script: 5c0e",
            ),
            ("NOPERM", "NOPERM User default has no permissions to run the 'evalsha' command"),
            ("BUSY", "BUSY Redis is busy running a script."),
            ("ERR", "ERR unknown command 'EVALSHA'"),
        ] {
            let error = answer(line);
            assert_eq!(server_code(&error), Some(code), "{line}");
            let refused = matches!(explain(&error), Error::Rejected { .. });
            assert_eq!(refused, matches!(code, "NOPERM" | "ERR"), "{line}");
            assert_eq!(matches!(CommandError::from(error), CommandError::Full(_)), code == "OOM", "{line}");
        }
    }

    #[test]
    fn a_redirected_command_was_not_run() {
        for (line, expected) in [
            ("MOVED 866 127.0.0.1:7002", Redirection::Moved("127.0.0.1".to_owned(), 7002)),
            ("MOVED 866 :7002", Redirection::Moved(String::new(), 7002)),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Redirection::Again),
            ("ASK 866 ::1:7002", Redirection::Ask("::1".to_owned(), 7002)),
        ] {
            assert!(
                matches!(CommandError::from(answer(line)), CommandError::Redirected(found) if found == expected),
                "{line}"
            );
        }
    }
}
