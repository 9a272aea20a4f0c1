//! The file sink: one file for appending, and full files next to it, `audit.jsonl.000001` and up.
//!
//! # How it works
//!
//! One process at a time: a lock on `audit.jsonl.lock`, which stays in place when files are renamed. Only the owner can
//! read the files. A full file is renamed to the next number, so that names sort by time, and a new file replaces it.
//! The newest `keep` full files are kept.
//!
//! # When something fails
//!
//! A partial write is undone, so the file holds complete records. After a crash the last line may be incomplete: the
//! next start truncates it and records that. A crash between the rename and the creation of the new file leaves no
//! file; the chain then continues from the newest full file. If the last record does not match the chain (a different
//! key, or someone changed the file), the file is renamed like a full one, and a new chain starts.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::private_files::{self, FILE_MODE};

use super::chain::{ChainHead, Hasher, InvalidRecord};
use super::config::Config;
use super::recent_events::RecentEvents;
use super::sinks::{PartialWrite, Sink, write_counted};
use super::system_record::SystemRecord;
use super::tail;

/// The number of digits in the name of a full file.
const DIGITS: usize = 6;

/// How many bytes of the newest files are searched for recently recorded events.
const RECENT_BYTES: u64 = 32 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes it.
    #[error("audit.path: another process uses {path}; each process needs its own file")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// An operation of the file system failed.
    #[error("audit.path: {path} cannot be used: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An open file and its state.
#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) sink: FileSink,
    /// The head of the chain to continue; `None` starts a new chain.
    pub(super) head: Option<ChainHead>,
    /// What the writer records first.
    pub(super) first: Vec<SystemRecord>,
    /// The recently recorded events.
    pub(super) recent: RecentEvents,
}

/// The file for appending.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    file: File,
    length: u64,
    max_bytes: u64,
    keep: usize,
    /// Held as long as the file is open.
    _lock: File,
}

/// Opens the file and finds the head of its chain.
///
/// # Errors
///
/// Another process uses it, or it cannot be read or written.
pub(super) fn open(config: &Config, hasher: &Hasher) -> Result<OpenedFile, Error> {
    let path = &config.path;
    let unusable = |source| Error::Unusable { path: path.clone(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        private_files::create_directory(directory).map_err(unusable)?;
    }
    let lock = lock(path)?;
    let file = append_to(path).map_err(unusable)?;
    if !file.metadata().map_err(unusable)?.is_file() {
        return Err(unusable(io::Error::other("it is not a regular file")));
    }
    let (max_bytes, keep) = (config.max_bytes.as_u64(), config.keep);
    let mut sink = FileSink { path: path.clone(), file, length: 0, max_bytes, keep, _lock: lock };
    let mut first = Vec::new();
    let head = sink.find_head(hasher, &mut first).map_err(unusable)?;
    let mut recent = RecentEvents::default();
    sink.read_recent(&mut recent).map_err(unusable)?;
    Ok(OpenedFile { sink, head, first, recent })
}

fn lock(path: &Path) -> Result<File, Error> {
    let name = with_suffix(path, "lock");
    let unusable = |source| Error::Unusable { path: name.clone(), source };
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&name).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(unusable(source)),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    sync_directory(path)?;
    Ok(file)
}

/// Makes the directory entry of a file durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl FileSink {
    /// Returns the head of the chain, after truncating an incomplete record.
    fn find_head(&mut self, hasher: &Hasher, first: &mut Vec<SystemRecord>) -> io::Result<Option<ChainHead>> {
        let tail = tail::read(&self.file)?;
        if let Some(incomplete) = tail.incomplete {
            self.file.set_len(incomplete.at)?;
            self.file.sync_all()?;
            tracing::warn!(path = %self.path.display(), bytes = incomplete.bytes, "truncated an incomplete record at the end of the audit file");
            first.push(SystemRecord::Cut { bytes: incomplete.bytes, sha256: incomplete.sha256 });
        }
        self.length = self.file.metadata()?.len();
        if let Some(last) = &tail.last_line {
            return match hasher.position(last) {
                Ok(position) => Ok(Some(position.head)),
                Err(invalid) => self.set_aside(invalid, hasher, first).map(|()| None),
            };
        }
        let algorithm = hasher.as_str();
        let Some(newest) = self.full_files()?.pop() else {
            first.insert(0, SystemRecord::began(algorithm, None));
            return Ok(None);
        };
        let last = tail::read(&File::open(&newest.1)?)?.last_line;
        let head = last.and_then(|last| hasher.position(&last).ok()).map(|position| position.head);
        let after = file_name(&newest.1);
        let start = match head {
            Some(_) => SystemRecord::continued(algorithm, after),
            None => SystemRecord::began(algorithm, Some(after)),
        };
        first.insert(0, start);
        Ok(head)
    }

    /// Renames a file whose last record does not belong to this chain, and keeps it as evidence.
    fn set_aside(&mut self, invalid: InvalidRecord, hasher: &Hasher, first: &mut Vec<SystemRecord>) -> io::Result<()> {
        let name = self.replace()?;
        let path = self.path.display();
        tracing::error!(%path, renamed_to = name, ?invalid, "the last record of the audit file does not match the chain (was the file or audit.key changed?): starting a new chain");
        first.insert(0, SystemRecord::began(hasher.as_str(), Some(name)));
        Ok(())
    }

    /// Renames the file to the next number and creates a new one.
    fn replace(&mut self) -> io::Result<String> {
        let number = self.full_files()?.last().map_or(1, |(number, _)| number + 1);
        let full = with_suffix(&self.path, &format!("{number:0DIGITS$}"));
        // The new file is created first: if the disk is full, nothing has changed.
        let next = with_suffix(&self.path, "next");
        let file = append_to(&next)?;
        file.set_len(0)?;
        std::fs::rename(&self.path, &full)?;
        std::fs::rename(&next, &self.path)?;
        sync_directory(&self.path)?;
        (self.file, self.length) = (file, 0);
        Ok(file_name(&full))
    }

    /// Returns the full files by number, oldest first.
    fn full_files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let prefix = format!("{}.", file_name(&self.path));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            let digits = digits.filter(|digits| digits.len() >= DIGITS && digits.bytes().all(|b| b.is_ascii_digit()));
            if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
                found.push((number, entry.path()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes the oldest full files, all but the newest `keep`.
    fn remove_oldest(&self) -> io::Result<()> {
        if self.keep == 0 {
            return Ok(());
        }
        let full = self.full_files()?;
        for (_, path) in full.iter().take(full.len().saturating_sub(self.keep)) {
            std::fs::remove_file(path)?;
            tracing::info!(path = %path.display(), "removed an old audit file (audit.keep)");
        }
        Ok(())
    }

    /// Reads the recently recorded events, oldest first.
    fn read_recent(&self, recent: &mut RecentEvents) -> io::Result<()> {
        let mut files: Vec<PathBuf> = self.full_files()?.into_iter().map(|(_, path)| path).collect();
        files.push(self.path.clone());
        let (mut first, mut left) = (files.len(), RECENT_BYTES);
        while first > 0 && left > 0 {
            first -= 1;
            left = left.saturating_sub(std::fs::metadata(&files[first])?.len());
        }
        for path in &files[first..] {
            tail::events(&File::open(path)?, RECENT_BYTES, recent)?;
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn write(&mut self, records: &[u8]) -> Result<(), PartialWrite> {
        match write_counted(&mut self.file, records) {
            Ok(()) => {
                self.length += records.len() as u64;
                Ok(())
            }
            Err(PartialWrite { written, error }) => match self.file.set_len(self.length) {
                Ok(()) => Err(PartialWrite { written: 0, error }),
                // The bytes stay, and the next write continues after them.
                Err(_) => {
                    self.length += written as u64;
                    Err(PartialWrite { written, error })
                }
            },
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_full(&self) -> bool {
        self.length >= self.max_bytes
    }

    fn rotate(&mut self) -> io::Result<String> {
        self.file.sync_all()?;
        let full = self.replace()?;
        if let Err(error) = self.remove_oldest() {
            tracing::warn!(%error, "cannot remove old audit files");
        }
        Ok(full)
    }
}
