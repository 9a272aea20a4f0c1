//! Opening the file, with errors that an operator can act on.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Database, DatabaseError, StorageError};

use crate::queue::Error;

use super::log::{Limits, Log};

/// The name of the file in the configured directory.
pub(super) const NAME: &str = "queue.redb";

/// How much of the file is kept in memory. The window's events are in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Opens the log in a directory; makes both if they are not there.
///
/// Every checksum is verified before anything is trusted, so that damage shows here and not in the
/// middle of a delivery.
pub(super) fn open(directory: &Path, limits: Limits) -> Result<Log, Error> {
    let path = directory.join(NAME);
    let unusable = |problem: String| Error::Unavailable { reason: format!("{} {problem}", path.display()) };
    std::fs::create_dir_all(directory).map_err(|error| unusable(format!("has no directory: {error}")))?;
    let made = !path.exists();
    let open = || Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(&path);
    // redb may panic over a damaged file instead of refusing it.
    let file = catch_unwind(AssertUnwindSafe(open))
        .map_err(|_| unusable(damaged("it makes no sense")))?
        .map_err(|error| unusable(problem(error)))?;
    let log = Log::new(file, limits).map_err(|error| unusable(format!("cannot be used: {error}")))?;
    if made {
        sync_directories(directory).map_err(|error| unusable(format!("cannot be made durable: {error}")))?;
    }
    Ok(log)
}

fn problem(error: DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => "is in use by another process".to_owned(),
        DatabaseError::Storage(StorageError::Corrupted(what)) => damaged(&what),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            damaged(&error.to_string())
        }
        // redb's errors are an open set.
        error => format!("cannot be opened: {error}"),
    }
}

fn damaged(what: &str) -> String {
    format!("is damaged or no queue ({what}); it was left as it is: move it away to start with an empty queue")
}

/// Makes the entries of a new file and a new directory survive a loss of power (POSIX fsync of directories).
fn sync_directories(directory: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
        if let Some(parent) = directory.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}
