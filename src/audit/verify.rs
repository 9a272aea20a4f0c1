//! Checks audit files: `profile-edge audit verify`.
//!
//! Files are read in the order in which they are given, oldest first: a chain may go on from one to the next. The first
//! record of a chain that is seen must be one with which a chain or a file begins, so that records that are missing at
//! the start are found too. A file that was standard output may hold several chains, one for each start of each
//! process.
//!
//! Records cut off at the end leave a chain that is whole: name the head that the log told of, and it must be there.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::chain::{Hasher, Head, RecordHash, Unfit, follows};
use super::tail::LONGEST;

/// What was found to be in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub records: u64,
    /// The head of each chain, in the order in which they were met.
    pub heads: Vec<Head>,
    /// How many records stand behind the expected head, where one was named.
    pub beyond: Option<u64>,
}

/// The first line that is not in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// In which file.
    pub file: PathBuf,
    /// Which line, counted from 1; for records that are missing at the end, the one behind the last.
    pub line: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no line end: it was not written to its end, or was cut off.
    CutOff,
    /// It is no record.
    NoRecord,
    /// It does not fit its own hash.
    Changed,
    /// It is not the one behind the record before it.
    OutOfOrder {
        /// Its number.
        seq: u64,
        /// The number that belongs here.
        expected: u64,
    },
    /// It has the right number, and another record stood before it.
    OtherBefore,
    /// The beginning of its chain is missing.
    NoBeginning,
    /// The expected head is nowhere.
    HeadMissing,
}

/// Files cannot be checked, or are not in order.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// A line is not in order.
    Bad(BadLine),
}

/// Checks records one after the other.
#[derive(Debug)]
pub struct Verifier {
    hasher: Hasher,
    heads: Vec<Head>,
    places: HashMap<String, usize>,
    records: u64,
    expected: Option<RecordHash>,
    found_at: Option<u64>,
}

impl Verifier {
    /// Makes a verifier; `expected` is the hash of a record that must be there.
    #[must_use]
    pub fn new(hasher: Hasher, expected: Option<RecordHash>) -> Self {
        Self { hasher, heads: Vec::new(), places: HashMap::new(), records: 0, expected, found_at: None }
    }

    /// Checks the next line, line end included.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let line = line.strip_suffix(b"\n").ok_or(Fault::CutOff)?;
        let place = self.hasher.place(line).map_err(|unfit| match unfit {
            Unfit::Form => Fault::NoRecord,
            Unfit::Hash => Fault::Changed,
        })?;
        match self.places.get(&place.head.chain) {
            Some(index) => {
                let head = &mut self.heads[*index];
                if !follows(&place, head) {
                    let (seq, expected) = (place.head.seq, head.seq + 1);
                    return Err(if seq == expected { Fault::OtherBefore } else { Fault::OutOfOrder { seq, expected } });
                }
                *head = place.head;
                self.records += 1;
                if self.expected == Some(head.hash) {
                    self.found_at = Some(self.records);
                }
            }
            None => {
                let is_first = place.head.seq == 1 && place.prev == RecordHash::NONE;
                if !place.begins || (place.head.seq == 1) != is_first {
                    return Err(Fault::NoBeginning);
                }
                self.records += 1;
                if self.expected == Some(place.head.hash) {
                    self.found_at = Some(self.records);
                }
                self.places.insert(place.head.chain.clone(), self.heads.len());
                self.heads.push(place.head);
            }
        }
        Ok(())
    }

    /// Checks that nothing is missing at the end.
    ///
    /// # Errors
    ///
    /// The expected head is nowhere.
    pub fn finish(self) -> Result<Report, Fault> {
        if self.expected.is_some() && self.found_at.is_none() {
            return Err(Fault::HeadMissing);
        }
        let beyond = self.found_at.map(|at| self.records - at);
        Ok(Report { records: self.records, heads: self.heads, beyond })
    }
}

/// Checks files, oldest first.
///
/// # Errors
///
/// One cannot be read, or a line is not in order: the first such.
pub fn files(paths: &[PathBuf], hasher: Hasher, expected: Option<RecordHash>) -> Result<Report, Error> {
    let mut verifier = Verifier::new(hasher, expected);
    let mut end = (PathBuf::new(), 0);
    for path in paths {
        let unreadable = |error| Error::Unreadable(path.clone(), error);
        let lines = check(path, &mut verifier).map_err(unreadable)?.map_err(Error::Bad)?;
        end = (path.clone(), lines + 1);
    }
    verifier.finish().map_err(|fault| Error::Bad(BadLine { file: end.0, line: end.1, fault }))
}

/// Checks one file, and returns how many lines it has.
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str("it has no line end: the rest of it was cut off, or not written yet"),
            Self::NoRecord => f.write_str("it is no audit record"),
            Self::Changed => f.write_str("it does not fit its own hash: it was changed, or audit.key is another"),
            Self::OutOfOrder { seq, expected } if seq > expected => {
                write!(f, "it is record {seq} where {expected} belongs: records before it were removed or moved")
            }
            Self::OutOfOrder { seq, expected } => {
                write!(f, "it is record {seq} where {expected} belongs: it was moved or repeated")
            }
            Self::OtherBefore => f.write_str("another record stood before it: that one was replaced"),
            Self::NoBeginning => f.write_str("its chain has no beginning here: records before it were removed"),
            Self::HeadMissing => f.write_str("the expected head is not there: records were cut off or replaced"),
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
