//! One line of JSON, written member by member: flat, in a fixed order, without an intermediate tree.

use std::fmt::Display;
use std::io::Write;

/// A line that is being written.
#[derive(Debug)]
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    /// Begins an object.
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out }
    }

    /// Goes on with the object that `out` ends in the middle of.
    pub(super) const fn resume(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Adds a text, escaped as JSON wants it.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.escaped(value);
    }

    /// Adds what needs no escapes: digits, letters and the signs of ids and times.
    pub(super) fn plain(&mut self, name: &str, value: impl Display) {
        self.name(name);
        // Writing into memory cannot fail.
        let _ = write!(self.out, "\"{value}\"");
    }

    /// Adds a number.
    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        let _ = write!(self.out, "{value}");
    }

    /// Adds a truth.
    pub(super) fn truth(&mut self, name: &str, value: bool) {
        self.name(name);
        let _ = write!(self.out, "{value}");
    }

    /// Adds bytes as lowercase hex digits.
    pub(super) fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.digits(bytes);
    }

    /// Adds an array of texts.
    pub(super) fn texts<'b>(&mut self, name: &str, values: impl IntoIterator<Item = &'b str>) {
        self.array(name, values, |line, value| line.escaped(value));
    }

    /// Adds an array of bytes as lowercase hex digits.
    pub(super) fn hexes<'b>(&mut self, name: &str, values: impl IntoIterator<Item = &'b [u8; 16]>) {
        self.array(name, values, |line, value| line.digits(value));
    }

    fn array<T>(&mut self, name: &str, values: impl IntoIterator<Item = T>, write: impl Fn(&mut Self, T)) {
        self.name(name);
        self.out.push(b'[');
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write(self, value);
        }
        self.out.push(b']');
    }

    fn name(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn escaped(&mut self, value: &str) {
        // A text always serializes, and writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }

    fn digits(&mut self, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.out.push(b'"');
        for byte in bytes {
            self.out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        self.out.push(b'"');
    }
}
