//! Where records go: standard output, or a file.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Takes records.
pub(super) trait Sink: fmt::Debug + Send {
    /// Writes whole records.
    ///
    /// # Errors
    ///
    /// They were not all written: what was is told, and must not be given again.
    fn write(&mut self, records: &[u8]) -> Result<(), Interrupted>;

    /// Makes durable what was written.
    ///
    /// # Errors
    ///
    /// It may not be.
    fn sync(&mut self) -> io::Result<()>;

    /// Tells whether the next records should go to a file of their own.
    fn is_full(&self) -> bool;

    /// Begins the next file, and returns the name of the full one.
    ///
    /// # Errors
    ///
    /// It could not be begun; the full one goes on.
    fn rotate(&mut self) -> io::Result<String>;
}

/// Writing ended early.
#[derive(Debug)]
pub(super) struct Interrupted {
    /// How many bytes were written, and stay so.
    pub(super) written: usize,
    /// Why no more were.
    pub(super) error: io::Error,
}

/// Standard output, past the buffer that the standard library has for it: what is written is out.
#[derive(Debug)]
pub(super) struct Stdout(File);

impl Stdout {
    /// Takes standard output.
    ///
    /// # Errors
    ///
    /// It is closed.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Sink for Stdout {
    fn write(&mut self, records: &[u8]) -> Result<(), Interrupted> {
        write_counted(&mut self.0, records)
    }

    fn sync(&mut self) -> io::Result<()> {
        // Whoever reads it has it.
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn rotate(&mut self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes everything, or tells how much of it was written.
pub(super) fn write_counted(file: &mut File, bytes: &[u8]) -> Result<(), Interrupted> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(Interrupted { written, error: io::ErrorKind::WriteZero.into() }),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Interrupted { written, error }),
        }
    }
    Ok(())
}
