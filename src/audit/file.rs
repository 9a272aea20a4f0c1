//! The file sink: one file that is appended to, and full ones behind it, `audit.jsonl.000001` and on.
//!
//! # How
//!
//! One process at a time: a lock on `audit.jsonl.lock`, which stays where it is when files are renamed. Files can be
//! read by their owner only. A file that is full is renamed to the next number, so that names sort as time does, and a
//! new one takes its place; of the full ones the newest `keep` stay.
//!
//! # When something fails
//!
//! A write that got only so far is undone, so that what stands in the file are whole records. After a crash the last
//! line may be none: it is cut off at the next start, which is recorded. Between the renaming and the making of the
//! new file a crash leaves none, and the chain goes on from the newest full one. Where the last record does not fit the
//! chain (another key, a change by someone), the file is put behind, as if it were full, and a new chain begins.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::chain::{Hasher, Head, Unfit};
use super::config::Config;
use super::recent::Recent;
use super::record::Note;
use super::sinks::{Interrupted, Sink, write_counted};
use super::tail;

/// Only the owner may read what is recorded.
const MODE: u32 = 0o600;

/// How many digits the number of a full file has.
const DIGITS: usize = 6;

/// How much of the newest files is looked through for the events that were recorded lately.
const LATELY: u64 = 32 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes it.
    #[error("audit.path: another process has {path}; each process needs a file of its own")]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// The system does not let us.
    #[error("audit.path: {path} cannot be used: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// An open file, and what was found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) sink: FileSink,
    /// Where the chain goes on; `None` where a new one begins.
    pub(super) head: Option<Head>,
    /// What has to be recorded first.
    pub(super) notes: Vec<Note>,
    /// The events that were recorded lately.
    pub(super) recent: Recent,
}

/// The file that is appended to.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    file: File,
    length: u64,
    max_bytes: u64,
    keep: usize,
    /// Held as long as the file is.
    _lock: File,
}

/// Opens the file, and finds the end of its chain.
///
/// # Errors
///
/// Another process has it, or it cannot be read or written.
pub(super) fn open(config: &Config, hasher: &Hasher) -> Result<Opened, Error> {
    let path = &config.path;
    let unusable = |source| Error::Unusable { path: path.clone(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(unusable)?;
    }
    let lock = lock(path)?;
    let file = append_to(path).map_err(unusable)?;
    if !file.metadata().map_err(unusable)?.is_file() {
        return Err(unusable(io::Error::other("it is no regular file")));
    }
    let (max_bytes, keep) = (config.max_bytes.as_u64(), config.keep);
    let mut sink = FileSink { path: path.clone(), file, length: 0, max_bytes, keep, _lock: lock };
    let mut notes = Vec::new();
    let head = sink.find_head(hasher, &mut notes).map_err(unusable)?;
    let mut recent = Recent::default();
    sink.remember(&mut recent).map_err(unusable)?;
    Ok(Opened { sink, head, notes, recent })
}

fn lock(path: &Path) -> Result<File, Error> {
    let name = with_suffix(path, "lock");
    let unusable = |source| Error::Unusable { path: name.clone(), source };
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(&name).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Taken { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(unusable(source)),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != MODE {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    sync_directory(path)?;
    Ok(file)
}

/// Makes the names in a file's directory durable.
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
    /// Finds where the chain goes on, having cut off what is no whole record.
    fn find_head(&mut self, hasher: &Hasher, notes: &mut Vec<Note>) -> io::Result<Option<Head>> {
        let end = tail::end(&self.file)?;
        if let Some(torn) = &end.torn {
            self.file.set_len(torn.at)?;
            self.file.sync_all()?;
            notes.push(Note::Cut { bytes: torn.bytes, sha256: torn.sha256 });
            tracing::warn!(path = %self.path.display(), bytes = torn.bytes, "the audit file ended in half a record, which was cut off");
        }
        self.length = self.file.metadata()?.len();
        if let Some(last) = &end.last_line {
            return match hasher.place(last) {
                Ok(place) => Ok(Some(place.head)),
                Err(unfit) => self.put_behind(unfit, notes).map(|()| None),
            };
        }
        let Some(newest) = self.full_files()?.pop() else {
            notes.insert(0, Note::Began { mistrusted: None });
            return Ok(None);
        };
        let last = tail::end(&File::open(&newest.1)?)?.last_line;
        let head = last.and_then(|last| hasher.place(&last).ok()).map(|place| place.head);
        let after = file_name(&newest.1);
        notes.insert(
            0,
            if head.is_some() { Note::Continued { after } } else { Note::Began { mistrusted: Some(after) } },
        );
        Ok(head)
    }

    /// Puts a file behind whose last record is not of our chain: evidence, to be looked at.
    fn put_behind(&mut self, unfit: Unfit, notes: &mut Vec<Note>) -> io::Result<()> {
        let name = self.replace()?;
        let path = self.path.display();
        tracing::error!(%path, put_behind = name, ?unfit, "the audit file does not end in a record of this chain (was it changed, or audit.key?): a new chain begins");
        notes.insert(0, Note::Began { mistrusted: Some(name) });
        Ok(())
    }

    /// Renames the file to the next number and makes a new one.
    fn replace(&mut self) -> io::Result<String> {
        let number = self.full_files()?.last().map_or(1, |(number, _)| number + 1);
        let full = with_suffix(&self.path, &format!("{number:0DIGITS$}"));
        // Made first: where there is no room for it, nothing has changed.
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

    /// Removes the oldest full files beyond those that are kept.
    fn remove_oldest(&self) -> io::Result<()> {
        if self.keep == 0 {
            return Ok(());
        }
        let full = self.full_files()?;
        for (_, path) in full.iter().take(full.len().saturating_sub(self.keep)) {
            std::fs::remove_file(path)?;
            tracing::info!(path = %path.display(), "an old audit file was removed (audit.keep)");
        }
        Ok(())
    }

    /// Reads which events were recorded lately, oldest first.
    fn remember(&self, recent: &mut Recent) -> io::Result<()> {
        let mut files: Vec<PathBuf> = self.full_files()?.into_iter().map(|(_, path)| path).collect();
        files.push(self.path.clone());
        let (mut first, mut left) = (files.len(), LATELY);
        while first > 0 && left > 0 {
            first -= 1;
            left = left.saturating_sub(std::fs::metadata(&files[first])?.len());
        }
        for path in &files[first..] {
            tail::events(&File::open(path)?, LATELY, recent)?;
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn write(&mut self, records: &[u8]) -> Result<(), Interrupted> {
        match write_counted(&mut self.file, records) {
            Ok(()) => {
                self.length += records.len() as u64;
                Ok(())
            }
            Err(Interrupted { written, error }) => match self.file.set_len(self.length) {
                Ok(()) => Err(Interrupted { written: 0, error }),
                // It stays, and the rest of it comes behind it.
                Err(_) => {
                    self.length += written as u64;
                    Err(Interrupted { written, error })
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
            tracing::warn!(%error, "old audit files could not be removed");
        }
        Ok(full)
    }
}
