//! Checks audit files: `profile-edge audit verify`.
//!
//! Files are read in the given order, oldest first: a chain may continue from one file to the next. The first record of a
//! chain must be one that starts a chain or a file, so that missing records at the start are found too. Missing files at the start
//! are valid, since a rotation removes them, and reported. A file that was
//! captured from standard output may hold several chains, one for each start of each process.
//!
//! Records removed at the end leave a valid chain: pass a head that the log has reported, and it must be in the files.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::chain::{ChainHead, Hasher, InvalidRecord, RecordHash, follows};
use super::tail::LONGEST;

/// The result of a successful check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The number of records.
    pub records: u64,
    /// The head of each chain, in the order of appearance.
    pub heads: Vec<ChainHead>,
    /// The number of the first record of each chain; above 1, earlier files are missing.
    pub first: Vec<u64>,
    /// The number of records after the expected head, if one was given.
    pub beyond: Option<u64>,
}

/// The first invalid line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The file.
    pub file: PathBuf,
    /// The line number, from 1; for records missing at the end, the line after the last one.
    pub line: u64,
    /// Its fault.
    pub fault: RecordFault,
}

/// The fault of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// It has no line end: it was truncated, or is still being written.
    CutOff,
    /// It is not a record.
    NoRecord,
    /// It does not match its own hash.
    Changed,
    /// Its number does not follow the previous record.
    OutOfOrder {
        /// Its number.
        seq: u64,
        /// The expected number.
        expected: u64,
    },
    /// Its number is right, but the previous record was replaced.
    OtherBefore,
    /// The start of its chain is missing.
    NoBeginning,
    /// The expected head is missing.
    HeadMissing,
}

/// Files cannot be read, or are invalid.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// A line is invalid.
    Bad(BadLine),
}

/// Checks records one by one.
#[derive(Debug)]
pub struct Verifier {
    hasher: Hasher,
    heads: Vec<ChainHead>,
    first: Vec<u64>,
    indices: HashMap<String, usize>,
    records: u64,
    expected: Option<RecordHash>,
    found_at: Option<u64>,
}

impl Verifier {
    /// Creates a verifier; `expected` is the hash of a record that must exist.
    #[must_use]
    pub fn new(hasher: Hasher, expected: Option<RecordHash>) -> Self {
        Self {
            hasher,
            heads: Vec::new(),
            first: Vec::new(),
            indices: HashMap::new(),
            records: 0,
            expected,
            found_at: None,
        }
    }

    /// Checks the next line, line end included.
    ///
    /// # Errors
    ///
    /// The fault of the line.
    pub fn line(&mut self, line: &[u8]) -> Result<(), RecordFault> {
        let line = line.strip_suffix(b"\n").ok_or(RecordFault::CutOff)?;
        let position = self.hasher.position(line).map_err(|invalid| match invalid {
            InvalidRecord::Form => RecordFault::NoRecord,
            InvalidRecord::Hash => RecordFault::Changed,
        })?;
        match self.indices.get(&position.head.chain) {
            Some(index) => {
                let head = &mut self.heads[*index];
                if !follows(&position, head) {
                    let (seq, expected) = (position.head.seq, head.seq + 1);
                    return Err(if seq == expected {
                        RecordFault::OtherBefore
                    } else {
                        RecordFault::OutOfOrder { seq, expected }
                    });
                }
                *head = position.head;
                self.records += 1;
                if self.expected == Some(head.hash) {
                    self.found_at = Some(self.records);
                }
            }
            None => {
                let is_first = position.head.seq == 1 && position.prev == RecordHash::NONE;
                if !position.starts || (position.head.seq == 1) != is_first {
                    return Err(RecordFault::NoBeginning);
                }
                self.records += 1;
                if self.expected == Some(position.head.hash) {
                    self.found_at = Some(self.records);
                }
                self.indices.insert(position.head.chain.clone(), self.heads.len());
                self.first.push(position.head.seq);
                self.heads.push(position.head);
            }
        }
        Ok(())
    }

    /// Checks that no records are missing at the end.
    ///
    /// # Errors
    ///
    /// The expected head is missing.
    pub fn finish(self) -> Result<VerifyReport, RecordFault> {
        if self.expected.is_some() && self.found_at.is_none() {
            return Err(RecordFault::HeadMissing);
        }
        let beyond = self.found_at.map(|at| self.records - at);
        Ok(VerifyReport { records: self.records, heads: self.heads, first: self.first, beyond })
    }
}

/// Checks files, oldest first.
///
/// # Errors
///
/// A file cannot be read, or a line is invalid: the first one.
pub fn files(paths: &[PathBuf], hasher: Hasher, expected: Option<RecordHash>) -> Result<VerifyReport, Error> {
    let mut verifier = Verifier::new(hasher, expected);
    let mut end = (PathBuf::new(), 0);
    for path in paths {
        let unreadable = |error| Error::Unreadable(path.clone(), error);
        let lines = check(path, &mut verifier).map_err(unreadable)?.map_err(Error::Bad)?;
        end = (path.clone(), lines + 1);
    }
    verifier.finish().map_err(|fault| Error::Bad(BadLine { file: end.0, line: end.1, fault }))
}

/// Checks one file, and returns its number of lines.
fn check(path: &Path, verifier: &mut Verifier) -> io::Result<Result<u64, BadLine>> {
    let mut lines = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        if lines.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(Ok(number));
        }
        number += 1;
        if let Err(fault) = verifier.line(&line) {
            return Ok(Err(BadLine { file: path.to_owned(), line: number, fault }));
        }
    }
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str("it has no line end: it was truncated, or is still being written"),
            Self::NoRecord => f.write_str("it is not an audit record"),
            Self::Changed => f.write_str("it does not match its own hash: it was changed, or audit.key differs"),
            Self::OutOfOrder { seq, expected } if seq > expected => {
                write!(f, "it is record {seq} instead of {expected}: records before it were removed or moved")
            }
            Self::OutOfOrder { seq, expected } => {
                write!(f, "it is record {seq} instead of {expected}: it was moved or repeated")
            }
            Self::OtherBefore => f.write_str("it does not follow the previous record, which was replaced"),
            Self::NoBeginning => f.write_str("the start of its chain is missing: records before it were removed"),
            Self::HeadMissing => {
                f.write_str("the expected head is missing: records at the end were removed or replaced")
            }
        }
    }
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line {}: {}", self.file.display(), self.line, self.fault)
    }
}

#[cfg(test)]
mod tests;
