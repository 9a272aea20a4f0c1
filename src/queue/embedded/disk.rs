//! The space of the queue's file on the disk.
//!
//! # A full disk
//!
//! redb writes each change to other pages than those that hold the present state, and frees the old ones afterwards. So
//! even the removal of an event needs space, and after a write that failed redb has to be opened again. To avoid both,
//! space is reserved in a second file. When the disk refuses a write, as much as the write needs is taken from the reserve
//! and the write is repeated. From then on the disk counts as full ([`DiskSpace::check`]) until the reserve is whole and the
//! disk gives a little more. Meanwhile events are added only as far as the file has many free pages, so what is left of the
//! reserve is for settlements. They need little of it, since the pages that they free are used again.
//!
//! Without a reserve (its file cannot be used, which is logged) the queue works, but nothing can be settled on a full disk
//! whose file has no free pages. A file system that does not allocate space when it is written (copy on write, compression)
//! may refuse a write although there is a reserve; then the file is opened again.
//!
//! # The size of the file
//!
//! redb doubles the length of its file, but the disk only gives space for what is written. So the size of the file is what
//! it takes of the disk, not its length. It does not become smaller unless it is compacted. The limits cover what its
//! content needs ([`Content`]), and events are refused if the file grows beyond its limit nevertheless.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use redb::DatabaseError;
use redb::backends::FileBackend;

use crate::queue::Error;

use super::change::LogLimits;
use super::reserve::{self, BLOCK, Reserve};

/// The limits of the reserve, in bytes, and its share of what events may take.
const LEAST_RESERVED: u64 = 1 << 20;
const MOST_RESERVED: u64 = 8 << 20;
const RESERVED_SHARE: u64 = 8;

/// What events may take at least, in bytes, whatever the limit.
const LEAST_SIZE: u64 = 3 << 20;

/// How much a file that is not compacted may have beyond two and a half times its content, in bytes.
const MOST_WASTED: u64 = 4 << 20;

/// The space of one file.
#[derive(Debug)]
pub(super) struct DiskSpace {
    pub(super) file: FileBackend,
    /// The same file, for its attributes.
    attributes: File,
    reserve: Mutex<Reserve>,
    /// While the file is at its limit: its size, and the least content at which it grew.
    at_limit: Mutex<Option<(u64, u64)>>,
    /// What events, and the journal, may take of the disk, in bytes.
    events_limit: u64,
    journal_limit: u64,
}

/// The content of the file, in bytes with the keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    /// Unsettled events and dead letters.
    pub(super) events: u64,
    /// Settled events.
    pub(super) journal: u64,
}

impl Content {
    pub(super) const fn total(self) -> u64 {
        self.events + self.journal
    }

    /// Returns what the events take of the disk. They are added in order, so their pages are nearly full; the rest is for the
    /// pages that a transaction replaces.
    const fn events_on_disk(self) -> u64 {
        self.events / 8 * 9
    }
}

impl DiskSpace {
    /// Takes over the file. The file of the reserve is created at the first [`check`](Self::check).
    ///
    /// # Errors
    ///
    /// The file cannot be used.
    pub(super) fn open(path: &Path, reserve: PathBuf, limits: &LogLimits) -> Result<Arc<Self>, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let attributes = file.try_clone()?;
        let wanted = (limits.max_bytes / RESERVED_SHARE).clamp(LEAST_RESERVED, MOST_RESERVED);
        let events_limit = limits.max_bytes.saturating_sub(wanted).max(LEAST_SIZE);
        let journal_limit = if limits.journal.is_enabled() { limits.journal.max_bytes } else { 0 };
        let (reserve, at_limit) = (Mutex::new(Reserve::new(reserve, wanted)), Mutex::new(None));
        let file = FileBackend::new(file)?;
        Ok(Arc::new(Self { file, attributes, reserve, at_limit, events_limit, journal_limit }))
    }

    /// Completes the reserve, and tests whether the disk gives more than that. Logs when the disk becomes full, and when it
    /// has space again.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`]: it does not, and the file has no free pages.
    pub(super) fn check(&self, content: Content) -> Result<(), Error> {
        let refusal = self.reserve.lock().check();
        refusal.filter(|_| self.spare(content) == 0).map_or(Ok(()), |reason| Err(Error::DiskFull { reason }))
    }

    /// Returns how many bytes of events one transaction may add, with their keys; `waits`: whether some of the content is to
    /// be settled. Asks a full disk again after a while.
    pub(super) fn room(&self, content: Content, waits: bool) -> Room {
        let refusal = self.reserve.lock().present_refusal();
        let left = self.left(content, waits);
        match refusal {
            Some(reason) => Room { left: left.min(self.spare(content) / 5 * 2), refusal: Error::DiskFull { reason } },
            None => Room { left, refusal: Error::Full { bytes: self.size(), max_bytes: self.limit() } },
        }
    }

    /// Returns how many bytes of events may be added to the content, with their keys, on a disk that is not full.
    ///
    /// If the file grows beyond its limit nevertheless, a part of the content must go first, so that new events use its pages.
    pub(super) fn left(&self, content: Content, waits: bool) -> u64 {
        let left = self.events_limit.saturating_sub(content.events_on_disk()) / 9 * 8;
        let (size, total, mut at_limit) = (self.size(), content.total(), self.at_limit.lock());
        if !waits || size <= self.limit() {
            *at_limit = None;
            return left;
        }
        let (grown, most) = match *at_limit {
            None => (size, u64::MAX),
            Some((grown, most)) if grown < size => (size, most.min(total)),
            Some(same) => same,
        };
        *at_limit = Some((grown, most));
        left.min((most / 8 * 7).saturating_sub(total))
    }

    /// Returns how many bytes the journal may contain, with the keys: what its own limit allows, or what the events leave.
    /// Events are added to it in the order of their settlement, so its pages may be half empty; a sixteenth of the file is for
    /// pages that settlements replace. On a full disk, the journal is an eighth of the file.
    pub(super) fn most_journalled(&self, content: Content) -> u64 {
        let left = (self.limit() / 16 * 15).saturating_sub(content.events_on_disk());
        let most = self.journal_limit.max(left) / 2;
        if self.reserve.lock().is_used() { most.min(self.size() / 8) } else { most }
    }

    /// Returns whether the file takes three quarters of its limit, or will when this many more bytes are written.
    pub(super) fn is_near_limit(&self, unwritten: u64) -> bool {
        self.size().saturating_add(unwritten) > self.limit() / 4 * 3
    }

    /// Returns whether the file is much larger than its content needs.
    pub(super) fn is_large(&self, content: Content) -> bool {
        self.spare(content) > 0
    }

    /// Returns whether the disk is full and the file has few free pages.
    pub(super) fn is_full(&self, content: Content) -> bool {
        self.reserve.lock().is_used() && self.spare(content) == 0
    }

    /// Returns how many bytes of events one transaction may add, so that the reserve outlasts it.
    pub(super) fn most_added(&self) -> u64 {
        self.reserve.lock().wanted() / 16
    }

    /// Returns what the file takes of the disk, in bytes; 0 if its attributes cannot be read.
    pub(super) fn size(&self) -> u64 {
        self.attributes.metadata().map_or(0, |attributes| attributes.blocks() * BLOCK)
    }

    /// Repeats a write that the disk refuses, with space from the reserve.
    pub(super) fn with_reserve(&self, bytes: usize, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        loop {
            match write() {
                Err(error) if reserve::is_full(&error) && self.reserve.lock().release(bytes as u64, &error) => {}
                outcome => return outcome,
            }
        }
    }

    /// Returns how much the file takes beyond a generous size for its content, in bytes.
    fn spare(&self, content: Content) -> u64 {
        self.size().saturating_sub(content.total() / 2 * 5 + MOST_WASTED)
    }

    const fn limit(&self) -> u64 {
        self.events_limit.saturating_add(self.journal_limit)
    }
}

/// How much may be added to the file.
#[derive(Debug)]
pub(super) struct Room {
    left: u64,
    refusal: Error,
}

impl Room {
    /// Takes a part of it; nothing is always there.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`], or [`Error::Full`] with the size of the file.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Error> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| self.refusal.clone())?;
        Ok(())
    }
}
