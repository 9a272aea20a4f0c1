//! The sink port, its adapter for standard output, and the write that both adapters share.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Stores records.
pub(super) trait Sink: fmt::Debug + Send {
    /// Writes complete records.
    ///
    /// # Errors
    ///
    /// Not all bytes were written. The caller must not write the first `written` bytes again.
    fn write(&mut self, records: &[u8]) -> Result<(), PartialWrite>;

    /// Makes all written records durable.
    ///
    /// # Errors
    ///
    /// The records may not be durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Returns whether the next records belong into a new file.
    fn is_full(&self) -> bool;

    /// Starts the next file, and returns the name of the full one.
    ///
    /// # Errors
    ///
    /// No new file could be created; the sink continues with the full one.
    fn rotate(&mut self) -> io::Result<String>;
}

/// A write failed before its end.
#[derive(Debug)]
pub(super) struct PartialWrite {
    /// How many bytes were written and remain in the sink.
    pub(super) written: usize,
    /// The cause.
    pub(super) error: io::Error,
}

/// Standard output, without the buffer of the standard library: a finished write has left the process.
#[derive(Debug)]
pub(super) struct Stdout(File);

impl Stdout {
    /// Opens standard output.
    ///
    /// # Errors
    ///
    /// It is closed.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Sink for Stdout {
    fn write(&mut self, records: &[u8]) -> Result<(), PartialWrite> {
        write_counted(&mut self.0, records)
    }

    fn sync(&mut self) -> io::Result<()> {
        // The reader is responsible for durability.
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn rotate(&mut self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes all bytes, or returns how many were written.
pub(super) fn write_counted(file: &mut File, bytes: &[u8]) -> Result<(), PartialWrite> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(PartialWrite { written, error: io::ErrorKind::WriteZero.into() }),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PartialWrite { written, error }),
        }
    }
    Ok(())
}
