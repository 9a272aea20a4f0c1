//! Opens the file, with errors that an operator can act on.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, DatabaseError, StorageError};

use crate::private_files;
use crate::queue::Error;

use super::change::LogLimits;
use super::disk::DiskSpace;
use super::log::Log;
use super::reserved_file::ReservedFile;
use super::writer::LogOpener;

/// The name of the file in the configured directory.
pub(in crate::queue) const NAME: &str = "queue.redb";

/// The name of the file that keeps space for it, see [`disk`](super::disk).
const RESERVE: &str = "queue.reserve";

/// How many bytes a file may contain that is compacted when it is opened: that takes a few seconds.
const MOST_COMPACTED: u64 = 128 * 1024 * 1024;

/// How much of the file is cached in memory. The events of the delivery window are in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Returns what opens the log in a directory. The first time it creates both if they do not exist.
pub(super) fn opener(directory: PathBuf, limits: LogLimits) -> LogOpener {
    let is_first = AtomicBool::new(true);
    Box::new(move || open(&directory, limits, is_first.swap(false, Ordering::Relaxed)))
}

/// Opens the log in a directory.
///
/// Verifies every checksum first, so that damage is reported here and not during a delivery.
fn open(directory: &Path, limits: LogLimits, creates: bool) -> Result<Log, Error> {
    let path = directory.join(NAME);
    let unusable = |problem: String| Error::Unavailable { reason: format!("{} {problem}", path.display()) };
    let is_new = !path.exists();
    if is_new && !creates {
        // A file that is created here would be hidden, with all its events, once its file system is mounted again.
        return Err(unusable("does not exist any more: is its file system mounted?".to_owned()));
    }
    let created = private_files::create_directory(directory);
    created.map_err(|error| unusable(format!("cannot be created: {error}")))?;
    private_files::create_file(&path).map_err(|error| unusable(format!("cannot be created: {error}")))?;
    let open = || open_file(&path, directory.join(RESERVE), limits);
    // redb may panic on a damaged file instead of returning an error.
    let open = || catch_unwind(AssertUnwindSafe(open)).map_err(|_| damaged("its structure is invalid")).flatten();
    let mut log = open().map_err(unusable)?;
    if let Err(error) = log.compact(MOST_COMPACTED) {
        tracing::warn!(%error, "the queue's file cannot be compacted, it stays as it is");
        // After a failure it has to be opened again.
        drop(log);
        log = open().map_err(unusable)?;
    }
    if is_new {
        sync_directories(directory).map_err(|error| unusable(format!("cannot be made durable: {error}")))?;
    }
    Ok(log)
}

fn open_file(path: &Path, reserve: PathBuf, limits: LogLimits) -> Result<Log, String> {
    let space = DiskSpace::open(path, reserve, &limits).map_err(problem)?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let file = builder.create_with_backend(ReservedFile(Arc::clone(&space))).map_err(problem)?;
    let log = Log::new(file, limits, Some(space)).map_err(|error| format!("cannot be used: {error}"))?;
    // The file is locked now, so the reserve is ours. On a full disk events are refused, and what waits can be settled.
    let _ = log.check_space();
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
