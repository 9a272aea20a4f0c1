//! Opens the file, with errors that an operator can act on.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Database, DatabaseError, StorageError};

use crate::private_files;
use crate::queue::Error;

use super::change::LogLimits;
use super::log::Log;

/// The name of the file in the configured directory.
pub(in crate::queue) const NAME: &str = "queue.redb";

/// How much of the file is cached in memory. The events of the delivery window are in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Opens the log in a directory; creates both if they do not exist.
///
/// Verifies every checksum first, so that damage is reported here and not during a delivery.
pub(super) fn open(directory: &Path, limits: LogLimits) -> Result<Log, Error> {
    let path = directory.join(NAME);
    let unusable = |problem: String| Error::Unavailable { reason: format!("{} {problem}", path.display()) };
    let created = private_files::create_directory(directory);
    created.map_err(|error| unusable(format!("cannot be created: {error}")))?;
    let is_new = !path.exists();
    private_files::create_file(&path).map_err(|error| unusable(format!("cannot be created: {error}")))?;
    let open = || Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(&path);
    // redb may panic on a damaged file instead of returning an error.
    let file = catch_unwind(AssertUnwindSafe(open))
        .map_err(|_| unusable(damaged("its structure is invalid")))?
        .map_err(|error| unusable(problem(error)))?;
    let log = Log::new(file, limits).map_err(|error| unusable(format!("cannot be used: {error}")))?;
    if is_new {
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
        // The errors of redb are an open set.
        error => format!("cannot be opened: {error}"),
    }
}

fn damaged(what: &str) -> String {
    format!("is damaged or not a queue file ({what}); it was not changed: move it away to start with an empty queue")
}

/// Makes the directory entries of a new file and a new directory durable (POSIX fsync of directories).
fn sync_directories(directory: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
        if let Some(parent) = directory.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}
