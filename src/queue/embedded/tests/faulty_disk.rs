//! A disk for tests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

/// A disk that can fail on demand and that counts its fsyncs.
#[derive(Debug, Default)]
pub(super) struct FaultyDisk {
    pub(super) broken: AtomicBool,
    pub(super) syncs: AtomicUsize,
    /// Every fsync blocks while this is set.
    pub(super) held: AtomicBool,
}

#[derive(Debug)]
pub(super) struct FaultyFile {
    pub(super) disk: Arc<FaultyDisk>,
    pub(super) file: FileBackend,
}

impl FaultyFile {
    fn check(&self) -> io::Result<()> {
        if self.disk.broken.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.disk.held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.check()?;
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
