//! The reserve: a file beside the queue's file that keeps space for it, see [`disk`](super::disk).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::private_files;

/// The unit of [`MetadataExt::blocks`], in bytes.
pub(super) const BLOCK: u64 = 512;

/// The size of a page, in bytes. Longer ones are multiples of it.
const PAGE: u64 = 4_096;

/// What is taken from the reserve besides the bytes to write: what the file system needs to store them.
const BOOKKEEPING: u64 = 2 * PAGE;

/// What the disk must give beyond the reserve, in bytes; also how much is reserved at once.
const PROBE: u64 = 64 * 1_024;

/// The time between two questions to a full disk.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// The reserve of one file.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// `None` if it cannot be used.
    file: Option<File>,
    bytes: u64,
    wanted: u64,
    /// What the disk answered, if it is full.
    refusal: Option<String>,
    /// Whether it was logged that there is no reserve.
    is_missed: bool,
    /// When the disk was asked last.
    checked: Instant,
}

impl Reserve {
    /// Takes over what an earlier process reserved.
    pub(super) fn new(path: PathBuf, wanted: u64) -> Self {
        let file = OpenOptions::new().write(true).open(&path).ok();
        let attributes = file.as_ref().and_then(|file| file.metadata().ok());
        // A copy of the directory may have made it sparse.
        let bytes = attributes.map_or(0, |file| file.len().min(file.blocks() * BLOCK).min(wanted) / PAGE * PAGE);
        Self { path, file, bytes, wanted, refusal: None, is_missed: false, checked: Instant::now() }
    }

    /// Returns its size when it is whole, in bytes.
    pub(super) const fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Returns whether the disk was full when it was last asked.
    pub(super) const fn is_used(&self) -> bool {
        self.refusal.is_some()
    }

    /// Completes it; returns what a full disk answers.
    pub(super) fn check(&mut self) -> Option<String> {
        self.checked = Instant::now();
        match self.complete() {
            Ok(()) => {
                self.is_missed = false;
                if self.refusal.take().is_some() {
                    tracing::info!("the queue's disk has space again");
                }
            }
            Err(error) if is_full(&error) => self.refused(&error),
            Err(error) => {
                // Nothing is known of the disk; a write that it refuses fails.
                self.refusal = None;
                if !std::mem::replace(&mut self.is_missed, true) {
                    let path = self.path.display();
                    tracing::warn!(%error, %path, "no space can be reserved: if the disk becomes full, events that wait are not applied until it has space");
                }
            }
        }
        self.refusal.clone()
    }

    /// Returns what the full disk answered, after asking it again if that was long ago.
    pub(super) fn present_refusal(&mut self) -> Option<String> {
        let refusal = self.refusal.clone();
        if refusal.is_some() && self.checked.elapsed() >= CHECK_EVERY { self.check() } else { refusal }
    }

    fn complete(&mut self) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                private_files::create_file(&self.path)?;
                OpenOptions::new().write(true).open(&self.path)?
            }
        };
        let outcome = self.extend(&mut file);
        // What was written beyond the reserve is free again.
        let outcome = outcome.and(file.set_len(self.bytes));
        self.file = Some(file);
        outcome
    }

    fn extend(&mut self, file: &mut File) -> io::Result<()> {
        let zeros = vec![0; PROBE as usize];
        file.seek(SeekFrom::Start(self.bytes))?;
        while self.bytes < self.wanted {
            let part = PROBE.min(self.wanted - self.bytes);
            file.write_all(&zeros[..part as usize])?;
            self.bytes += part;
        }
        file.write_all(&zeros)
    }

    /// Gives the disk space for a write of `bytes`; returns whether there was any.
    pub(super) fn release(&mut self, bytes: u64, error: &io::Error) -> bool {
        self.refused(error);
        let left = self.bytes.saturating_sub(bytes.next_multiple_of(PAGE) + BOOKKEEPING);
        let shortened = self.file.as_ref().filter(|_| left < self.bytes).map(|file| file.set_len(left));
        let is_released = matches!(shortened, Some(Ok(())));
        if is_released {
            self.bytes = left;
        }
        is_released
    }

    fn refused(&mut self, error: &io::Error) {
        if self.refusal.replace(error.to_string()).is_none() {
            tracing::error!(%error, "the queue's disk is full: events that wait are applied, new ones are refused until the disk or the queue's file has space");
        }
    }
}

/// Returns whether the disk, or a quota, has no space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
