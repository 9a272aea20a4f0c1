//! The queue of log lines: whoever logs appends a line and never waits; one thread writes the lines.
//!
//! A write to standard error can block without end: its reader may have stopped, or read too slowly. So lines wait in
//! memory, at most [`CAPACITY`] bytes of them and as many again in the write under way. A line that does not fit is
//! dropped and counted. When lines are written again, the log reports how many were dropped.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The most bytes of waiting lines.
const CAPACITY: usize = 1 << 20;

/// The pause before another write into a full pipe that does not block; another process can make a shared pipe so.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Lines that wait to be written.
#[derive(Debug)]
pub(super) struct LineQueue {
    lines: Mutex<Lines>,
    /// Notified when lines wait, and when all of them are written.
    changed: Condvar,
}

#[derive(Debug)]
struct Lines {
    waiting: Vec<u8>,
    is_writing: bool,
    /// The number of dropped lines since the start, and the part of it that the log has reported.
    dropped: u64,
    reported: u64,
}

impl Lines {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_writing
    }
}

impl LineQueue {
    pub(super) const fn new() -> Self {
        let lines = Lines { waiting: Vec::new(), is_writing: false, dropped: 0, reported: 0 };
        Self { lines: Mutex::new(lines), changed: Condvar::new() }
    }

    /// Appends a complete line, or drops and counts it if there is no room. Never waits for a write.
    pub(super) fn push(&self, line: &[u8]) {
        let mut lines = self.lines.lock();
        if lines.waiting.len() + line.len() > CAPACITY {
            lines.dropped += 1;
            return;
        }
        lines.waiting.extend_from_slice(line);
        drop(lines);
        self.changed.notify_all();
    }

    /// Returns how many lines were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.lines.lock().dropped
    }

    /// Waits until all lines are written, for at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let mut lines = self.lines.lock();
        // What is not written by then is lost with the process.
        self.changed.wait_while_for(&mut lines, |lines| !lines.is_idle(), limit);
    }

    /// Waits for lines and writes all of them. Returns how many dropped lines the log has to report.
    pub(super) fn write_next(&self, sink: &mut impl Write) -> Option<u64> {
        let batch = {
            let mut lines = self.lines.lock();
            self.changed.wait_while(&mut lines, |lines| lines.waiting.is_empty());
            lines.is_writing = true;
            std::mem::take(&mut lines.waiting)
        };
        let written = write_all(sink, &batch);
        let mut lines = self.lines.lock();
        lines.is_writing = false;
        let unreported = match written {
            Ok(()) => {
                let unreported = lines.dropped - lines.reported;
                lines.reported = lines.dropped;
                unreported
            }
            Err(lost) => {
                lines.dropped += lost;
                0
            }
        };
        self.changed.notify_all();
        (unreported > 0).then_some(unreported)
    }
}

/// Writes all bytes, or returns the number of lines that were not written.
fn write_all(sink: &mut impl Write, mut bytes: &[u8]) -> Result<(), u64> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_AFTER),
            // The reader is gone, and there is no other place to report it.
            Ok(_) | Err(_) => return Err(bytes.split(|byte| *byte == b'\n').count() as u64 - 1),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_the_capacity_are_dropped_counted_and_reported_once() {
        let (queue, line) = (LineQueue::new(), [b"x".repeat(1023), b"\n".to_vec()].concat());
        for _ in 0..CAPACITY / line.len() + 3 {
            queue.push(&line);
        }
        assert_eq!(queue.dropped(), 3);
        let mut written = Vec::new();
        assert_eq!(queue.write_next(&mut written), Some(3));
        assert_eq!(written.len(), CAPACITY);
        queue.push(b"next\n");
        assert_eq!(queue.write_next(&mut written), None);
        assert!(written.ends_with(b"x\nnext\n"));
        queue.flush(Duration::ZERO);
    }

    #[test]
    fn lines_for_a_reader_that_is_gone_are_counted_and_reported_later() {
        let queue = LineQueue::new();
        queue.push(b"one\n");
        queue.push(b"two\n");
        assert_eq!(queue.write_next(&mut Broken), None, "there is nobody to report to");
        queue.push(b"three\n");
        let mut written = Vec::new();
        assert_eq!(queue.write_next(&mut written), Some(2));
        assert_eq!(written, b"three\n");
    }
}
