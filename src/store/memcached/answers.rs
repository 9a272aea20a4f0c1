//! What an operation makes of the answer to one of its commands.

use crate::store::Error;

use super::connection::unexpected;
use super::protocol::{Answer, Stored};

impl Answer {
    /// Returns what was read; `None` if the key holds nothing.
    pub(super) fn value(self) -> Result<Option<Stored>, Error> {
        match self {
            Self::Value(stored) => Ok(Some(stored)),
            Self::Absent => Ok(None),
            other => Err(other.error()),
        }
    }

    /// Returns the version that was written; `None` if the condition was not met. For a deletion, zero.
    pub(super) fn done(self) -> Result<Option<u64>, Error> {
        match self {
            Self::Done(version) => Ok(Some(version)),
            Self::Absent | Self::Refused => Ok(None),
            other => Err(other.error()),
        }
    }

    /// Returns the error that another answer than the expected ones is.
    pub(super) fn error(self) -> Error {
        match self {
            Self::Failed(why) if why.starts_with("object too large") => {
                Error::Rejected { reason: format!("memcached: {why} (its option -I)") }
            }
            Self::Failed(why) => Error::Unavailable { reason: format!("memcached: {why}") },
            Self::Value(_) | Self::Done(_) | Self::Absent | Self::Refused => unexpected(),
            Self::Statistics(_) | Self::LoggedIn => unexpected(),
        }
    }
}
